"""The protocol with every editor, on tiny models of each task: networks are trained on D_train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.protocol.__main__ import editors_of
from benchmarks.protocol.editor_networks import teaching_requests
from benchmarks.protocol.runs import ProtocolRuns, RunPlan
from benchmarks.protocol.settings import TaskSetting
from benchmarks.protocol.splits import AnsweredInput, ExampleSplits
from continual.errors import CeditError
from tests import tiny_language as language

FAST = {
    "calinet": {"slots": 16},
    "ft-all": {"learning_rate": 1e-3},
    "ft-last": {"learning_rate": 1e-3},
}
NETWORKS = ("mend", "malmen", "ke")
PLAN = RunPlan(
    editors=("ultraedit", "calinet", *NETWORKS, "ft-last"),
    folds=1,
    edits=2,
    seed=0,
    train_probes=12,
    editor_tables=FAST,
    network_requests=12,
    network_epochs=1,
)


def setting_of(task: str, model: Path) -> TaskSetting:
    """Countries whose answer is changed, beside others that the model knows."""
    answer = language.part if task == "classification" else language.capital
    wrong = {n: answer((n + 11) % 30) for n in range(12)}
    edits = [
        AnsweredInput(language.ask(n), a, (language.ask(n, 1),))
        for n, a in wrong.items()
        if a != answer(n)
    ]
    known = [
        AnsweredInput(language.ask(n), answer(n), (language.ask(n, 1),)) for n in range(12, 30)
    ]
    splits = ExampleSplits(tuple(known[:12]), (), tuple(edits), tuple(known[12:]))
    return TaskSetting("tiny", "tiny", {"name": task}, splits, model)


@pytest.fixture(scope="module", params=["classification", "seq2seq", "causal"])
def setting(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> TaskSetting:
    folder = tmp_path_factory.mktemp("models") / request.param
    saved = {
        "classification": lambda: language.save_classifier(folder, "bert"),
        "seq2seq": lambda: language.save_answering(folder, "t5"),
        "causal": lambda: language.save_decoder(folder, language.trained_decoder()),
    }[request.param]()
    return setting_of(request.param, saved)


def test_editors_by_gradients_and_slots_run_on_models_of_every_task(
    setting: TaskSetting, tmp_path: Path
) -> None:
    protocol = ProtocolRuns(setting, PLAN, tmp_path)
    runs = {run.editor: run for run in protocol.run()}
    assert protocol.refused == {} and list(runs) == list(PLAN.editors)
    assert all(run.edits == 2 for run in runs.values())
    rates = {name: run.rows[-1]["SR"] for name, run in runs.items()}
    assert rates["calinet"] == 1.0 and rates["ultraedit"] >= 0.5, rates
    assert max(rates[name] for name in NETWORKS) > 0, rates
    assert [runs[name].label for name in NETWORKS] == list(NETWORKS)
    networks = sorted(path.name for path in (tmp_path / "networks").iterdir())
    assert networks == [f"{name}.safetensors" for name in sorted(NETWORKS)]
    again = ProtocolRuns(setting, PLAN, tmp_path).run()
    assert {run.editor: run.rows for run in again} == {n: run.rows for n, run in runs.items()}


def test_an_editor_of_other_tasks_is_left_out_with_the_reason(
    setting: TaskSetting, tmp_path: Path
) -> None:
    if setting.engine_task["name"] == "causal":
        pytest.skip("every editor edits causal models")
    plan = replace(PLAN, editors=("serac", "calinet"))
    protocol = ProtocolRuns(setting, plan, tmp_path)
    assert [run.editor for run in protocol.run()] == ["calinet"]
    assert "edits causal models" in protocol.refused["serac"]
    assert not (tmp_path / "stores" / "fold-0" / "serac").exists()


def test_all_are_the_editors_of_a_task() -> None:
    found = editors_of("all", "classification")
    assert {"tpatcher", "mend", "malmen", "ke", "ultraedit", "calinet"} <= {*found}
    assert not {"serac", "memit", "grace"} & {*found}
    assert editors_of("memit, kn", "causal") == ("memit", "kn")
    with pytest.raises(CeditError, match="no editor nobody"):
        editors_of("tpatcher,nobody", "causal")


def test_networks_learn_from_examples_with_the_answers_of_others() -> None:
    train = [AnsweredInput(f"q{n}", f"a{n % 3}", (f"r{n}",)) for n in range(9)]
    requests = teaching_requests(train, 5, 1)
    answers = {example.prompt: example.answer for example in train}
    assert len(requests) == 5 and requests == teaching_requests(train, 5, 1)
    for request in requests:
        assert request.target_new != answers[str(request.prompt)]
        assert request.target_new in answers.values() and len(request.held_out_rephrases) == 1
    with pytest.raises(CeditError, match="one answer"):
        teaching_requests(train[:1], 1, 0)
