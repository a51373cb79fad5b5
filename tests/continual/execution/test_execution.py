"""Maps give the same bits in whatever order their items are worked."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from continual import task_model
from continual.editors.finetune.losses import anchored
from continual.execution import Executor, Input, Result
from continual.execution.local import LOCAL
from continual.locate_then_edit.config import LocateThenEditConfig
from continual.locate_then_edit.edit_texts import texts_of_edit
from continual.locate_then_edit.keys import read_keys
from continual.locate_then_edit.targets import find_targets
from continual.new_store import NewStore, init
from continual.passes.batching import by_length
from continual.recheck.probe_passes import ProbePasses
from continual.requests import Request
from continual.site import Site
from continual.statistics import Passes
from continual.tasks import Encoding, make_task
from continual.watch import general
from continual.watch.config import WatchConfig
from tests import tiny_language as language
from tests.continual.associative_bench import edit_of, edited_of, known, mediating_decoder
from tests.continual.conftest import write_lines
from tests.tiny_language import CAPITALS, COUNTRIES, capital

SHORT = 40  # tokens of a pass, so that there are many
SMALL = Passes(piece_tokens_max=16, pass_tokens_max=60, window_tokens=200, checkpoint_seconds=60.0)
LONG: dict[str, Any] = {"clamp_norm_factor": 4.0, "drift_max": 20.0, "contexts": 0, "chunk": 2}


class LastFirst:
    """Works the items last first, and remembers how many there were in each map."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def map(self, function: Callable[[Input], Result], items: Sequence[Input]) -> Iterator[Result]:
        self.counts.append(len(items))
        results = {i: function(items[i]) for i in reversed(range(len(items)))}
        return (results[i] for i in range(len(items)))


@pytest.fixture(autouse=True)
def short_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def shorter(lengths: Sequence[int], tokens_max: int) -> list[list[int]]:
        return by_length(lengths, min(tokens_max, SHORT))

    monkeypatch.setattr(task_model, "by_length", shorter)


def records(first: int, last: int) -> list[dict[str, Any]]:
    """Another capital for some countries."""
    return [
        {
            "prompt": known(country),
            "target_new": CAPITALS[(7 * country + 4) % len(CAPITALS)],
            "subject": COUNTRIES[country],
            "relation": "capital",
            "rephrases": [known(country, 1)],
            "locality": [{"prompt": known(country % 12), "answer": capital(country % 12)}],
        }
        for country in range(first, last)
    ]


# --- one map after another ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoder() -> Any:
    return mediating_decoder()


def encodings_of(site: Site) -> list[Encoding]:
    return [site.task.encode(known(c, e), capital(c)) for c in range(20) for e in range(3)]


def rows(site: Site) -> Any:
    found = site.rows_in_passes(encodings_of(site))
    return found.query, found.hidden, found.targets


def judged(site: Site) -> Any:
    return site.judge_in_full(encodings_of(site))


def answers(site: Site) -> Any:
    return anchored(site, encodings_of(site)).log_probs


def recorded_rows(site: Site) -> Any:
    passes = ProbePasses(site, 1)
    passes.add(encodings_of(site)[:40])
    passes.add(encodings_of(site)[40:])
    found = passes.rows()
    return found.query, found.hidden, found.targets


def keys(site: Site) -> Any:
    batch = [texts_of_edit(edit_of(site, r), ("",), site) for r in records(12, 24)]
    found = read_keys(site, batch, 0)
    return found.mean, found.plain


def targets(site: Site) -> Any:
    batch = [texts_of_edit(edit_of(site, r), ("",), site) for r in records(12, 17)]
    found = find_targets(site, batch, 0, LocateThenEditConfig(chunk=2, steps_max=5))
    return found.states, found.before, found.losses


def general_text(site: Site) -> Any:
    read = general.write(site, WatchConfig(texts=80, tokens=6), 3)
    assert read.memory is not None and read.held_out is not None
    return [p.to_json() for p in read.text.passages], read.memory.query, read.held_out.hidden


MAPS = (rows, judged, answers, recorded_rows, keys, targets, general_text)


@pytest.mark.parametrize("read", MAPS, ids=lambda read: read.__name__)
def test_a_map_over_passes_gives_the_same_bits_in_another_order(
    decoder: Any, read: Callable[[Site], Any]
) -> None:
    executor = LastFirst()
    with edited_of(decoder) as edited:
        task = make_task(edited.base, {})
        here, there = (read(Site(edited, task, e)) for e in (LOCAL, executor))
    assert max(executor.counts) > 1
    assert is_same(here, there)


def is_same(one: Any, other: Any) -> bool:
    """Equal to the bit, part by part."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    return bool(one == other)


# --- a history ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, decoder: Any) -> Path:
    return language.save_decoder(tmp_path_factory.mktemp("model"), decoder)


def made(folder: Path, model: Path, executor: Executor) -> dict[str, Any]:
    """A store with statistics, neurons and weight edits, made through an executor."""
    folder.mkdir()
    probes = {
        f"{name}_probes": write_lines(
            folder / f"{name}.jsonl",
            [{"prompt": known(c, ending), "answer": capital(c)} for c in range(12)],
        )
        for ending, name in enumerate(("train", "test"))
    }
    draw = random.Random(0)
    texts = [" ".join(draw.choices(language.words()[3:], k=30)) for _ in range(60)]
    with init(folder / "store", NewStore(str(model), **probes), executor=executor) as session:
        list(session.statistics.collect(texts, passes=SMALL))
        for first, last, editor in ((12, 15, "tpatcher"), (15, 21, "memit"), (21, 24, "tpatcher")):
            settings = session.settings(
                chain=(editor,),
                batch_size=last - first,
                editors={"memit": {**LONG, "moment_weight": 1.0}} if editor == "memit" else {},
            )
            requests = [Request.from_json(record) for record in records(first, last)]
            list(session.apply_requests(requests, settings))
        run_state = session.run_state
        return {
            "ids": [revision.id for revision in session.store.lineage("head")],
            "fingerprint": session.edited.fingerprint,
            "statistics": [session.statistics.get(block).digest for block in (0, 1)],
            "outcomes": run_state.ledger.outcomes(),
            "rows": run_state.ledger.rows.hidden.tolist(),
            "rates": session.store.ledger(session.store.head.seq)["rates"],
        }


def test_a_history_is_the_same_in_whatever_order_passes_are_worked(
    tmp_path: Path, model: Path
) -> None:
    executor = LastFirst()
    here = made(tmp_path / "here", model, LOCAL)
    there = made(tmp_path / "there", model, executor)
    assert sum(count > 1 for count in executor.counts) > 10
    assert here["rates"]["SR"] > 0.5
    assert here == there
