"""MMEdit's protocol (Cheng et al., EMNLP 2023): single edits of a model that sees, its metrics.

    python -m benchmarks.mmedit RECORDS --model DIR [--pictures DIR] [--editor tpatcher,ft-vision]
    python -m benchmarks.mmedit --sequential [RECORDS] [--model DIR] [--count N]

Each record is edited alone, on a store of its own kind: it is applied, measured, and rolled back.
Beside MMEdit's metrics, which are shares of tokens under teacher forcing, stand exact matches of
free greedy decoding, and three controls: the question on another record's picture, on a plain one,
and without a picture. Prints a table; `--json FILE` writes the numbers.

With `--sequential` the records are edited one after another, and nothing is taken back: SR, GR, ER,
TrainR and TestR after some of the steps, as in the other protocols, and the controls at the end.
Without RECORDS they are the gallery's corrections, with its probes, on its model unless another
one is named.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from continual.embedded import GALLERY
from continual.gallery.streams import ALIKE, ANSWERS, OTHER, PROBES, SAME, write
from continual.history.inspection import rates_at
from continual.memory.answers import AnswerJudge
from continual.new_store import NewStore, init
from continual.picture_marks import digests_in, substituted
from continual.pictures.album import album_of
from continual.readers.mmedit import PICTURE
from continual.requests import Probe, Request
from continual.session import Session
from continual.streams import open_stream
from continual.tasks import Encoding

TEXT_RANKS, PICTURE_RANKS = 1, 10
"""The likeliest tokens that are compared at each position: of text locality, picture locality."""
TEXT_COLUMN, PICTURE_COLUMN = "T-Loc", "M-Loc"
METRICS = (
    "Rel", "T-Gen", "M-Gen", "T-Loc", "M-Loc", "Rel exact", "T-Gen exact", "M-Gen exact",
    "M-Loc exact", "other picture", "plain picture", "no picture",
)  # fmt: skip
RATES = ("SR", "GR", "ER", "TrainR", "TestR", "Locality")
PUBLISHED = {  # E-VQA, on BLIP-2 OPT: Rel, T-Gen, T-Loc, M-Loc
    "ft-vision": (60.56, 49.79, 100.0, 8.47),
    "ft-last": (57.66, 47.70, 21.67, 3.06),
    "ke": (85.28, 84.23, 90.31, 52.48),
    "ike": (99.71, 99.62, 47.74, 2.53),
    "serac": (91.20, 91.40, 100.0, 0.33),
    "mend": (92.60, 92.20, 96.07, 65.15),
}


# -- the metrics


def token_accuracy(logits: Tensor, targets: Tensor) -> float:
    """Return the share of target tokens [n] that lead in logits [n, vocab]."""
    return float((logits.argmax(-1) == targets).float().mean())


def ranked(logits: Tensor, ranks: int) -> Tensor:
    """Return the ids of the likeliest tokens [T, ranks] at each position of logits [T, vocab]."""
    return logits.topk(ranks, dim=-1).indices


def locality(before: Tensor, after: Tensor) -> float:
    """Return the share of equal ids, rank by rank, in [T, ranks] before and after an edit. Of
    unlike lengths the last positions are compared."""
    length = min(len(before), len(after))
    return float((before[len(before) - length :] == after[len(after) - length :]).float().mean())


# -- measuring one edit


@dataclass(frozen=True)
class MeasuredModel:
    """The edited model of a session, as it answers: by a record where an input is about one."""

    session: Session

    @torch.no_grad()
    def logits(self, encoding: Encoding) -> Tensor:
        """Return the logits [T, vocab] of all positions of a probe with its answer."""
        answers = AnswerJudge(self.session.site)
        (route,) = answers.routes([encoding])
        read = None if route is None else answers.read(route.place, encoding)
        if read is None:
            return self._logits(self.session.edited.model, encoding)
        with answers.recall.reading(read.method) as model:
            return self._logits(model, read.encoding())

    def _logits(self, model: Any, encoding: Encoding) -> Tensor:
        inputs = self.session.site.inputs([encoding])
        logits: Tensor = model(**inputs, use_cache=False).logits[0]
        return logits.float()

    def accuracy(self, prompt: str, target: str) -> float:
        """Return the share of a target's tokens that lead."""
        encoding = self.session.task.encode(prompt, target)
        logits = self.logits(encoding)[-len(encoding.targets) :]
        return token_accuracy(logits, torch.tensor(encoding.targets, device=logits.device))

    def ids(self, probe: Probe, ranks: int) -> Tensor:
        """Return the likeliest ids at all positions of a probe with its answer."""
        return ranked(self.logits(self.session.task.encode(probe.prompt, probe.answer)), ranks)

    def says(self, prompt: str, answer: str) -> str:
        """Return the answer of free greedy decoding, of as many tokens as an answer to this prompt:
        a model without an end of its answers would go on."""
        count = len(self.session.task.encode(prompt, answer).targets)
        return self.session.ask(prompt, count).strip()


