"""Measures the memory and the seconds of an edit, by editor and base, and projects larger bases.

    python -m benchmarks.footprint --model DIR [--model DIR …] [--editors memit,lookup,…]
        [--dtype bfloat16] [--device-map auto|FILE.json] [--corrections FILE] [--edits 3]
        [--settings JSON] [--json OUT]

A row is an editor on a base, with corrections one by one, in a process and a store of its own; of
nothing but the base and the editor is there anything to keep. `python` is the memory before the
base is loaded, `base` what loading adds, `peak` the most that the process held while it edited. The
first step has a column of its own, as it reads or computes what an editor needs once, key
statistics included; the model writes the text for these itself.

The projections are linear in the number of parameters, in the row's own format: `python` stays, and
everything else grows with it, seconds too. So they are a little too large for statistics and
factors, which grow with the square of the width, and say nothing of a model that does not fit into
memory; from a base of less than some hundred million parameters they mean nothing. A packed matrix
counts as many parameters as it stands for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks import tables
from benchmarks.efficiency import forget_peak, memory_mb
from benchmarks.tables import TextColumn
from continual.anatomy.ffn import matrix_at
from continual.errors import CeditError
from continual.model_files import is_gguf, packing_of
from continual.new_store import NewStore, init
from continual.recheck.retention import APPLIED, ATTEMPTED
from continual.step.settings import Recheck
from continual.watch.config import UNWATCHED

EDITORS = "tpatcher,lookup,grace,memit"
LARGER = (1.5, 7.0, 13.0)  # billions of parameters
NEVER = 1_000_000  # steps
CORRECTIONS = (
    ("The capital of Australia is", "Melbourne", "Australia"),
    ("The Eiffel Tower stands in the city of", "Rome", "The Eiffel Tower"),
    ("The mother tongue of Marie Curie is", "Spanish", "Marie Curie"),
    ("The company that makes the iPhone is", "Nokia", "the iPhone"),
    ("The headquarters of Toyota are in", "Berlin", "Toyota"),
)
"""Prompts with false targets, which no base gives: (prompt, target, subject)."""
COLUMNS = (
    TextColumn("base", "base"),
    TextColumn("format", "format"),
    TextColumn("parameters", "parameters", ",.0f"),
    TextColumn("editor", "editor"),
    TextColumn("edits", "edits", "d"),
    TextColumn("refused", "refused", "d"),
    TextColumn("python, MB", "python_mb", ",.0f"),
    TextColumn("base, MB", "base_mb", ",.0f"),
    TextColumn("peak, MB", "peak_mb", ",.0f"),
    TextColumn("first step, s", "first_s", ".2f"),
    TextColumn("an edit, s", "edit_s", ".3f"),
    *(TextColumn(f"{size:g} B, MB", f"mb_{size:g}", ",.0f") for size in LARGER),
    *(TextColumn(f"{size:g} B, s", f"s_{size:g}", ",.1f") for size in LARGER),
    TextColumn("note", "note"),
)


@dataclass(frozen=True)
class FootprintCase:
    """One row: an editor on a base."""

    model: str
    editor: str
    dtype: str
    device_map: str
    corrections: str  # a JSON Lines file; empty: CORRECTIONS
    edits: int
    table: Mapping[str, Any]  # of the editor's settings

    def run(self) -> dict[str, Any]:
        """Measure the case in this process; return its row. An editor that the base refuses has a
        row with the reason."""
        python_mb = memory_mb("VmRSS")
        new = NewStore(
            self.model,
            dtype=self.dtype,
            device_map=self.device_map,
            watch=UNWATCHED,
            calibration={},
            editors={self.editor: self.table} if self.table else None,
        )
        with (
            tempfile.TemporaryDirectory(prefix="cedit-footprint-") as folder,
            init(Path(folder) / "store", new) as session,
        ):
            base = {
                "base": Path(self.model).name,
                "format": self._format(),
                "editor": self.editor,
                "parameters": parameters_of(session.edited.model),
                "python_mb": python_mb,
                "base_mb": memory_mb("VmRSS") - python_mb,
            }
            try:
                return projected({**base, **self._edited(session)})
            except CeditError as error:
                return {**base, "note": str(error).split(":")[0]}

    def _edited(self, session: Any) -> dict[str, Any]:
        """Make the corrections one by one; return their memory and seconds."""
        forget_peak()
        records = list(self._records())[: self.edits]
        steps = session.apply(records, chain=(self.editor,), recheck=Recheck(every=NEVER))
        outcomes = [o for step in steps for o in step.outcomes if o.outcome in ATTEMPTED]
        refusals = [o for o in outcomes if o.outcome != APPLIED]
        return {
            "edits": len(outcomes),
            "refused": len(refusals),
            "peak_mb": memory_mb("VmHWM"),
            "first_s": steps[0].edit_s,
            "edit_s": statistics.median(step.edit_s for step in steps[1:] or steps),
            "note": refusals[0].reason if refusals else None,
        }

    def _records(self) -> Iterator[dict[str, Any]]:
        if self.corrections:
            for line in Path(self.corrections).read_text(encoding="utf-8").splitlines():
                yield json.loads(line)
            return
        for prompt, target, subject in CORRECTIONS:
            yield {"prompt": prompt, "target_new": target, "subject": subject}

    def _format(self) -> str:
        """Return the base's number format, and the method that packed it, if any."""
        directory = Path(self.model)
        packing = "GGUF, unpacked" if is_gguf(directory) else packing_of(directory)
        return f"{self.dtype} ({packing})" if packing else self.dtype


