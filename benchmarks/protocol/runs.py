"""The runs: each fold's stream through each editor, in a store of its own, measured at every step.

    OUTPUT/protocol.json                   the setting; another setting needs another folder
    OUTPUT/train.jsonl, test.jsonl         the probes of TrainR and TestR
    OUTPUT/fold-0.jsonl, …                 the streams
    OUTPUT/stores/fold-0/EDITOR/           the store of a run
    OUTPUT/stores/fold-0/EDITOR.seconds    the seconds of its steps
    OUTPUT/runs/fold-0.EDITOR.json         the result of a finished run
    OUTPUT/networks/EDITOR.safetensors     the network of mend, malmen or ke

A finished run is not run again; an interrupted one goes on in its store, which knows how far its
stream was read. The rows of a result are read from the history, so they are whole after any
interruption; only the seconds are kept beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.protocol.editor_networks import WITH_NETWORK, network_table
from benchmarks.protocol.settings import TaskSetting
from continual.editors.chains import new_tables, require_edits
from continual.errors import CeditError
from continual.execution import Executor
from continual.execution.local import LOCAL
from continual.new_store import NewStore, init
from continual.recheck.retention import ATTEMPTED
from continual.session import Session, open_session
from continual.step.pipeline import Step
from continual.streams import open_stream

RATES = ("SR", "GR", "ER", "TrainR", "TestR")
NOTED_EVERY = 25  # edits
NETWORK_LINES = ("network", "network_digest")  # of an editor's settings; no row is named by them


class ProtocolError(CeditError):
    """The protocol cannot be run as asked."""


@dataclass(frozen=True)
class RunPlan:
    """The editors, folds and edits of a setting's runs."""

    editors: tuple[str, ...]
    folds: int
    edits: int  # attempted in each fold, at most
    seed: int
    train_probes: int = 40_000  # the paper's memory; at most all of D_train
    held_out: str = "test"
    """The probes of TestR: `test`, or `validation` to choose settings by.

    With `validation` the streams run from their ends, so that their edits differ from a test's.
    """
    editor_tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    network_requests: int = 300  # examples of D_train that networks of editors are trained on
    network_epochs: int = 8


@dataclass(frozen=True)
class FoldRun:
    """One fold by one editor, as its file records it."""

    fold: int
    editor: str
    exhausted: bool  # the stream came to its end
    base: Mapping[str, Any]  # right and asked of the train and test probes before the first edit
    rows: tuple[Mapping[str, Any], ...]  # after each attempted edit
    settings: Mapping[str, Any]

    @property
    def edits(self) -> int:
        """The number of attempted edits."""
        return len(self.rows)

    @property
    def label(self) -> str:
        """The editor, with the settings in which it differs from its defaults."""
        shown = {n: v for n, v in self.settings.items() if n not in NETWORK_LINES}
        return " ".join([self.editor, *(f"{name}={v}" for name, v in shown.items())])


