"""Measures what a user would take instead of an editor: a LoRA, and retrieval into the prompt.

    python -m benchmarks.instead [--model atlas|DIR] [--stream FILE] [--edits 300] [--marks 100,300]
        [--rows lora,lora-replay,retrieval-1,retrieval-4,tpatcher] [--unwatched] [--epochs N]
        [--rank N] [--learning-rate X] [--probes N] [--threads 1] [--json OUT]

All rows take the same corrections of one base: those of the stream that it answers wrongly. At each
mark every row is asked from outside, by greedy answers to the end: all corrections so far (ER),
their held-out wordings (GR), their neighbours (Locality: answered as the base does), and `--probes`
of the test probes, of which the right answers of the base have to stay (TestR). Without test
probes, neighbours of corrections that are not in the stream take their place.

`lora` trains a new adapter (peft, all linear layers) at each mark, on the corrections so far and
the rephrases that an editor may learn from, until all are right or for `--epochs`; `lora-replay`
takes as many training probes into each batch. `retrieval-K` puts the K nearest corrections in front
of every question, by the sentence encoder of the memory, without any editor. Any other row is an
editor in a new store, one by one; `--unwatched` leaves the store's watch set out. The stream is the
atlas's own, or CounterFact's records for another model.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks import tables
from benchmarks.counterfact_model import data_folder
from benchmarks.tables import TextColumn
from continual.embedded import embedded
from continual.errors import CeditError, RequestError
from continual.memory.encoder import SentenceEncoder
from continual.new_store import NewStore, init
from continual.passes.partial import logits_of
from continual.requests import Probe, Request
from continual.session import Session
from continual.step.settings import ApplySettings, Recheck
from continual.streams import open_stream
from continual.task_model import answer_logits
from continual.tasks import Encoding
from continual.watch.config import UNWATCHED

BATCH = 32  # texts of a LoRA's step
LINE, QUESTION = "New Fact: {prompt} {target}\n", "Prompt: "
"""The form in which `ike` and `serac` read a fact."""
NEVER = 1_000_000  # steps
COLUMNS = (
    TextColumn("row", "row"),
    TextColumn("edits", "edits", ",d"),
    *(TextColumn(name, name, ".4f") for name in ("ER", "GR", "Locality", "TestR")),
    TextColumn("an edit, CPU ms", "edit_ms", ",.1f"),
    TextColumn("a question, CPU ms", "question_ms", ",.1f"),
    TextColumn("bytes an edit", "edit_bytes", ",.0f"),
    TextColumn("note", "note"),
)


# --- what is asked --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A prompt with the answer that counts as right."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class StreamItem:
    """One correction with all that is asked about it."""

    request: Request
    edit: Asked
    wordings: tuple[Asked, ...]
    neighbours: tuple[Asked, ...]  # with the base's own answers


@dataclass(frozen=True)
class Examination:
    """The questions of a run: the stream, and probes that the base answers rightly."""

    items: tuple[StreamItem, ...]
    tests: tuple[Asked, ...]

    def of(self, count: int) -> dict[str, list[Asked]]:
        """Return the questions after so many corrections, by the name of their rate."""
        items = self.items[:count]
        return {
            "ER": [item.edit for item in items],
            "GR": [asked for item in items for asked in item.wordings],
            "Locality": [asked for item in items for asked in item.neighbours],
            "TestR": list(self.tests),
        }


class Judge:
    """Asks a model by the session's task: greedy, every token of the answer and its end."""

    def __init__(self, session: Session) -> None:
        self.session, self.site = session, session.site

    def encoded(self, asked: Sequence[Asked], front: Sequence[str] | None = None) -> list[Encoding]:
        """Return the questions as tokens, each behind its text in `front`."""
        texts = front or [""] * len(asked)
        return [
            self.site.task.encode(text + one.prompt, one.answer)
            for text, one in zip(texts, asked, strict=True)
        ]

    def right(self, encodings: Sequence[Encoding], model: Any = None) -> list[bool]:
        """Tell for each question whether a model, or the session's, gives the answer."""
        return self.site.judge_in_full(encodings, model)

    def fits(self, prompt: str, answer: str) -> bool:
        """Tell whether a question can be asked at all."""
        try:
            self.site.task.encode(prompt, answer)
        except RequestError:
            return False
        return True

    def is_wrong(self, asked: Asked) -> bool:
        """Tell whether a question can be asked, and the base gives another answer."""
        is_askable = self.fits(asked.prompt, asked.answer)
        return is_askable and not self.right(self.encoded([asked]))[0]

    def answer(self, probe: Probe) -> str:
        """Return the base's answer to a probe's prompt, of at most as many tokens as the probe has:
        a model that does not end its answers would go on."""
        task = self.site.task
        tokens_max = len(task.encode(probe.prompt, probe.answer).targets)
        tokens = task.answer(self.session.model, task.question(probe.prompt), tokens_max)
        return task.text(tokens).strip()


