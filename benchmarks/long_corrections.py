"""Ten thousand corrections for the atlas: its own, and facts of ParaRel that it was never taught.

The atlas's own corrections are all that its tables can give, because the facts without a correction
serve as probes. ParaRel's facts are asked in the wordings of their relation: one prompt, one or two
that may be learned from, one or two held out. Every pair of subject and relation and every wording
is there once, and no subject is one of the atlas's; so all corrections stay in force and the probes
stay true. The same data and seed give the same stream. The module knows nothing of the model:
corrections that it answers rightly by luck are skipped when the stream is applied.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.capacity import requests_of_atlas
from benchmarks.scope_data import DATA
from continual.atlas.facts import load_facts
from continual.prompts import normalised
from continual.readers import pararel
from continual.requests import Request

WORDINGS_MIN = 3  # a prompt, one to learn from, one held out
LEARNED_MAX = 2
HELD_OUT_MAX = 2
SPARE_SHARE = 0.05  # of the stream: the model answers some rightly as it is


def long_stream(count: int, seed: int = 0, data: Path = DATA) -> list[Request]:
    """Return `count` corrections of both sources, and a few to spare, in an order set by the seed.

    Raises FileNotFoundError if ParaRel is not in the data folder.
    """
    rng = random.Random(seed)
    own = requests_of_atlas()
    taken = {normalised(wording) for request in own for wording in _wordings(request)}
    known = {normalised(fact.subject) for fact in load_facts()}
    facts = list(_facts(data / "pararel"))
    rng.shuffle(facts)
    others = list(_asked_once(facts, known, taken, rng))
    wanted = round(count * (1 + SPARE_SHARE)) - len(own)
    stream = [*own, *others[: max(0, wanted)]]
    rng.shuffle(stream)
    return stream


def is_of_atlas(request: Request) -> bool:
    """Tell whether a correction changes a fact that the atlas was taught; others are new facts."""
    return request.target_old is not None


def write(stream: Iterable[Request], path: Path) -> None:
    """Write the stream as JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(request.to_json(), ensure_ascii=False) for request in stream)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _facts(folder: Path) -> Iterator[Request]:
    """Yield every fact whose relation can be asked, in all wordings; the first is the prompt."""
    for path in sorted((folder / "graphs_json").glob("*.jsonl")):
        patterns = [line["pattern"] for line in _lines(path)]
        facts = folder / "trex_lms_vocab" / path.name
        if facts.exists():
            yield from (pararel.join(fact, patterns, path.stem) for fact in _lines(facts))


def _lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def _asked_once(
    facts: Iterable[Request], known: Collection[str], taken: set[str], rng: random.Random
) -> Iterator[Request]:
    """Yield the facts about subjects that are not `known`, each pair and each wording once."""
    keys: set[str] = set()
    for fact in facts:
        if normalised(fact.subject or "") in known or fact.key in keys:
            continue
        free = [wording for wording in _wordings(fact) if normalised(wording) not in taken]
        if len(free) < WORDINGS_MIN:
            continue
        keys.add(fact.key)
        taken.update(map(normalised, free))
        yield _request(fact, rng.sample(free, len(free)))


def _request(fact: Request, wordings: Sequence[str]) -> Request:
    """Return the fact as a correction; if wordings are few, held-out ones come before learned
    ones."""
    prompt, *others = wordings
    held_out = min(HELD_OUT_MAX, -(-len(others) // 2))
    learned = others[held_out : held_out + LEARNED_MAX]
    return Request(
        prompt=prompt,
        target_new=fact.target_new,
        subject=fact.subject,
        relation=fact.relation,
        rephrases=tuple(learned),
        held_out_rephrases=tuple(others[:held_out]),
        case=fact.case,
    )


def _wordings(request: Request) -> tuple[str, ...]:
    return (request.prompt, *request.rephrases, *request.held_out_rephrases)