class ProtocolRuns:
    """A setting's runs in an output folder.

    Raises ProtocolError if the folder has another setting's runs.
    """

    def __init__(self, setting: TaskSetting, plan: RunPlan, output: Path) -> None:
        self.setting, self.plan, self.output = setting, plan, output
        self.refused: dict[str, str] = {}
        """The reason of each editor that cannot edit the model."""
        output.mkdir(parents=True, exist_ok=True)
        self._require_same()
        self._write_inputs()

    def run(self, executor: Executor = LOCAL) -> list[FoldRun]:
        """Return all runs; finished ones come from their files. An editor that cannot edit the
        model has none, and its reason is in `refused`. An executor's workers make some of the runs
        side by side, each in its own store."""
        places = [(fold, e) for fold in range(self.plan.folds) for e in self.plan.editors]
        runs: list[FoldRun] = []
        attempts = executor.map(self._attempted, places)
        for (_, editor), attempt in zip(places, attempts, strict=True):
            if isinstance(attempt, FoldRun):
                runs.append(attempt)
            elif editor not in self.refused:
                self.refused[editor] = attempt
                tables.note(f"{editor} is left out: {attempt}")
        return runs

    def _attempted(self, place: tuple[int, str]) -> FoldRun | str:
        """Return a run; the reason if its editor cannot edit the model."""
        fold, editor = place
        if editor in self.refused:
            return self.refused[editor]
        try:
            return self._finished(fold, editor) or self._made(fold, editor)
        except ProtocolError:
            raise
        except CeditError as error:
            return str(error)

    def beside(self, folders: Iterable[Path], own: Sequence[FoldRun] = ()) -> list[FoldRun]:
        """Return the finished runs of other outputs on the same folds, for editors without `own`
        runs.

        The other outputs may have used another number of training probes. Raises ProtocolError if a
        folder has no such runs.
        """
        labels = {run.label for run in own}
        found = []
        for folder in folders:
            self._require_comparable(folder)
            paths = sorted(folder.glob("runs/fold-*.json"))
            if not paths:
                raise ProtocolError(f"The folder {folder} has no finished run: run it first.")
            found += [_read(path) for path in paths]
        return [run for run in found if run.label not in labels]

    # -- the folder

    @property
    def _identity(self) -> dict[str, Any]:
        """The settings that all runs of a folder share."""
        return {
            "task": self.setting.task,
            "architecture": self.setting.architecture,
            "setting": self.setting.digest,
            "seed": self.plan.seed,
            "folds": self.plan.folds,
            "train_probes": self.plan.train_probes,
            "held_out": self.plan.held_out,
        }

    def _require_same(self) -> None:
        wanted, path = self._identity, self.output / "protocol.json"
        if not path.exists():
            _write(path, json.dumps(wanted, indent=2) + "\n")
        if other := _differing(wanted, path):
            raise ProtocolError(
                f"The folder {self.output} has runs with other {', '.join(other)}: "
                "name another --output, or remove it."
            )

    def _require_comparable(self, folder: Path) -> None:
        path = folder / "protocol.json"
        if not path.exists():
            raise ProtocolError(f"{folder} is no output of the protocol: it has no {path.name}.")
        wanted = {name: v for name, v in self._identity.items() if name != "train_probes"}
        if other := _differing(wanted, path):
            raise ProtocolError(
                f"The folder {folder} has runs with other {', '.join(other)}, which cannot stand "
                "in one table with these: name another --beside, or leave it out."
            )

    def _write_inputs(self) -> None:
        splits, plan = self.setting.splits, self.plan
        sample = splits.train_sample(plan.train_probes, plan.seed)
        self._write_lines("train.jsonl", (example.probe() for example in sample))
        held_out = splits.test if plan.held_out == "test" else splits.validation
        self._write_lines("test.jsonl", (example.probe() for example in held_out))
        for fold, examples in enumerate(splits.folds(plan.folds, plan.seed)):
            stream = examples if plan.held_out == "test" else examples[::-1]
            self._write_lines(f"fold-{fold}.jsonl", (example.request() for example in stream))

    def _write_lines(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        path = self.output / name
        if not path.exists():
            _write(path, "".join(json.dumps(record) + "\n" for record in records))

    def _result(self, fold: int, editor: str) -> Path:
        return self.output / "runs" / f"fold-{fold}.{editor}.json"

    # -- one run

    def _finished(self, fold: int, editor: str) -> FoldRun | None:
        """Return the run if its file has as many edits as the plan asks for."""
        path = self._result(fold, editor)
        if not path.exists():
            return None
        run = _read(path)
        self._require_settings(path, editor, run.settings, self._table(editor))
        return run if run.exhausted or run.edits >= self.plan.edits else None

    def _table(self, editor: str) -> dict[str, Any]:
        """Return the editor's table as the plan has it, with its network trained on D_train if it
        needs one and none is given."""
        table = dict(self.plan.editor_tables.get(editor, {}))
        if editor in WITH_NETWORK and "network" not in table:
            table |= network_table(
                self.setting,
                editor,
                self.output / "networks",
                self.plan.network_requests,
                self.plan.network_epochs,
                self.plan.seed,
            )
        return table

    def _whole_table(self, editor: str) -> Mapping[str, Any]:
        """Return the editor's table with the entries that a new store adds."""
        task = str(self.setting.engine_task["name"])
        return new_tables({editor: self._table(editor)}, task)[editor]

    def _require_settings(
        self,
        where: Path,
        editor: str,
        found: Mapping[str, Any],
        wanted: Mapping[str, Any],
    ) -> None:
        if found != wanted:
            raise ProtocolError(
                f"{where} was made with other settings of {editor}: {json.dumps(found)}. "
                "Name another --output, or remove the run's store and result."
            )

    def _made(self, fold: int, editor: str) -> FoldRun:
        require_edits(editor, str(self.setting.engine_task["name"]))
        place = self.output / "stores" / f"fold-{fold}" / editor
        place.parent.mkdir(parents=True, exist_ok=True)
        with self._session(place, editor) as session:
            exhausted = self._apply(session, fold, editor, place)
            run = FoldRun(
                fold,
                editor,
                exhausted,
                base=(session.store.ledger(0) or {}).get("base", {}),
                rows=tuple(rows_of(session, _seconds(place))),
                settings=self._table(editor),
            )
        tables.write_json(self._result(fold, editor), "protocol", {"run": asdict(run)})
        return run

    def _session(self, place: Path, editor: str) -> Session:
        if place.exists():
            session = open_session(place)
            own = session.store.settings.get("editor", {}).get(editor, {})
            self._require_settings(place, editor, own, self._whole_table(editor))
            return session
        new = NewStore(
            str(self.setting.model),
            task=self.setting.engine_task,
            train_probes=self.output / "train.jsonl",
            test_probes=self.output / "test.jsonl",
            seed=self.plan.seed,
            editors={editor: self._table(editor)},
        )
        return init(place, new)

    def _apply(self, session: Session, fold: int, editor: str, place: Path) -> bool:
        """Take steps of one request each until the planned number of edits is attempted.

        Returns True if the stream ended before.
        """
        attempted = session.run_state.retention.attempts.total
        settings = session.settings(chain=(editor,))
        steps = session.steps(open_stream(str(self.output / f"fold-{fold}.jsonl")), settings)
        with place.with_suffix(".seconds").open("a", encoding="utf-8") as seconds:
            while attempted < self.plan.edits:
                step = next(steps, None)
                if step is None:
                    return True
                seconds.write("\n" + json.dumps(_timed(step)))
                seconds.flush()
                if step.outcomes and step.outcomes[0].outcome in ATTEMPTED:
                    attempted += 1
                    _note(fold, editor, attempted, step)
        return False


def rows_of(
    session: Session, seconds: Mapping[int, Mapping[str, float]]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each attempted edit of the history at head.

    A row has the number of stream inputs so far, the metrics after the edit, the bytes of its
    patch, and its seconds if they are known.
    """
    met = edits = 0
    for revision in session.store.lineage("head"):
        outcomes = revision.body.get("requests", [])
        met += len(outcomes)
        measured = session.store.ledger(revision.seq)
        if not measured or not any(o["outcome"] in ATTEMPTED for o in outcomes):
            continue
        edits += 1
        rates = {name: measured["rates"][name] for name in RATES}
        size = revision.patch.length if revision.patch else 0
        yield {"edits": edits, "met": met, **rates, "bytes": size, **seconds.get(revision.seq, {})}


def _timed(step: Step) -> dict[str, Any]:
    return {"seq": step.revision.seq, "edit_s": step.edit_s, "recheck_s": step.recheck_s}


def _seconds(place: Path) -> dict[int, dict[str, float]]:
    """Read the seconds of steps, by the number of their revision; skip a line that was cut off."""
    lines = place.with_suffix(".seconds").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return {record.pop("seq"): record for record in records}


def _note(fold: int, editor: str, attempted: int, step: Step) -> None:
    if attempted % NOTED_EVERY == 0 and step.measured:
        rates = step.measured.rates.to_json()
        shown = ", ".join(f"{name} {rates[name]:.3f}" for name in RATES if rates[name] is not None)
        tables.note(f"fold {fold}, {editor}: {attempted} edits, {shown}")


def _read(path: Path) -> FoldRun:
    """Read a run from its file."""
    record = json.loads(path.read_text(encoding="utf-8"))["run"]
    return FoldRun(**{**record, "rows": tuple(record["rows"])})


def _differing(wanted: Mapping[str, Any], path: Path) -> list[str]:
    """Return the names under which a folder's description differs from `wanted`."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return [name for name in wanted if found.get(name) != wanted[name]]


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all: an interrupted run leaves no half of an input."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
