"""The requests on which scopes are trained, and unseen requests to measure them on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.capacity import requests_of_atlas
from benchmarks.scores import drawn
from continual.errors import RequestError
from continual.readers import read_record
from continual.requests import Request

DATA = Path(os.environ.get("CEDIT_DATA", Path(__file__).parents[1].parent / "shared/data"))
UNSEEN_OF_ATLAS = 1_000  # every benchmark on the atlas begins with this draw
LEARNED_OF_COUNTERFACT = 1_900


@dataclass(frozen=True)
class RequestSource:
    """One source of requests, split."""

    name: str
    learned: list[Request]
    unseen: list[Request]


def kinds(data: Path = DATA) -> list[RequestSource]:
    """Return zsRE, CounterFact, and the atlas's corrections with their same-subject locality
    probes."""
    return [zsre(data), counterfact(data), atlas()]


def zsre(data: Path) -> RequestSource:
    """Read zsRE: MEND's thousand are unseen; the other two files are learned, without its
    subjects."""
    unseen = _read(data / "zsre/zsre_mend_train_1k.json")
    subjects = {_folded(request) for request in unseen}
    others = [
        *_read(data / "zsre/zsre_eval_portability.json"),
        *_read(data / "zsre/knowedit_zsre.json"),
    ]
    return RequestSource("zsRE", [r for r in _once(others) if _folded(r) not in subjects], unseen)


def counterfact(data: Path) -> RequestSource:
    """Read CounterFact: the first of the training file are learned; validation leads the unseen."""
    whole = _read(data / "counterfact/counterfact-train.json")
    unseen = [*_read(data / "counterfact/counterfact-val.json"), *whole[LEARNED_OF_COUNTERFACT:]]
    return RequestSource("CounterFact", whole[:LEARNED_OF_COUNTERFACT], _once(unseen))


def atlas() -> RequestSource:
    """Read the atlas's corrections: the thousand that the other benchmarks edit are unseen."""
    every = requests_of_atlas()
    unseen = drawn(every, UNSEEN_OF_ATLAS)
    names = {request.id for request in unseen}
    return RequestSource("atlas", [request for request in every if request.id not in names], unseen)


def _read(path: Path) -> list[Request]:
    return [request for record in json.loads(path.read_bytes()) for request in _requests(record)]


def _requests(record: Any) -> Iterator[Request]:
    try:
        yield from read_record(record)
    except RequestError:  # an edit without a target
        return


def _once(requests: Iterable[Request]) -> list[Request]:
    """Return each prompt once."""
    return list({request.prompt_key: request for request in requests}.values())


def _folded(request: Request) -> str:
    return (request.subject or "").casefold()