def measure(session: Session, request: Request, other: str | None, editor: str) -> dict[str, float]:
    """Edit one request, measure it, and go back; `other` is another record's picture."""
    model, prompt = MeasuredModel(session), str(request.prompt)
    probes = dict(_columns(request))
    controls = _controls(session, prompt, other)
    ranks = {name: PICTURE_RANKS if name == PICTURE_COLUMN else TEXT_RANKS for name in probes}
    before = {name: model.ids(probe, ranks[name]) for name, probe in probes.items()}
    target, seen = request.target_new, probes.get(PICTURE_COLUMN)
    said = {name: model.says(text, target) for name, text in controls.items()}
    seen_said = "" if seen is None else model.says(str(seen.prompt), seen.answer)
    settings = session.settings(chain=(editor,), force=True)
    list(session.apply_requests([replaced_probes(request)], settings))
    result = dict(_success(model, request))
    for name, probe in probes.items():
        result[name] = locality(before[name], model.ids(probe, ranks[name]))
    if seen is not None:
        result["M-Loc exact"] = float(model.says(str(seen.prompt), seen.answer) == seen_said)
    result |= {n: float(model.says(text, target) == said[n]) for n, text in controls.items()}
    session.rollback("base")
    return result


def _columns(request: Request) -> Iterator[tuple[str, Probe]]:
    """Yield MMEdit's two locality probes, by their columns. The gallery's other probes, of the same
    question or the same picture, are not among MMEdit's."""
    for probe in request.locality:
        if probe.name not in (ALIKE, SAME):
            yield PICTURE_COLUMN if probe.name in (PICTURE, OTHER) else TEXT_COLUMN, probe


def replaced_probes(request: Request) -> Request:
    """Return the request alone: what measures it is not told to the editor."""
    return request.model_copy(update={"locality": (), "held_out_rephrases": ()})


def _success(model: MeasuredModel, request: Request) -> Iterator[tuple[str, float]]:
    """Yield reliability and generality, by tokens and exactly."""
    own = digests_in(str(request.prompt))
    prompts = {"Rel": str(request.prompt)}
    for wording in map(str, request.held_out_rephrases):
        prompts["T-Gen" if digests_in(wording) == own else "M-Gen"] = wording
    for name, prompt in prompts.items():
        yield name, model.accuracy(prompt, request.target_new)
        said = model.says(prompt, request.target_new)
        yield f"{name} exact", float(said == request.target_new.strip())


def _controls(session: Session, prompt: str, other: str | None) -> dict[str, str]:
    """Return the same question on another picture, on a plain one, and without any."""
    album = album_of(session.task)
    assert album is not None
    controls = {"plain picture": substituted(prompt, [album.plain()])}
    controls["no picture"] = substituted(prompt, [])
    return (
        controls if other is None else {"other picture": substituted(prompt, [other]), **controls}
    )


# -- a run along a stream


@dataclass(frozen=True)
class Point:
    """The metrics of a history after so many corrections."""

    corrections: int
    rates: Mapping[str, float | None]


def along(session: Session, requests: Sequence[Request], editor: str) -> Iterator[Point]:
    """Apply the requests one after another; yield the metrics after 1, 2, 5, 10, … of them, and at
    the end."""
    settings = session.settings(chain=(editor,))
    for number, step in enumerate(session.apply_requests(requests, settings), start=1):
        is_round = str(number)[0] in "125" and not str(number)[1:].strip("0")
        if is_round or number == len(requests):
            rates = rates_at(session.store, step.revision)
            yield Point(number, {rate: rates[rate] for rate in RATES})


