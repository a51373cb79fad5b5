"""The table of memory and seconds by editor and base: its rows, and the projection."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.footprint import LARGER, FootprintCase, parameters_of, projected
from tests import tiny_language as language
from tests.tiny_models import tiny_model


def test_a_projection_is_linear_in_parameters_and_leaves_python_alone() -> None:
    row = {"parameters": 500_000_000, "python_mb": 400.0, "peak_mb": 2400.0, "edit_s": 2.0}
    found = projected(row)
    assert {size: found[f"mb_{size:g}"] for size in LARGER} == pytest.approx(
        {1.5: 6400.0, 7.0: 28_400.0, 13.0: 52_400.0}
    )
    assert found["s_7"] == pytest.approx(28.0)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_parameters_are_counted_once(name: str) -> None:
    model = tiny_model(name)
    assert parameters_of(model) == sum(p.numel() for p in model.parameters())


def test_a_row_is_measured_and_a_refusal_is_told(tmp_path: Path) -> None:
    model = language.save_decoder(tmp_path / "model")
    record = language.correction(3)
    del record["relation"]
    (tmp_path / "stream.jsonl").write_text(json.dumps(record))
    case = FootprintCase(
        str(model), "tpatcher", "float32", "", str(tmp_path / "stream.jsonl"), 1, {}
    )
    row = case.run()
    assert (row["edits"], row["refused"], row["format"]) == (1, 0, "float32")
    assert 0 < row["python_mb"] <= row["peak_mb"] < row["mb_1.5"]
    assert row["first_s"] > 0
