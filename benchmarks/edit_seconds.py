"""Measures the seconds of an edit on CounterFact and zsRE, for every editor on one machine.

    python -m benchmarks.edit_seconds --model DIR --output DIR [--editors NAME,…] [--edits 10]
        [--data counterfact,zsre] [--joint calinet,memit] [--networks DIR] [--train N] [--epochs N]
        [--settings JSON] [--minutes M] [--watched] [--tokens N] [--threads N] [--json OUT]

A row is an editor on the first records of a data set that the base answers wrongly, one by one, in
a process and a store of its own. The seconds of an edit are those of its step: plan, edit, prove,
commit. The first step has a column of its own, as it reads or computes what an editor needs once;
key statistics are collected before, from `--tokens` of the text that is beside the data. Editors of
`--joint` have a second row, with all edits in one step. An edit that an editor refuses is counted,
with its seconds. Nothing is watched unless `--watched` says so, and no editor is calibrated:
`--settings '{"EDITOR": {…}}'` gives what was found to fit the base. `--minutes` ends a row early.

Editors of trained networks (mend, malmen, ke) use NAME.safetensors from the folder of `--networks`;
`--train N` trains those that are not there, on N other records of each data set. Without a network
their rows are left out. A row that was measured is read from --output, and one that failed is
measured again. The published seconds are of large models on a GPU, from their papers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import tables
from benchmarks.counterfact_model import data_folder
from benchmarks.efficiency import forget_peak, memory_mb
from benchmarks.tables import TextColumn
from continual.choices import EDITORS
from continual.embedded import embedded
from continual.errors import CeditError, RequestError
from continual.gradients.config import GradientConfig
from continual.gradients.teaching import NetworkJob
from continual.gradients.trained import NetworkFile
from continual.gradients.training import NetworkRecipe
from continual.locate_then_edit.config import default_blocks
from continual.new_store import NewStore, init
from continual.readers import counterfact, zsre_mend
from continual.recheck.retention import APPLIED, ATTEMPTED
from continual.requests import Request
from continual.session import Session, open_session
from continual.statistics.texts import TextFiles
from continual.step.pipeline import Step
from continual.step.settings import Recheck
from continual.watch.config import UNWATCHED

TASK = "causal"
DATA: Mapping[str, tuple[str, Callable[[Mapping[str, object]], list[Request]]]] = {
    "counterfact": ("counterfact/counterfact-full-format.json", counterfact.read),
    "zsre": ("zsre/zsre_mend_train_1k.json", zsre_mend.read),
}
TEXT = "text/simplewiki.jsonl"
PUBLISHED: Mapping[str, tuple[float, float]] = {  # on CounterFact, on zsRE
    "tpatcher": (1864.74, 1825.15),
    "mend": (0.51, 0.52),
    "calinet": (1.88, 1.93),
    "ke": (2.20, 2.21),
    "serac": (5.31, 6.51),
    "ft-l": (35.94, 58.86),
    "memit": (143.2, 145.6),
    "rome": (147.2, 183.0),
    "kn": (225.43, 173.57),
}
FEWER = {"ft-all": 3, "ft-all-kl": 3}
"""Edits of editors that leave a patch as large as the model."""
WITH_NETWORK = ("mend", "malmen", "ke")
WITH_STATISTICS = frozenset({"memit", "emmet", "alphaedit", "rome"})
PROBES = 200  # training probes: a memory to stay silent on
NEVER = 1_000_000  # steps
COLUMNS = (
    TextColumn("data", "data"),
    TextColumn("editor", "editor"),
    TextColumn("in a step", "batch_size", "d"),
    TextColumn("edits", "edits", "d"),
    TextColumn("refused", "refused", "d"),
    TextColumn("first step, s", "first_s", ".2f"),
    TextColumn("an edit, s", "edit_s", ".3f"),
    TextColumn("median, s", "median_s", ".3f"),
    TextColumn("published, s", "published_s", ".2f"),
    TextColumn("peak, MB", "peak_mb", ",.0f"),
    TextColumn("patch, bytes an edit", "patch_bytes", ",.0f"),
    TextColumn("note", "note"),
)


@dataclass(frozen=True)
class SecondsCase:
    """One row: an editor on a data set, so many requests in a step."""

    data: str
    editor: str
    batch_size: int
    edits: int
    table: Mapping[str, Any]  # of the editor's settings
    minutes: float | None = None

    @property
    def name(self) -> str:
        """The name of its files."""
        joint = f".{self.batch_size}" if self.batch_size > 1 else ""
        return f"{self.data}.{self.editor}{joint}"

    @property
    def identity(self) -> dict[str, Any]:
        """The entries that a measured row shares with its case."""
        return {
            "data": self.data,
            "editor": self.editor,
            "batch_size": self.batch_size,
            "asked": self.edits,
            "settings": dict(self.table),
        }

    def run(self, output: Path) -> dict[str, Any]:
        """Measure the case in this process, in a copy of the output's store; return its row."""
        place = output / "stores" / self.name
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(output / "store", place)
        try:
            with open_session(place) as session:
                return {**self.identity, **self._measured(session, output)}
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _measured(self, session: Session, output: Path) -> dict[str, Any]:
        tables_of = {**session.settings().editors, self.editor: dict(self.table)}
        settings = session.settings(
            chain=(self.editor,),
            editors=tables_of,
            batch_size=self.batch_size,
            recheck=Recheck(every=NEVER),
        )
        requests = read_stream(output, self.data)[: self.edits]
        forget_peak()
        steps = list(self._steps(session.apply_requests(requests, settings)))
        return {**summary(steps), "peak_mb": memory_mb("VmHWM")}

    def _steps(self, steps: Iterable[Step]) -> Iterator[Step]:
        """Yield steps until the minutes are over."""
        began = time.perf_counter()
        for step in steps:
            yield step
            if self.minutes is not None and time.perf_counter() - began > 60 * self.minutes:
                return


