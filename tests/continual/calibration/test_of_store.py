"""An editor's settings are measured on the base model, kept, and used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from continual.calibration import Calibrated, CalibrationCache
from continual.calibration.choosing import TOLERANCE, score
from continual.calibration.kept import Purpose
from continual.calibration.of_store import StoreCalibration
from continual.calibration.trials import TrialRunner
from continual.errors import CeditError
from continual.history.rehearsing import recompute
from continual.new_store import NewStore, init
from continual.patches import Patch
from continual.session import Session, open_session
from continual.site import Site
from continual.streams import open_stream
from continual.watch import neighbours
from continual.watch.neighbours import Neighbourhood
from tests import tiny_language as language
from tests.continual.calibration.conftest import FACTS, QUICK, correction
from tests.continual.conftest import write_lines
from tests.tiny_memories import WordScope

pytestmark = [pytest.mark.watched, pytest.mark.calibrated]


def finished(session: Session, stream: Path, editor: str = "memit") -> Calibrated:
    *_, last = session.calibrate([editor], stream)
    return last


def state_of(session: Session) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in session.model.state_dict().items()}


def test_what_is_chosen_was_tried_and_scores_best_of_its_axis(
    opened: Session, stream: Path
) -> None:
    calibrated = finished(opened, stream)
    assert calibrated.chosen is not None
    sites = calibrated.of_axis("block and place")
    tried = {(tuple(e.settings["blocks"]), e.settings["place"]) for e in sites}
    assert tried == {((b,), place) for b in (0, 1) for place in ("subject", "answer")}
    assert calibrated.chosen["place"] in ("subject", "answer")
    assert 0 < calibrated.chosen["drift_max"] < 1e9
    assert calibrated.sample["facts"] == FACTS


def test_a_trial_leaves_the_model_as_it_was_bit_for_bit(opened: Session, stream: Path) -> None:
    before, fingerprint = state_of(opened), opened.edited.fingerprint
    for _ in opened.calibrate(["memit"], stream):
        assert opened.edited.fingerprint == fingerprint
    after = opened.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_trial_says_what_arrived_as_asking_the_patched_model_does(
    opened: Session, stream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[Patch] = []
    written = TrialRunner._write

    def noted(self: TrialRunner, *args: Any) -> Any:
        for patch in written(self, *args):
            put.append(patch)
            yield patch

    monkeypatch.setattr(TrialRunner, "_write", noted)
    first = next(iter(opened.calibrate(["memit"], stream))).trials[0].evidence
    (patch,) = put
    sample = StoreCalibration.of(opened)._sample(
        opened._sampled(open_stream(str(stream))), "the stream"
    )
    opened.edited.put([patch])
    asked = [
        opened.ask(f.encoded_request.request.prompt, tokens_max=1)
        == f.encoded_request.request.target_new
        for f in sample.facts
    ]
    opened.edited.take_off(0)
    assert first.arrives == sum(asked) / len(asked)
    assert any(asked)


def test_a_run_that_was_interrupted_goes_on_where_it_was(
    opened: Session, stream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened.calibrate(["memit"], stream)
    early = [next(run) for _ in range(3)][-1]
    run.close()
    assert len(early.trials) == 3
    tried: list[Any] = []
    trial = TrialRunner.run

    def noted(self: TrialRunner, settings: Any) -> Any:
        tried.append(dict(settings))
        return trial(self, settings)

    monkeypatch.setattr(TrialRunner, "run", noted)
    last = finished(opened, stream)
    assert last.trials[:3] == early.trials
    assert not [t for t in early.trials if dict(t.evidence.settings) in tried]
    tried.clear()
    assert finished(opened, stream) == last
    assert not tried


def test_the_first_use_measures_says_so_and_records_what_it_used(
    opened: Session, stream: Path
) -> None:
    notes: list[str] = []
    opened.listener.note = notes.append
    steps = opened.apply(stream, editor="memit", batch_size=12)
    told = " ".join(notes)
    assert "First use on this base model" in told
    assert "[editor.memit] in cedit.toml" in told
    assert "the base writes" in told  # nobody gave text for key statistics
    kept = StoreCalibration.of(opened).known("memit", QUICK)
    assert kept is not None and kept.chosen is not None
    recorded = steps[0].revision.body["settings"]["editors"]["memit"]
    assert recorded == {**kept.chosen, **QUICK}
    notes.clear()
    opened.apply([correction(14)], editor="memit")
    assert not notes


def test_a_replay_needs_no_calibration(opened: Session, stream: Path) -> None:
    opened.apply(stream, editor="memit", batch_size=12)
    StoreCalibration.of(opened).forget(["memit"], {"memit": QUICK})
    (made,) = recompute(opened, opened.store.lineage("head"))
    assert made.is_same
    assert StoreCalibration.of(opened).known("memit", QUICK) is None


def test_what_people_wrote_comes_first_and_is_not_tried(opened: Session, stream: Path) -> None:
    given = {"memit": {"blocks": [1], "place": "end", "drift_max": 0.25}}
    calibration = StoreCalibration.of(opened)
    *_, last = calibration.measure(["memit"], given, opened._sampled(open_stream(str(stream))))
    assert last.chosen is not None
    assert not set(last.chosen) & set(given["memit"])
    assert not last.of_axis("block and place") and not last.of_axis("budget")
    assert all(t.evidence.settings["blocks"] == [1] for t in last.trials)
    tables = calibration.tables(["memit"], given)
    assert tables["memit"] == {**last.chosen, **given["memit"]}
    assert calibration.known("memit", {}) is None  # that would be another calibration


def test_a_store_from_before_measures_nothing_by_itself(
    opened: Session, stream: Path, tmp_path: Path
) -> None:
    settings = {k: v for k, v in opened.store.settings.items() if k != "calibration"}
    opened.store.settings.clear()
    opened.store.settings.update(settings)
    steps = opened.apply(stream, editor="memit", batch_size=12)
    assert steps[0].revision.body["settings"]["editors"]["memit"] == QUICK
    assert (
        CalibrationCache(opened.store).get("memit", Purpose(opened.edited.base.fingerprint, QUICK))
        is None
    )


def test_calibrating_behind_edits_measures_the_base_and_comes_back_to_head(
    opened: Session, stream: Path
) -> None:
    opened.apply([correction(13)], editor="tpatcher")
    head, fingerprint = opened.store.head_id, opened.edited.fingerprint
    states = {opened.edited.fingerprint for _ in opened.calibrate(["memit"], stream)}
    assert states == {opened.edited.base.fingerprint}
    assert (opened.store.head_id, opened.edited.fingerprint) == (head, fingerprint)
    opened.apply([correction(14)], editor="tpatcher")


def test_neighbours_are_written_by_the_base_and_not_behind_a_trial(
    opened: Session, stream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, write = [], neighbours.write

    def noted(site: Site, *how: Any, **more: Any) -> list[Neighbourhood]:
        written.append(site.edited.fingerprint)
        return write(site, *how, **more)

    monkeypatch.setattr(neighbours, "write", noted)
    list(opened.calibrate(["memit"], stream))
    assert written == [opened.edited.base.fingerprint]


def test_without_requests_prompts_are_cut_from_what_the_base_writes(opened: Session) -> None:
    state = next(iter(opened.calibrate(["memit"])))
    assert state.sample["source"] == "prompts cut from what the base writes"


def test_the_memory_is_told_facts_in_the_words_that_the_base_reads(
    reading_model: Path, tmp_path: Path, scope: WordScope
) -> None:
    new = NewStore(str(reading_model), calibration={"facts": 4}, watch={"texts": 8, "tokens": 6})
    records = [language.correction(country) for country in range(8)]
    stream = write_lines(tmp_path / "stream.jsonl", records)
    with init(tmp_path / "reading", new) as session:
        last = finished(session, stream, "serac")
        tried = last.of_axis("form")
        assert last.chosen is not None and last.chosen["form"] in [
            evidence.settings["form"] for evidence in tried
        ]
        assert {(e.general, e.neighbours, e.others, e.spent) for e in tried} == {(None,) * 4}
        highest = max(map(score, tried))
        chosen = next(e for e in tried if e.settings["form"] == last.chosen["form"])
        assert score(chosen) >= highest - TOLERANCE
        assert highest > 0


def test_auto_asks_an_editor_that_loses_too_much_behind_the_others(
    opened: Session, stream: Path
) -> None:
    last = finished(opened, stream)
    calibration = StoreCalibration.of(opened)
    tables = opened.settings().editors
    chain = ("memit", "tpatcher", "serac")
    assert last.evidence is not None
    assert dict(last.evidence.settings).items() <= {**(last.chosen or {}), **QUICK}.items()
    kept = CalibrationCache(opened.store)
    for general, ordered in ((1.0, chain), (0.2, ("tpatcher", "memit", "serac"))):
        shares = {"arrives": 1.0, "general": general, "neighbours": 1.0, "others": 1.0}
        trials = [
            replace(trial, evidence=replace(trial.evidence, **shares)) for trial in last.trials
        ]
        kept.put(replace(last, trials=tuple(trials)))
        assert calibration.ordered(chain, tables) == ordered


def test_an_editor_without_a_grid_is_refused_by_name(opened: Session) -> None:
    with pytest.raises(CeditError, match="ft-last offers no settings"):
        list(opened.calibrate(["ft-last"]))


def test_a_calibration_of_another_base_is_not_taken(opened: Session, stream: Path) -> None:
    finished(opened, stream)
    kept = CalibrationCache(opened.store)
    base = opened.edited.base.fingerprint
    assert kept.get("memit", Purpose(base, QUICK)) is not None
    assert kept.get("memit", Purpose("another", QUICK)) is None


def test_a_calibration_survives_the_session(opened: Session, stream: Path) -> None:
    last = finished(opened, stream)
    opened.close()
    with open_session(opened.store.path) as again:
        assert StoreCalibration.of(again).known("memit", QUICK) == last
