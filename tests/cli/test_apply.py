"""Applying streams from the command line."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from pathlib import Path

import pytest

from cli.interruption import stopping
from continual.workers.processes import LocalProcesses
from tests.cli.conftest import Cedit, Start, request, write_lines

STEP_KEYS = {
    "type", "seq", "revision", "editor", "requests", "applied", "skipped", "failed", "SR", "GR",
    "ER", "TrainR", "TestR", "edit_s", "recheck_s", "patch_bytes",
}  # fmt: skip
SUMMARY_KEYS = {
    "type", "read", "attempted", "applied", "skipped", "superseded", "quarantined", "failed", "SR",
    "GR", "ER", "ER_incl", "TrainR", "TestR", "Locality", "head", "fingerprint", "seconds",
}  # fmt: skip


def test_each_step_is_a_line_of_json_and_the_summary_is_the_last(
    cedit: Cedit, store: Path, stream: Path
) -> None:
    ran = cedit("apply", stream, "--json")
    assert ran.code == 0
    *steps, summary = ran.records
    assert [step["seq"] for step in steps] == [1, 2, 3]
    assert all(step["type"] == "step" and step.keys() >= STEP_KEYS for step in steps)
    assert summary["type"] == "summary"
    assert summary.keys() >= SUMMARY_KEYS
    assert (summary["read"], summary["applied"], summary["failed"]) == (3, 3, 0)
    assert summary["SR"] == 1.0
    assert summary["head"] == steps[-1]["revision"]


def test_people_get_rows_and_a_summary(cedit: Cedit, store: Path, stream: Path) -> None:
    ran = cedit("apply", stream)
    header, *rows = ran.out.splitlines()
    assert header.split() == ["step", "SR", "GR", "ER", "TrainR", "TestR"]
    assert [row.split()[0] for row in rows[:3]] == ["1", "2", "3"]
    assert rows[3].startswith("3 read: 3 applied, 0 skipped")


def test_the_same_command_again_finds_nothing_new(cedit: Cedit, store: Path, stream: Path) -> None:
    cedit("apply", stream)
    again = cedit("apply", stream)
    assert again.code == 0
    assert "Nothing new" in again.out


def test_a_limited_run_goes_on_where_it_stopped(cedit: Cedit, store: Path, stream: Path) -> None:
    first = cedit("apply", stream, "--limit", 2, "--json")
    second = cedit("apply", stream, "--json")
    assert first.last["read"] == 2
    assert second.last["read"] == 1
    assert [record["seq"] for record in second.records[:-1]] == [3]


def test_a_run_in_two_parts_ends_in_the_same_model_as_a_whole_one(
    cedit: Cedit, store: Path, stream: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(store, tmp_path / "other")
    cedit("apply", stream, "--limit", 1)
    in_parts = cedit("apply", stream, "--json").last
    whole = cedit("apply", stream, "--store", other, "--json").last
    assert (in_parts["read"], whole["read"]) == (2, 3)
    assert in_parts["fingerprint"] == whole["fingerprint"]
    assert in_parts["head"] == whole["head"]


def test_what_cannot_be_read_is_quarantined_and_the_rest_applied(
    cedit: Cedit, store: Path, tmp_path: Path
) -> None:
    mixed = write_lines(tmp_path / "mixed.jsonl", [request(0), "not json", {"odd": 1}, request(1)])
    ran = cedit("apply", mixed, "--json")
    assert ran.code == 3
    assert (ran.last["quarantined"], ran.last["applied"]) == (2, 2)
    lines = (store / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == [2, 3]


def test_strict_stops_at_what_cannot_be_read(cedit: Cedit, store: Path, tmp_path: Path) -> None:
    mixed = write_lines(tmp_path / "mixed.jsonl", [request(0), "not json", request(1)])
    ran = cedit("apply", mixed, "--strict", "--json")
    assert ran.code == 1
    assert "record 2" in ran.err
    assert cedit("status", "--json").last["requests_active"] == 1


def test_a_sparse_recheck_still_ends_with_metrics(cedit: Cedit, store: Path, stream: Path) -> None:
    ran = cedit("apply", stream, "--recheck", "every=100", "--json")
    assert ran.records[0]["ER"] is None
    assert ran.last["ER_incl"] is not None


@pytest.mark.parametrize("option", [("--recheck", "sometimes"), ("--editor", "nobody")])
def test_a_setting_that_does_not_exist_is_named(
    cedit: Cedit, store: Path, stream: Path, option: tuple[str, str]
) -> None:
    ran = cedit("apply", stream, *option)
    assert ran.code == 2
    assert option[1] in ran.err
    assert "Traceback" not in ran.err


def test_an_option_may_come_from_the_environment(
    cedit: Cedit, store: Path, stream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEDIT_APPLY_LIMIT", "1")
    assert cedit("apply", stream, "--json").last["read"] == 1
    assert cedit("apply", stream, "--limit", 2, "--json").last["read"] == 2


def test_a_missing_stream_is_named(cedit: Cedit, store: Path) -> None:
    ran = cedit("apply", "nowhere.jsonl")
    assert ran.code == 1
    assert "nowhere.jsonl does not exist" in ran.err


def test_an_interrupted_run_keeps_its_steps_and_goes_on(
    cedit: Cedit, start: Start, store: Path, tmp_path: Path
) -> None:
    stream = write_lines(tmp_path / "long.jsonl", [request(n) for n in range(60)])
    child = start("apply", stream, "--json")
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "finishing the current step" in err
    summary = json.loads(out.splitlines()[-1])
    assert summary["type"] == "summary"
    done = cedit("status", "--json").last["seq"]
    assert 0 < done < 60
    rest = cedit("apply", stream, "--limit", 1, "--json")
    assert rest.records[0]["seq"] == done + 1


def test_a_run_that_waits_for_input_ends_at_a_signal(start: Start, store: Path) -> None:
    child = start("apply", "-", "--json", stdin=-1)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(request(0)) + "\n")
    child.stdin.flush()
    assert json.loads(child.stdout.readline())["type"] == "step"
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=30) == 130
    assert json.loads(child.stdout.readline())["applied"] == 1


def test_a_second_signal_ends_a_run_at_once() -> None:
    stop = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    with stopping(stop, reads_input=False):
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_workers_leave_the_same_history(
    cedit: Cedit, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{"prompt": f"Question {i}?", "target_new": "x"} for i in range(2)]
    stream = write_lines(tmp_path / "stream.jsonl", records)
    probes = write_lines(
        tmp_path / "probes.jsonl",
        [{"prompt": f"{'long ' * 20}{i}", "answer": "y"} for i in range(60)],
    )
    posts: list[int] = []
    post = LocalProcesses.post
    monkeypatch.setattr(
        LocalProcesses, "post", lambda self, seat, m: posts.append(seat) or post(self, seat, m)
    )
    runs = []
    for name, options in (("here", ()), ("there", ("--workers", "2"))):
        folder = tmp_path / name
        assert cedit("init", folder, "--model", model, "--train-probes", probes, *options).code == 0
        runs.append(cedit("apply", stream, "--store", folder, "--json", *options))
        assert bool(posts) is bool(options)
    assert [run.code for run in runs] == [0, 0]
    assert runs[0].last["head"] == runs[1].last["head"]