def summary(steps: Sequence[Step]) -> dict[str, Any]:
    """Return the seconds, refusals and bytes of some steps; the first step counts by itself where
    there are others."""
    outcomes = [o for step in steps for o in step.outcomes if o.outcome in ATTEMPTED]
    refusals = [o for o in outcomes if o.outcome != APPLIED]
    later = steps[1:] or steps
    seconds = [step.edit_s / len(step.outcomes) for step in later for _ in step.outcomes]
    row: dict[str, Any] = {
        "edits": len(outcomes),
        "refused": len(refusals),
        "first_s": steps[0].edit_s,
        "edit_s": statistics.fmean(seconds),
        "median_s": statistics.median(seconds),
        "patch_bytes": sum(s.patch_bytes for s in steps) / max(1, len(outcomes) - len(refusals)),
    }
    if refusals:
        row["reason"] = refusals[0].reason
    return row


# -- what all rows share


@dataclass(frozen=True)
class SharedInputs:
    """The arguments that all rows of an output share."""

    model: str
    data: tuple[str, ...]
    edits: int
    watched: bool
    tokens: int
    train: int  # records of each data set that networks are trained on

    def prepare(self, output: Path, editors: Sequence[str]) -> None:
        """Make the store that every row copies, with its statistics, and the streams. Raises
        CeditError for an output of other arguments."""
        output.mkdir(parents=True, exist_ok=True)
        self._require_same(output)
        if not (output / "store").exists():
            self._make_store(output)
        with open_session(output / "store", writable=False, at="base") as session:
            for name in self.data:
                self._write_streams(session, output, name)
            if WITH_STATISTICS & set(editors):
                self._collect(session)

    def _require_same(self, output: Path) -> None:
        path = output / "shared.json"
        own = {
            "model": (embedded(self.model) is None and str(Path(self.model).absolute())) or "atlas",
            "edits": self.edits,
            "watched": self.watched,
        }
        if not path.exists():
            tables.write_whole(path, own)
        if (other := json.loads(path.read_text(encoding="utf-8"))) != own:
            raise CeditError(
                f"The folder {output} has rows of {json.dumps(other)}, and these are of "
                f"{json.dumps(own)}: name another --output, or remove it."
            )

    def _make_store(self, output: Path) -> None:
        probes = output / "train_probes.jsonl"
        records = records_of(self.data[0])[-PROBES:]
        lines = [{"prompt": r.prompt, "answer": r.target_old} for r in records if r.target_old]
        probes.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        new = NewStore(
            self.model,
            task={"name": TASK} if embedded(self.model) is None else None,
            train_probes=probes,
            test_probes=probes,
            watch=None if self.watched else UNWATCHED,
            calibration={},
        )
        init(output / "store", new).close()

    def _write_streams(self, session: Session, output: Path, name: str) -> None:
        """Write the first records that the base answers wrongly, and others to train on."""
        path = stream_path(output, name)
        if path.exists():
            return
        wrong, rest = [], []
        for request in records_of(name)[:-PROBES]:
            if len(wrong) == self.edits:
                rest.append(request)
            elif not is_right(session, request):
                wrong.append(request)
        bare = [r.model_copy(update={"locality": (), "portability": ()}) for r in wrong]
        write_requests(stream_path(output, f"{name}-train"), rest[: self.train])
        write_requests(path, bare)

    def _collect(self, session: Session) -> None:
        """Collect the key statistics of the blocks that MEMIT's family edits, unless they are
        there."""
        text = data_folder() / TEXT
        blocks = default_blocks(session.edited.anatomy.block_count)
        if text.exists() and embedded(self.model) is None:
            missing = [block for block in blocks if not session.statistics.has(block)]
            steps = session.statistics.collect(TextFiles((text,)), missing, tokens_max=self.tokens)
            for step in steps if missing else ():
                tables.note(f"key statistics: {step.tokens:,.0f} tokens")
        session.statistics.require(blocks)