def examination(session: Session, requests: Sequence[Request], edits: int, probes: int) -> Any:
    """Take the first requests that the base answers wrongly, and the answers that have to stay."""
    judge = Judge(session)
    items: list[StreamItem] = []
    rest: list[Request] = []
    for request in requests:
        asked = Asked(str(request.prompt), request.target_new)
        if len(items) == edits:
            rest.append(request)
        elif judge.is_wrong(asked):
            wordings = [Asked(str(p), request.target_new) for p in request.held_out_rephrases]
            neighbours = tuple(_as_base(judge, request.locality))
            items.append(StreamItem(request, asked, tuple(wordings), neighbours))
    probes_of_base = session.store.revision("base").body["probes"].get("test", [])
    tests = [Asked(str(probe["prompt"]), str(probe["answer"])) for probe in probes_of_base]
    if not tests:
        drawn = random.Random(0).sample(rest, min(probes, len(rest)))
        tests = list(_as_base(judge, [p for r in drawn for p in r.locality[:1]]))
    tests = random.Random(0).sample(tests, min(probes, len(tests)))
    kept = judge.right(judge.encoded(tests))
    return Examination(tuple(items), tuple(t for t, ok in zip(tests, kept, strict=True) if ok))


def _as_base(judge: Judge, probes: Sequence[Probe]) -> Iterator[Asked]:
    """Yield the prompts of probes with the base's answers, as far as these can be asked for
    again."""
    for probe in probes:
        prompt = str(probe.prompt)
        if judge.fits(prompt, probe.answer):
            asked = Asked(prompt, judge.answer(probe))
            if asked.answer and judge.fits(prompt, asked.answer) and not judge.is_wrong(asked):
                yield asked


# --- rows -----------------------------------------------------------------------------------------


class Instead(Protocol):
    """A way to have the corrections answered."""

    def take(self, items: Sequence[StreamItem]) -> Mapping[str, Any]:
        """Take in all corrections so far; return `edit_ms` and `edit_bytes`."""

    def right(self, asked: Sequence[Asked]) -> list[bool]:
        """Tell for each question whether its answer is given."""


class Retrieval:
    """The nearest corrections in front of each question, by a sentence encoder."""

    def __init__(self, judge: Judge, count: int, encoder: SentenceEncoder | None = None) -> None:
        """`encoder` is the memory's own unless it is given."""
        self._judge, self._count = judge, count
        self._encoder = encoder or SentenceEncoder()
        self._lines: list[str] = []
        self._vectors = torch.empty(0, self._encoder.width)

    def take(self, items: Sequence[StreamItem]) -> Mapping[str, Any]:
        """See `Instead.take`: embed what is new."""
        new = items[len(self._lines) :]
        began = time.process_time()
        lines = [LINE.format(prompt=i.edit.prompt, target=i.edit.answer) for i in new]
        vectors = self._encoder.embed([i.edit.prompt for i in new])
        seconds = time.process_time() - began
        self._lines += lines
        self._vectors = torch.cat([self._vectors, vectors])
        size = self._vectors.numel() * 4 + sum(len(line.encode()) for line in self._lines)
        return {
            "edit_ms": 1e3 * seconds / max(1, len(new)),
            "edit_bytes": size / len(self._lines),
        }

    def right(self, asked: Sequence[Asked]) -> list[bool]:
        """See `Instead.right`. A question that has no room for the facts is asked with fewer."""
        queries = self._encoder.embed([one.prompt for one in asked])
        count = min(self._count, len(self._lines))
        nearest = (queries @ self._vectors.T).topk(count, dim=1).indices.flip(1).tolist()
        fronts = [
            self._fitting(one, [self._lines[place] for place in places])
            for one, places in zip(asked, nearest, strict=True)
        ]
        return self._judge.right(self._judge.encoded(asked, fronts))

    def _fitting(self, asked: Asked, lines: list[str]) -> str:
        """Return the facts, furthest first, as many of the nearest as the context has room for."""
        prompt = QUESTION + asked.prompt
        while lines and not self._judge.fits("".join(lines) + prompt, asked.answer):
            lines = lines[1:]
        return "".join(lines) + QUESTION if lines else ""


