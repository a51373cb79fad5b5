"""Trials of a calibration run side by side, to the bits of one process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from continual.calibration import Calibrated, CalibrationCache, calibrating
from continual.calibration.of_store import StoreCalibration
from continual.calibration.trials import TrialRunner
from continual.execution.local import LOCAL
from continual.new_store import NewStore, init
from continual.session import Session, open_session
from continual.workers import Crew
from continual.workers.processes import LocalProcesses
from tests import tiny_language as language
from tests.continual.associative_bench import known, mediating_decoder
from tests.continual.calibration.conftest import FACTS, QUICK, correction
from tests.continual.conftest import write_lines

pytestmark = [pytest.mark.watched, pytest.mark.calibrated]


class KilledOnce(LocalProcesses):
    """Kills the worker that takes the next item, once `is_due` is set."""

    is_due = False
    kills = 0

    def post(self, seat: int, message: bytes) -> bool:
        is_sent = super().post(seat, message)
        if self.is_due:
            self.is_due, self.kills = False, self.kills + 1
            os.kill(self._processes[seat].process.pid, 9)
        return is_sent


@pytest.fixture(scope="module")
def seats() -> KilledOnce:
    return KilledOnce(2)


@pytest.fixture(scope="module")
def crew(seats: KilledOnce) -> Iterator[Crew]:
    with Crew(seats) as crew:
        yield crew


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, probes and a stream."""
    folder = tmp_path_factory.mktemp("calibration")
    language.save_decoder(folder / "model", mediating_decoder())
    write_lines(folder / "stream.jsonl", [correction(c) for c in range(12)])
    lines = [{"prompt": known(c), "answer": language.capital(c)} for c in range(20, 30)]
    write_lines(folder / "probes.jsonl", lines)
    return folder


def new_store(folder: Path) -> NewStore:
    return NewStore(
        str(folder / "model"),
        train_probes=folder / "probes.jsonl",
        calibration={"at_first_use": True, "facts": FACTS, "stays_min": 0.5},
        watch={"texts": 8, "tokens": 6},
        editors={"memit": QUICK},
    )


@pytest.fixture
def few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The places are tried with half of the facts first, whose values the full trials share."""
    monkeypatch.setattr(calibrating, "LOOKED_AT_FROM", 3)
    monkeypatch.setattr(calibrating, "LOOKED_AT_BY", FACTS // 2)


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The settings of the trials that ran in this process."""
    settings_here: list[dict[str, Any]] = []
    run = TrialRunner.run

    def noted(self: TrialRunner, settings: Any) -> Any:
        settings_here.append(dict(settings))
        return run(self, settings)

    monkeypatch.setattr(TrialRunner, "run", noted)
    return settings_here


def states(session: Session, folder: Path) -> list[Calibrated]:
    return list(session.calibrate(["memit"], folder / "stream.jsonl"))


def untimed(calibrated: Calibrated | None) -> Calibrated:
    """The calibration without the seconds of its trials, which no two runs share."""
    assert calibrated is not None
    trials = (replace(t, evidence=replace(t.evidence, seconds=0.0)) for t in calibrated.trials)
    return replace(calibrated, trials=tuple(trials))


def cached(session: Session) -> Calibrated:
    purpose = StoreCalibration.of(session)._purpose(QUICK)
    return untimed(CalibrationCache(session.store).get("memit", purpose))


def test_trials_run_in_workers_and_give_the_evidence_and_choice_of_one_process(
    folder: Path,
    tmp_path: Path,
    crew: Crew,
    few_looks: None,
    run_here: list[dict[str, Any]],
) -> None:
    with init(tmp_path / "here", new_store(folder), executor=LOCAL) as session:
        here, kept_here = states(session, folder), cached(session)
    count = len(run_here)
    run_here.clear()
    with init(tmp_path / "there", new_store(folder), executor=crew) as session:
        fingerprint = session.edited.fingerprint
        there, kept_there = states(session, folder), cached(session)
        assert session.edited.fingerprint == fingerprint
    assert here[-1].of_axis("block and place: first look")
    assert count > 15
    assert len(run_here) == 2  # the first, which writes neighbours, and one that is alone
    assert [untimed(state) for state in there] == [untimed(state) for state in here]
    assert kept_there == kept_here == untimed(here[-1])
    assert any(e.arrives > 0 for e in here[-1].of_axis("block and place"))


def test_the_trial_of_a_killed_worker_is_done_again_with_the_same_bits(
    folder: Path, tmp_path: Path, crew: Crew, seats: KilledOnce
) -> None:
    with init(tmp_path / "here", new_store(folder)) as session:
        here = states(session, folder)
    with init(tmp_path / "there", new_store(folder), executor=crew) as session:
        run = session.calibrate(["memit"], folder / "stream.jsonl")
        first = next(run)
        seats.is_due = True
        *_, last = run
    assert seats.kills == 1
    assert untimed(first) == untimed(here[0])
    assert untimed(last) == untimed(here[-1])


def test_a_run_goes_on_behind_its_last_trial_with_workers_or_without(
    folder: Path, tmp_path: Path, crew: Crew, run_here: list[dict[str, Any]]
) -> None:
    results = []
    for number, executors in enumerate(((LOCAL, LOCAL), (LOCAL, crew), (crew, LOCAL))):
        place = tmp_path / str(number)
        with init(place, new_store(folder), executor=executors[0]) as session:
            run = session.calibrate(["memit"], folder / "stream.jsonl")
            early = [next(run) for _ in range(3)][-1]
            run.close()
        run_here.clear()
        with open_session(place, executor=executors[1]) as session:
            last = states(session, folder)[-1]
            assert last.trials[:3] == early.trials  # with their seconds
            assert cached(session) == untimed(last)
        tried = [dict(trial.evidence.settings) for trial in early.trials]
        assert not [settings for settings in run_here if settings in tried]
        assert executors[1] is LOCAL or len(run_here) == 2
        results.append(untimed(last))
    assert results[0] == results[1] == results[2]


def test_the_first_use_in_a_run_with_workers_chooses_the_same(
    folder: Path, tmp_path: Path, crew: Crew
) -> None:
    histories = []
    for name, executor in (("here", LOCAL), ("there", crew)):
        with init(tmp_path / name, new_store(folder), executor=executor) as session:
            steps = session.apply(folder / "stream.jsonl", editor="memit", batch_size=12)
            settings = steps[0].revision.body["settings"]["editors"]["memit"]
            histories.append((cached(session), settings, session.edited.fingerprint))
    assert histories[0] == histories[1]
    assert histories[0][1] != QUICK


def test_forms_of_the_memory_are_tried_by_workers_with_a_memory_of_their_own(
    reading_model: Path, tmp_path: Path, crew: Crew, run_here: list[dict[str, Any]]
) -> None:
    new = NewStore(str(reading_model), calibration={"facts": 4}, watch={"texts": 8, "tokens": 6})
    records = [language.correction(country) for country in range(8)]
    stream = write_lines(tmp_path / "stream.jsonl", records)
    results = []
    for name, executor in (("here", LOCAL), ("there", crew)):
        run_here.clear()
        with init(tmp_path / name, new, executor=executor) as session:
            *_, last = session.calibrate(["serac"], stream)
            results.append(untimed(last))
    assert results[0] == results[1]
    assert any(e.arrives > 0 for e in results[0].of_axis("form"))
    assert not run_here