def records_of(name: str) -> list[Request]:
    """Return the requests of a data set, in their order, each prompt once."""
    file, read = DATA[name]
    requests: dict[str, Request] = {}
    for record in json.loads((data_folder() / file).read_text(encoding="utf-8")):
        try:
            (request,) = read(record)
        except RequestError:
            continue
        requests.setdefault(str(request.prompt), request)
    return list(requests.values())


def is_right(session: Session, request: Request) -> bool:
    """Tell whether the base answers a request with its target already; True also for one that
    cannot be asked."""
    try:
        encoding = session.task.encode(request.prompt, request.target_new)
    except RequestError:
        return True
    return session.site.judge_in_full([encoding])[0]


def stream_path(output: Path, name: str) -> Path:
    """Return the file of a data set's requests."""
    return output / f"{name}.jsonl"


def write_requests(path: Path, requests: Sequence[Request]) -> None:
    """Write requests as JSON Lines."""
    lines = [json.dumps(request.to_json(), ensure_ascii=False) + "\n" for request in requests]
    path.write_text("".join(lines), encoding="utf-8")


def read_stream(output: Path, name: str) -> list[Request]:
    """Read the requests that `write_requests` wrote for a data set."""
    lines = stream_path(output, name).read_text(encoding="utf-8").splitlines()
    return [Request.from_json(json.loads(line)) for line in lines]


# -- networks


def network_tables(
    output: Path, folder: Path, editors: Sequence[str], data: Sequence[str], train: int, epochs: int
) -> dict[str, dict[str, str]]:
    """Return the settings that name a network, for each editor that has one in the folder; train
    those that are missing if there are records to train on."""
    found = {}
    for editor in [name for name in editors if name in WITH_NETWORK]:
        path = folder / f"{editor}.safetensors"
        if not path.exists() and train:
            _train(output, path, editor, data, epochs)
        if path.exists():
            file = NetworkFile.of(path.absolute())
            found[editor] = {"network": str(file.path), "network_digest": file.digest}
    return found


def _train(output: Path, path: Path, editor: str, data: Sequence[str], epochs: int) -> None:
    kind = EDITORS[editor].load()
    job = NetworkJob(
        kind.network_type, kind.reads_whole_texts, GradientConfig(), NetworkRecipe(epochs=epochs)
    )
    requests = [r for name in data for r in read_stream(output, f"{name}-train")]
    with open_session(output / "store", writable=False, at="base") as session:
        known = session.run_state.known_answers().training
        began = time.perf_counter()
        for epoch in job.run(session.site, requests, known, path):
            tables.note(
                f"{editor}: epoch {epoch.number}, loss {epoch.loss:.3f}, in scope "
                f"{epoch.inside:.2f}, {time.perf_counter() - began:.0f} s"
            )


# -- rows


