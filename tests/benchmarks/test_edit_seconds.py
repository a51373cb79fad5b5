"""The seconds of an edit: rows of real edits, refusals counted, and nothing measured twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import edit_seconds
from benchmarks.counterfact_model import data_folder
from benchmarks.edit_seconds import SecondsCase, SharedInputs, cases, network_tables, read_stream
from continual.errors import CeditError

pytestmark = pytest.mark.skipif(
    not (data_folder() / "counterfact").exists(), reason="the data sets are not here"
)
SHARED = SharedInputs("atlas", ("counterfact",), 2, watched=False, tokens=1000, train=4)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of the atlas, and a stream of two records."""
    folder = tmp_path_factory.mktemp("seconds")
    SHARED.prepare(folder, ["tpatcher"])
    return folder


def options(output: Path, *more: str) -> Any:
    given = ["--model", "atlas", "--output", str(output), "--edits", "2", "--data", "counterfact"]
    return edit_seconds.parser().parse_args([*given, *more])


def row_of(output: Path, editor: str, size: int = 1, **table: object) -> dict[str, Any]:
    return SecondsCase("counterfact", editor, size, 2, table).run(output)


def test_a_row_has_the_seconds_of_real_edits_and_leaves_no_store(output):
    row = row_of(output, "tpatcher")
    assert (row["edits"], row["refused"]) == (2, 0)
    assert 0 < row["median_s"] and 0 < row["edit_s"] and 0 < row["first_s"]
    assert 0 < row["patch_bytes"] and not list((output / "stores").iterdir())


def test_all_edits_of_a_joint_row_share_its_one_step(output):
    row = row_of(output, "calinet", 2, slots=8)
    assert (row["edits"], row["batch_size"]) == (2, 2)
    assert row["edit_s"] == pytest.approx(row["first_s"] / 2)


def test_refused_edits_are_counted_with_a_reason(output):
    row = row_of(output, "ft-l", steps_max=1)
    assert row["refused"] == 2 and "still wrong" in row["reason"]


def test_minutes_end_a_row_early(output):
    case = SecondsCase("counterfact", "tpatcher", 1, 2, {}, minutes=0.0)
    assert case.run(output)["edits"] == 1


def test_the_stream_is_of_records_that_the_base_answers_wrongly(output):
    requests, train = read_stream(output, "counterfact"), read_stream(output, "counterfact-train")
    assert len(requests) == 2 and len(train) == 4
    assert not {r.prompt for r in requests} & {r.prompt for r in train}
    assert not any(r.locality for r in requests) and all(r.locality for r in train)


def test_a_folder_is_for_one_model_and_number_of_edits(output):
    SHARED.prepare(output, ["tpatcher"])
    with pytest.raises(CeditError, match="name another --output"):
        SharedInputs("atlas", ("counterfact",), 3, False, 1000, 4).prepare(output, ["tpatcher"])


def test_an_editor_without_its_network_has_a_row_that_says_so(output):
    chosen = options(output, "--editors", "mend,tpatcher")
    networks = network_tables(output, output / "none", ["mend"], ["counterfact"], 0, 1)
    note, case = cases(chosen, networks)
    assert "no network" in note["note"] and isinstance(case, SecondsCase)


def test_rows_are_read_from_the_folder_and_failed_ones_are_measured_again(output, monkeypatch):
    ran: list[Sequence[str]] = []
    answers = [(1, "", "Traceback\nboom: it is broken"), (0, "", "")]

    class Done:
        def __init__(self, given: Sequence[str]) -> None:
            ran.append(given)
            self.returncode, self.stdout, self.stderr = answers[len(ran) - 1]
            if not self.returncode:
                case = json.loads(given[-1])
                self.stdout = json.dumps({**case, "edits": 2, "refused": 0})

    monkeypatch.setattr(edit_seconds.subprocess, "run", lambda given, **_: Done(given))
    chosen = options(output, "--editors", "kn")
    (first,) = edit_seconds.run(chosen)
    assert first["note"] == "boom: it is broken" and first["published_s"] == 225.43
    (second,) = edit_seconds.run(chosen)
    (third,) = edit_seconds.run(chosen)
    assert second == third and second["edits"] == 2 and len(ran) == 2