@dataclass(frozen=True)
class LoraRecipe:
    """The training of an adapter."""

    rank: int = 8
    learning_rate: float = 1e-3
    epochs: int = 40
    replay: bool = False  # as many training probes in each batch


class Lora:
    """An adapter of all linear layers, trained anew on all corrections so far."""

    def __init__(self, judge: Judge, recipe: LoraRecipe) -> None:
        self._judge, self._recipe = judge, recipe
        self._model: Any = None

    def take(self, items: Sequence[StreamItem]) -> Mapping[str, Any]:
        """See `Instead.take`."""
        from peft import LoraConfig, get_peft_model

        began = time.process_time()
        base = copy.deepcopy(self._judge.session.model).float()
        config = LoraConfig(
            r=self._recipe.rank,
            lora_alpha=2 * self._recipe.rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            self._model = get_peft_model(base, config)
        epochs = self._train(items)
        self._model.eval()
        seconds = time.process_time() - began
        size = sum(4 * p.numel() for p in self._model.parameters() if p.requires_grad)
        return {
            "edit_ms": 1e3 * seconds / len(items),
            "edit_bytes": size / len(items),
            "note": f"{epochs} epochs",
        }

    def right(self, asked: Sequence[Asked]) -> list[bool]:
        """See `Instead.right`."""
        return self._judge.right(self._judge.encoded(asked), self._model)

    def _train(self, items: Sequence[StreamItem]) -> int:
        """Train until every prompt is right; return the epochs."""
        judge, draw = self._judge, random.Random(0)
        prompts = judge.encoded([item.edit for item in items])
        texts = [
            *prompts,
            *(
                judge.site.task.encode(wording, item.edit.answer)
                for item in items
                for wording in item.request.rephrases
            ),
        ]
        known = judge.session.run_state.known_answers().training if self._recipe.replay else ()
        adam = torch.optim.AdamW(
            [p for p in self._model.parameters() if p.requires_grad], lr=self._recipe.learning_rate
        )
        for epoch in range(self._recipe.epochs):
            draw.shuffle(texts)
            for start in range(0, len(texts), BATCH):
                batch = texts[start : start + BATCH]
                self._step(adam, [*batch, *draw.sample(known, min(len(batch), len(known)))])
            if all(judge.right(prompts, self._model)):
                return epoch + 1
        return self._recipe.epochs

    def _step(self, adam: torch.optim.Optimizer, batch: Sequence[Encoding]) -> None:
        with torch.enable_grad():
            inputs = self._judge.site.inputs(batch)
            logits, targets = answer_logits(batch, logits_of(self._model, inputs))
            loss: Tensor = torch.nn.functional.cross_entropy(logits, targets)
            adam.zero_grad()
            loss.backward()
            adam.step()


class ByEditor:
    """An editor of cedit, one correction after another, in the session's own history."""

    def __init__(self, judge: Judge, editor: str) -> None:
        self._judge, self._editor = judge, editor
        self._taken = 0
        self._seconds = self._bytes = 0.0

    def take(self, items: Sequence[StreamItem]) -> Mapping[str, Any]:
        """See `Instead.take`."""
        session = self._judge.session
        requests = [item.request for item in items[self._taken :]]
        failed = 0
        began = time.process_time()
        for step in session.apply_requests(requests, self._settings(session)):
            self._bytes += step.patch_bytes
            failed += sum(outcome.outcome == "failed" for outcome in step.outcomes)
        self._seconds += time.process_time() - began
        self._taken = len(items)
        return {
            "edit_ms": 1e3 * self._seconds / len(items),
            "edit_bytes": self._bytes / len(items),
            "note": f"{failed} refused" if failed else None,
        }

    def _settings(self, session: Session) -> ApplySettings:
        return replace(session.settings(chain=(self._editor,)), recheck=Recheck(every=NEVER))

    def right(self, asked: Sequence[Asked]) -> list[bool]:
        """See `Instead.right`."""
        return self._judge.right(self._judge.encoded(asked))


def made(name: str, judge: Judge, options: argparse.Namespace) -> Instead:
    """Return the row of a name."""
    kind, _, count = name.partition("-")
    if kind == "lora":
        recipe = LoraRecipe(options.rank, options.learning_rate, options.epochs, bool(count))
        return Lora(judge, recipe)
    if kind == "retrieval":
        return Retrieval(judge, int(count or 1))
    return ByEditor(judge, name)


def rows_of(
    name: str, judge: Judge, exam: Examination, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yield a row of the table at each mark."""
    instead = made(name, judge, options)
    for mark in sorted({min(mark, len(exam.items)) for mark in (*options.marks, options.edits)}):
        costs = instead.take(exam.items[:mark])
        asked = exam.of(mark)
        began = time.process_time()
        rates = {rate: instead.right(questions) for rate, questions in asked.items() if questions}
        seconds = time.process_time() - began
        yield {
            "row": name,
            "edits": mark,
            **{rate: sum(verdicts) / len(verdicts) for rate, verdicts in rates.items()},
            "question_ms": 1e3 * seconds / sum(len(questions) for questions in asked.values()),
            **costs,
        }


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure all rows, each on a store of its own."""
    rows: list[dict[str, Any]] = []
    exam: Examination | None = None
    for name in options.rows:
        with (
            tempfile.TemporaryDirectory() as folder,
            init(Path(folder) / "store", _new_store(options)) as session,
        ):
            if exam is None:
                requests = list(_requests(options))
                exam = examination(session, requests, options.edits, options.probes)
                tables.note(f"{len(exam.items)} corrections, {len(exam.tests)} probes that stay")
            if not exam.items:
                raise CeditError("The base answers all of the stream rightly: name another stream.")
            for row in rows_of(name, Judge(session), exam, options):
                rows.append(row)
                tables.note(json.dumps(row))
                tables.write_json(options.json, "instead", {"rows": rows})  # a run may break off
    return rows


def _new_store(options: argparse.Namespace) -> NewStore:
    return NewStore(options.model, watch=UNWATCHED if options.unwatched else None)


def _requests(options: argparse.Namespace) -> Iterator[Request]:
    model = embedded(options.model)
    records = data_folder() / "counterfact" / "counterfact-full-format.json"
    source = options.stream or (records if model is None else model.corrections)
    for item in open_stream(str(source)):
        yield from item.requests


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    rows = ("lora", "lora-replay", "retrieval-1", "retrieval-4", "tpatcher")
    made.add_argument("--model", default="atlas", help="a model directory, or atlas")
    made.add_argument("--stream", type=Path, metavar="FILE")
    made.add_argument("--edits", type=int, default=300, metavar="N")
    made.add_argument("--marks", type=_numbers, default=(100, 300), metavar="N,…")
    made.add_argument("--rows", type=lambda text: text.split(","), default=rows, metavar="NAME,…")
    made.add_argument("--unwatched", action="store_true")
    made.add_argument("--epochs", type=int, default=LoraRecipe.epochs, metavar="N")
    made.add_argument("--rank", type=int, default=LoraRecipe.rank, metavar="N")
    made.add_argument("--learning-rate", type=float, default=LoraRecipe.learning_rate, metavar="X")
    made.add_argument("--probes", type=int, default=500, metavar="N")
    made.add_argument("--threads", type=int, default=1, metavar="N")
    made.add_argument("--json", type=Path, metavar="OUT")
    return made


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def main() -> None:
    """Run the benchmark from the command line."""
    options = parser().parse_args()
    options.marks = tuple(mark for mark in options.marks if mark <= options.edits)
    torch.set_num_threads(options.threads)
    rows = run(options)
    tables.show(f"Instead of an editor, on {options.model}", COLUMNS, rows)


if __name__ == "__main__":
    main()