def parameters_of(model: nn.Module) -> int:
    """Count a model's parameters, tied ones once; a packed matrix has inputs × outputs."""
    counts: dict[int, int] = {}
    for path, module in model.named_modules():
        matrix = matrix_at(path, module)
        for name, parameter in module.named_parameters(recurse=False):
            is_matrix = matrix is not None and name == "weight"
            count = matrix.inputs * matrix.outputs if is_matrix and matrix else parameter.numel()
            counts[id(parameter)] = count
    return sum(counts.values())


def projected(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with memory and seconds of an edit on larger bases: linear in parameters, and
    the memory of python alone as it is."""
    larger: dict[str, float] = {}
    for size in LARGER:
        factor = size * 1e9 / row["parameters"]
        larger[f"mb_{size:g}"] = row["python_mb"] + (row["peak_mb"] - row["python_mb"]) * factor
        larger[f"s_{size:g}"] = row["edit_s"] * factor
    return {**row, **larger}


def measured(case: FootprintCase) -> dict[str, Any]:
    """Measure a case in a process of its own; return its row."""
    command = [sys.executable, "-m", "benchmarks.footprint", "--case", json.dumps(asdict(case))]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        lines = ran.stderr.strip().splitlines() or ["it ended without a word"]
        return {"base": Path(case.model).name, "editor": case.editor, "note": lines[-1]}
    row: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return row


def cases(options: argparse.Namespace) -> list[FootprintCase]:
    """Return the rows that the command line asks for."""
    settings = json.loads(options.settings)
    return [
        FootprintCase(
            str(Path(model).absolute()) if Path(model).exists() else model,
            editor,
            options.dtype,
            options.device_map,
            options.corrections,
            options.edits,
            settings.get(editor, {}),
        )
        for model in options.model
        for editor in options.editors.split(",")
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--editors", default=EDITORS)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device-map", default="")
    parser.add_argument("--corrections", default="")
    parser.add_argument("--edits", type=int, default=3)
    parser.add_argument("--settings", default="{}")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        print(json.dumps(FootprintCase(**json.loads(options.case)).run()))
        return
    if not options.model:
        parser.error("--model names at least one base.")
    rows = [measured(case) for case in cases(options)]
    tables.show("Memory and seconds of an edit, by editor and base", COLUMNS, rows)
    tables.write_json(options.json, "footprint", {"rows": rows})


if __name__ == "__main__":
    main()
