"""What an edit costs is measured once for each editor, on the same corrections."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import efficiency
from benchmarks.efficiency import TableCase, cases
from continual.choices import EDITORS


def test_every_editor_has_a_row_and_those_of_batches_one_for_each_size() -> None:
    found = cases(list(EDITORS), 100)
    assert {case.editor for case in found} == set(EDITORS)
    assert [case.batch_size for case in found if case.editor == "memit"] == [50, 10, 1]
    assert [case.batch_size for case in found if case.editor == "ft-all"] == [1]


def test_a_row_has_seconds_memory_and_bytes_of_an_edit() -> None:
    row = TableCase("tpatcher", 1, 4).run()
    assert (row["editor"], row["edits"], row["SR"]) == ("tpatcher", 4, 1.0)
    assert 0 < row["edit_s"] and 0 < row["recheck_s"]
    assert 0 <= row["edits_mb"] < row["peak_mb"]
    assert 0 < row["patch_bytes"] < row["store_bytes"]


def test_what_a_file_has_already_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[TableCase] = []

    def row(case: TableCase) -> dict[str, Any]:
        measured.append(case)
        return {**case.name, "edits": case.edits}

    monkeypatch.setattr(TableCase, "measured", row)
    out = tmp_path / "efficiency.json"
    for editors in ("rome", "rome,ft-l"):
        given = ["efficiency", "--edits", "3", "--editors", editors, "--json", str(out)]
        monkeypatch.setattr(sys, "argv", given)
        efficiency.main()
    assert measured == [TableCase("rome", 1, 3), TableCase("ft-l", 1, 3)]
    rows = json.loads(out.read_text(encoding="utf-8"))["editors"]
    assert [row["editor"] for row in rows] == ["rome", "ft-l"]
    assert "ft-l" in capsys.readouterr().out
