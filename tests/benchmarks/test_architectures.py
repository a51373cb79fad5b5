"""The sweep over transformers' classes: each is corrected as promised, or refused with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.architectures.__main__ import families
from benchmarks.architectures.models import SHORT, TASKS, kinds

WORKS, REFUSED = "works", "refused"
EXPECTED = {
    "causal/llama": WORKS,
    "causal/gpt2": WORKS,
    "causal/falcon": WORKS,
    "causal/qwen3_5_text": WORKS,  # linear attention in most blocks
    "causal/mamba": WORKS,  # its mixer is run whole
    "causal/roberta": WORKS,  # its `generate` counts positions otherwise
    "causal/mixtral": WORKS,  # the last block's output is the place
    "causal/gemma2": WORKS,
    "seq2seq/t5": WORKS,
    "seq2seq/musicflamingo": WORKS,  # refused, with the task that takes it
    "classification/bert": WORKS,
    "classification/bart": WORKS,  # reads its answer at the end token
    "classification/nystromformer": REFUSED,  # padding moves its answers
}
"""A sample of the short form, which `python -m benchmarks.architectures FOLDER --short` runs whole;
of each thing that was wrong once, one class."""


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, Mapping[str, Any]]]:
    """The sweep's exit code, and its records."""
    command = [sys.executable, "-m", "benchmarks.architectures", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, {record["key"]: record for record in map(json.loads, lines)}


def test_a_sample_of_classes_is_corrected_as_promised_or_refused_with_a_reason(
    tmp_path: Path,
) -> None:
    code, records = run(tmp_path, "--only", ",".join(EXPECTED), "--seconds", "120")
    said = {key: (record["outcome"], record["said"]) for key, record in records.items()}
    assert {key: outcome for key, (outcome, _) in said.items()} == EXPECTED, said
    assert code == 0
    for key, (outcome, reason) in said.items():
        if outcome == REFUSED:
            assert records[key]["class"] in reason
            assert "\n" not in reason

    assert said["seq2seq/musicflamingo"][1].startswith("by --task causal: ")
    places = {key: record.get("place") for key, record in records.items()}
    assert places["causal/llama"] == places["seq2seq/t5"] == "ffn"
    assert places["causal/mixtral"] == places["causal/gemma2"] == "block"

    again, _ = run(tmp_path, "--only", ",".join(EXPECTED))
    lines = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert (again, len(lines)) == (0, len(EXPECTED))  # nothing was done twice


def test_editors_take_a_class_by_its_task_and_by_the_place_of_its_neurons() -> None:
    records = {
        "causal/llama": {"place": "ffn", "task": "causal"},
        "causal/mixtral": {"place": "block", "task": "causal"},
        "seq2seq/voxtral": {"place": "ffn", "task": "causal"},
        "seq2seq/t5": {"place": "ffn", "task": "seq2seq"},
        "classification/bert": {"place": "ffn", "task": "classification"},
        "causal/xlm": {"outcome": "refused"},
    }
    takes = {
        row["key"]: "".join(
            row[name][0] for name in ("tpatcher", "ft-last", "serac", "memit", "kn")
        )
        for row in families(records)
    }
    assert takes == {
        "causal/llama": "yyyyy",
        "causal/mixtral": "yyynn",
        "seq2seq/voxtral": "yyyyy",
        "seq2seq/t5": "yynny",
        "classification/bert": "yynnn",
    }


def test_a_class_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    _, records = run(tmp_path, "--only", "causal/llama", "--seconds", "0.01")
    assert records["causal/llama"]["outcome"] == "timeout"
    _, records = run(tmp_path, "--only", "causal/llama", "--seconds", "120", "--again", "timeout")
    assert records["causal/llama"]["outcome"] == WORKS


@pytest.mark.parametrize("task", TASKS)
def test_the_sweep_knows_all_classes_of_a_task(task: str) -> None:
    found = {kind.model_type: kind.name for kind in kinds() if kind.task == task}
    assert len(found) > 30
    assert found["bart"].startswith("Bart")
    short = {model_type for of, model_type in SHORT if of == task}
    assert short <= found.keys()


def test_the_short_form_has_forty_classes() -> None:
    assert len(set(SHORT)) == 40