def cases(options: argparse.Namespace, networks: Mapping[str, Mapping[str, str]]) -> list[Any]:
    """Return the case of each row, or the row itself for an editor without its network."""
    result: list[Any] = []
    for data in options.data:
        for editor in options.editors:
            table = {**networks.get(editor, {}), **options.settings.get(editor, {})}
            edits = min(options.edits, FEWER.get(editor, options.edits))
            if editor in WITH_NETWORK and "network" not in table:
                note = "no network: give --networks, or --train"
                result.append({"data": data, "editor": editor, "note": note})
                continue
            sizes = (1, edits) if editor in options.joint and edits > 1 else (1,)
            result += [
                SecondsCase(data, editor, size, edits, table, options.minutes) for size in sizes
            ]
    return result


def measured(case: SecondsCase, output: Path) -> dict[str, Any]:
    """Return a case's row from its file, or measured in a process of its own."""
    path = output / "rows" / f"{case.name}.json"
    row: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if case.identity.items() <= row.items() and "note" not in row:
        return row
    tables.note(f"{case.name}: {case.edits} edits")
    given = {**case.identity, "minutes": case.minutes}
    command = [sys.executable, "-m", "benchmarks.edit_seconds", "--model", "-"]
    command += ["--output", str(output), "--threads", str(torch.get_num_threads())]
    command += ["--case", json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        row = json.loads(done.stdout.splitlines()[-1])
    else:
        last = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        row = {**case.identity, "note": last[-1][:160]}
    tables.write_whole(path, row)
    return row


def beside_published(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row with the published seconds of its editor, if there are any."""
    seconds = PUBLISHED.get(str(row["editor"]))
    place = list(DATA).index(str(row["data"]))
    return {**row, "published_s": None if seconds is None else seconds[place]}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--model", required=True, help="a model directory, or atlas")
    made.add_argument("--output", type=Path, required=True, metavar="DIR")
    made.add_argument("--editors", type=_names, default=tuple(EDITORS), metavar="NAME,…")
    made.add_argument("--edits", type=int, default=10, metavar="N")
    made.add_argument("--data", type=_names, default=tuple(DATA), metavar="NAME,…")
    made.add_argument("--joint", type=_names, default=("calinet", "memit"), metavar="NAME,…")
    made.add_argument("--networks", type=Path, metavar="DIR")
    made.add_argument("--train", type=int, default=0, metavar="N")
    made.add_argument("--epochs", type=int, default=3, metavar="N")
    made.add_argument("--settings", type=json.loads, default={}, metavar="JSON")
    made.add_argument("--minutes", type=float, metavar="M")
    made.add_argument("--watched", action="store_true")
    made.add_argument("--tokens", type=int, default=20_000, metavar="N")
    made.add_argument("--threads", type=int, default=1, metavar="N")
    made.add_argument("--json", type=Path, metavar="OUT")
    made.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    return made


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure what is not measured yet, and return all rows."""
    if unknown := {*options.editors} - {*EDITORS} | {*options.data} - {*DATA}:
        raise CeditError(f"There is no editor or data set {', '.join(sorted(unknown))}.")
    shared = SharedInputs(
        options.model,
        options.data,
        options.edits,
        options.watched,
        options.tokens,
        options.train,
    )
    shared.prepare(options.output, options.editors)
    networks = network_tables(
        options.output,
        options.networks or options.output / "networks",
        options.editors,
        options.data,
        options.train,
        options.epochs,
    )
    rows: list[dict[str, Any]] = []
    for case in cases(options, networks):
        row = measured(case, options.output) if isinstance(case, SecondsCase) else case
        rows.append(beside_published(row))
        tables.write_json(options.json, "edit_seconds", {"rows": rows})  # a run may break off
    return rows


def main() -> int:
    """Run the benchmark from the command line. A failure is one line on standard error."""
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    try:
        if options.case:
            given = dict(options.case)
            case = SecondsCase(
                *(given[key] for key in ("data", "editor", "batch_size", "asked", "settings")),
                given["minutes"],
            )
            print(json.dumps(case.run(options.output)))
            return 0
        rows = run(options)
    except CeditError as error:
        print(f"edit_seconds: {error}", file=sys.stderr)
        return 1
    tables.show("Seconds of an edit; published on a GPU, for larger models", COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