def controlled(session: Session, requests: Sequence[Request], editor: str) -> dict[str, Any]:
    """Apply the requests along a stream, and ask every control before and after: the share of
    answers that stay, and that are the new target."""
    model = MeasuredModel(session)
    asked = [
        (name, prompt, request.target_new)
        for place, request in enumerate(requests)
        for name, prompt in _controls(
            session, str(request.prompt), next(iter(_pictures(requests[place - 1])), None)
        ).items()
    ]
    before = [model.says(prompt, target) for _, prompt, target in asked]
    points = []
    for point in along(session, requests, editor):
        points.append(point)
        print(line_of(point), flush=True)
    shares: defaultdict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for (name, prompt, target), old in zip(asked, before, strict=True):
        new = model.says(prompt, target)
        shares[name].append((new == old, new == target.strip()))
    controls = {
        name: {"same": _mean(s for s, _ in pairs), "target": _mean(t for _, t in pairs)}
        for name, pairs in shares.items()
    }
    for name, pair in controls.items():
        print(f"{name:14s} as before {pair['same']:.3f}, the new answer {pair['target']:.3f}")
    return {
        "steps": [{"corrections": p.corrections, **p.rates} for p in points],
        "controls": controls,
    }


def line_of(point: Point) -> str:
    """Return a row of the table of steps."""
    cells = (f"{'–' if rate is None else f'{rate:.3f}':>8s}" for rate in point.rates.values())
    return f"{point.corrections:8d}" + "".join(cells)


def _mean(values: Iterable[bool]) -> float:
    outcomes = list(values)
    return sum(outcomes) / len(outcomes)


def _pictures(request: Request) -> tuple[str, ...]:
    return digests_in(str(request.prompt))


# -- a run of single edits


def run(session: Session, requests: Sequence[Request], editor: str) -> dict[str, float]:
    """Return the means over all requests, each edited alone."""
    shares: defaultdict[str, list[float]] = defaultdict(list)
    for place, request in enumerate(requests):
        other = _pictures(requests[place - 1]) if len(requests) > 1 else ()
        for name, share in measure(session, request, next(iter(other), None), editor).items():
            shares[name].append(share)
    return {name: sum(values) / len(values) for name, values in shares.items()}


def table(results: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yield the lines of the table: percentages, and the published ones where there are any."""
    yield f"{'editor':12s} " + " ".join(f"{name:>13s}" for name in METRICS)
    for editor, shares in results.items():
        cells = (f"{100 * shares[n]:13.2f}" if n in shares else " " * 13 for n in METRICS)
        yield f"{editor:12s} " + " ".join(cells)
    for editor in results:
        if editor in PUBLISHED:
            rel, text_generality, text_locality, picture_locality = PUBLISHED[editor]
            yield (
                f"{editor}, published (E-VQA, BLIP-2 OPT): Rel {rel}, T-Gen {text_generality}, "
                f"T-Loc {text_locality}, M-Loc {picture_locality}"
            )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("records", type=Path, nargs="?", help="default: the gallery's corrections")
    parser.add_argument("--model", type=Path, help="default: the gallery's, with its corrections")
    parser.add_argument("--pictures", type=Path, help="their folder; default: the records' own")
    parser.add_argument("--editor", default="tpatcher", help="one or several, with commas")
    parser.add_argument("--count", type=int, default=100, metavar="N")
    parser.add_argument("--sequential", action="store_true", help="one after another")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        new = _new_store(parser, options, Path(folder))
        for editor in options.editor.split(","):
            with init(Path(folder) / editor, new) as session:
                requests = list(islice(read(session, options), options.count))
                started = time.perf_counter()
                if options.sequential:
                    print(f"{editor:8s}" + "".join(f"{rate:>8s}" for rate in RATES))
                    results[editor] = controlled(session, requests, editor)
                else:
                    results[editor] = run(session, requests, editor)
                results[editor]["seconds"] = time.perf_counter() - started
    if not options.sequential:
        for line in table(results):
            print(line)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


def _new_store(
    parser: argparse.ArgumentParser, options: argparse.Namespace, folder: Path
) -> NewStore:
    """Return the store to make; without records the gallery's are drawn into a folder."""
    model = options.model or (GALLERY.name if GALLERY.is_here else None)
    if model is None:
        parser.error(f"name a --model; the gallery's is trained by: {GALLERY.training}")
    if options.records is not None:
        return NewStore(str(model), task={"name": "multimodal"})
    write(folder / "gallery", count=options.count)
    options.records = folder / "gallery" / ANSWERS
    train, test = (folder / "gallery" / PROBES[name] for name in ("train", "test"))
    return NewStore(str(model), task=GALLERY.task, train_probes=train, test_probes=test)


def read(session: Session, options: argparse.Namespace) -> Iterator[Request]:
    """Yield the records that can be read, with their pictures."""
    stream = open_stream(str(options.records))
    border = session.picture_border(options.pictures or stream.folder)
    for item in replace(stream, pictures=border):
        yield from item.requests


if __name__ == "__main__":
    main()
