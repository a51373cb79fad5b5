"""Corrections with pictures, from the record to the history and back."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from continual.history.rehearsing import recompute
from continual.picture_marks import digests_in
from continual.pictures.content import as_png
from continual.session import Session, open_session
from store import config
from store.archive import export, restore
from store.check import verify
from tests import tiny_language as language
from tests.continual.conftest import Make, write_lines
from tests.tiny_pictures import picture_file, save_seeing

QUESTION = "the capital of Badar is"
FIRST, SECOND = language.CAPITALS[4], language.CAPITALS[9]


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_seeing(tmp_path_factory.mktemp("models") / "seeing")


@pytest.fixture
def session(made: Make, seeing: Path, tmp_path: Path) -> Session:
    probes = [
        {"prompt": QUESTION, "answer": FIRST, "image": str(picture_file(tmp_path, 20 + n))}
        for n in range(2)
    ]
    return made(
        seeing,
        task={"name": "multimodal"},
        train_probes=write_lines(tmp_path / "train.jsonl", probes),
        watch={"texts": 16, "neighbours": 24, "watch_max": 1.0, "neighbours_max": 1.0},
    )


@pytest.fixture
def unwatched(made: Make, seeing: Path) -> Session:
    """Without general text and neighbours: on random weights an edit may change all of them."""
    return made(
        seeing, "unwatched", task={"name": "multimodal"}, watch={"texts": 0, "neighbours": 0}
    )


def record(folder: Path, number: int, target: str = FIRST, **more: Any) -> dict[str, Any]:
    path = picture_file(folder, number)
    return {"prompt": QUESTION, "target_new": target, "image": str(path), **more}


def outcomes(session: Session) -> list[str]:
    return [
        entry["outcome"]
        for revision in session.store.lineage("head")
        for entry in revision.body.get("requests", ())
    ]


GREY = as_png(torch.full((32, 32, 3), 128, dtype=torch.uint8))
TABLES = {name: {"drift_max": 100.0} for name in ("memit", "alphaedit", "emmet")}
"""Settings for a model of random weights, whose inputs are in no direction rare."""
SILENT = ("tpatcher", "lookup", "grace")
"""Editors that leave the same question on another picture alone, on the words of their keys."""


@pytest.mark.parametrize("editor", SILENT)
def test_a_correction_holds_for_its_picture_and_no_other(session, tmp_path, editor):
    """The pictures of the training probes, and a plain one: the edit has to tell them apart."""
    probes = json.loads(json.dumps(session.store.base.body["probes"]["train"]))
    others = [probe["prompt"] for probe in probes] + [session.shown(QUESTION, [GREY])]
    before = [session.ask(other, 1) for other in others]
    session.apply([record(tmp_path, 1)], editor=editor)
    assert outcomes(session) == ["applied"]
    assert session.ask(QUESTION, 1, [str(picture_file(tmp_path, 1))]) == FIRST
    assert [session.ask(other, 1) for other in others] == before


@pytest.mark.parametrize(
    "editor",
    ["ft-last", "ft-all", "ft-vision", "memit", "alphaedit", "emmet", "calinet"],
)
def test_an_editor_of_parameters_corrects_what_is_said_of_a_picture(unwatched, tmp_path, editor):
    base = unwatched.edited.fingerprint
    table = TABLES.get(editor, {})
    unwatched.apply([record(tmp_path, 1, subject="Badar")], editor=editor, editors={editor: table})
    assert outcomes(unwatched) == ["applied"]
    assert unwatched.ask(QUESTION, 1, [str(picture_file(tmp_path, 1))]) == FIRST
    unwatched.rollback("base")
    assert unwatched.edited.fingerprint == base


def test_ultraedit_takes_the_measure_of_gradients_from_probes_with_pictures(
    made: Make, unwatched: Session, seeing: Path, tmp_path: Path
):
    """It needs training probes that the base answers rightly, with different answers."""
    probes: dict[str, dict[str, Any]] = {}
    for number in range(12):
        prompt, path = language.ask(number, number % 4), str(picture_file(tmp_path, 40 + number))
        answer = unwatched.ask(prompt, 1, [path])
        probes.setdefault(answer, {"prompt": prompt, "answer": answer, "image": path})
    file = write_lines(tmp_path / "known.jsonl", list(probes.values()))
    watch = {"texts": 0, "neighbours": 0}
    task = {"name": "multimodal"}
    session = made(seeing, "probed", task=task, train_probes=file, watch=watch)
    session.apply([record(tmp_path, 1)], editor="ultraedit")
    assert outcomes(session) == ["applied"]
    assert session.ask(QUESTION, 1, [str(picture_file(tmp_path, 1))]) == FIRST


@pytest.mark.parametrize("part", ["projection", "block"])
def test_the_vision_side_is_trained_and_texts_stay_to_the_bit(unwatched, tmp_path, part):
    task, model = unwatched.task, unwatched.edited.model
    text = task.inputs([task.encode("the king of Badar lives in", FIRST)])
    with torch.no_grad():
        before = model(**text).logits
    tables = {"ft-vision": {"part": part, "learning_rate": 3e-3}}
    unwatched.apply([record(tmp_path, 1)], editor="ft-vision", editors=tables)
    assert outcomes(unwatched) == ["applied"]
    with torch.no_grad():
        assert torch.equal(model(**text).logits, before)
    assert unwatched.status()["ER"] in (None, 1.0)
    (revision,) = (r for r in unwatched.store.revisions() if r.patch)
    steps = list(recompute(unwatched, [revision]))
    assert all(step.is_same for step in steps)


def test_the_vision_side_has_nothing_to_train_on_without_a_picture(unwatched):
    unwatched.apply([{"prompt": QUESTION, "target_new": FIRST}], editor="ft-vision")
    (entry,) = unwatched.store.head.body["requests"]
    assert entry["outcome"] == "failed"
    assert "shows no picture" in json.dumps(entry)


def test_one_question_has_another_answer_for_each_picture(session, tmp_path):
    targets = [language.CAPITALS[n] for n in (4, 9, 17)]
    records = [record(tmp_path, n, target) for n, target in enumerate(targets, start=1)]
    session.apply(records)
    assert outcomes(session) == ["applied"] * 3
    asked = [session.ask(QUESTION, 1, [r["image"]]) for r in records]
    assert asked == targets
    assert session.status()["ER"] == 1.0


def test_pictures_are_in_the_store_and_named_by_the_revision_that_shows_them(session, tmp_path):
    session.apply([record(tmp_path, 1)])
    (request,) = session.corrections()
    content = session.store.request(request["id"])
    (digest,) = digests_in(content["prompt"])
    assert digest in {ref.sha256 for ref in session.store.head.pictures}
    assert config.found_format(session.store.path) == config.WITH_PICTURES
    assert [p for p in verify(session.store) if not p.harmless] == []


def test_a_history_with_pictures_rolls_back_replays_and_reverts(session, tmp_path):
    base = session.edited.fingerprint
    records = [record(tmp_path, n, t) for n, t in ((1, FIRST), (2, SECOND))]
    for one in records:
        session.apply([one])
    head = session.edited.fingerprint
    steps = [r for r in session.store.revisions() if r.operation == "edit"]
    assert all(made.is_same for made in recompute(session, steps))
    session.rollback("base")
    assert session.edited.fingerprint == base
    session.rollback("@2")
    assert session.edited.fingerprint == head
    first, _ = session.corrections()
    session.revert(first["id"])
    assert session.ask(QUESTION, 1, [records[1]["image"]]) == SECOND
    assert session.ask(QUESTION, 1, [records[0]["image"]]) != FIRST


def test_an_archive_of_a_history_with_pictures_answers_the_same(session, tmp_path):
    one = record(tmp_path, 1)
    session.apply([one])
    status = session.status()
    session.close()
    with open_session(session.store.path, writable=False) as reading:
        export(reading.store, tmp_path / "history.tar")
    restore(tmp_path / "history.tar", tmp_path / "copy")
    with open_session(tmp_path / "copy") as copy:
        assert copy.ask(QUESTION, 1, [one["image"]]) == FIRST
        assert copy.status()["ER"] == status["ER"]


def test_a_bad_picture_is_set_aside_and_the_stream_goes_on(session, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    whole = picture_file(tmp_path, 5).read_bytes()
    (tmp_path / "short.png").write_bytes(whole[: len(whole) // 2])
    names = ["absent.png", "text.png", "short.png", "data:image/png;base64,@@", "http://a/b.png"]
    bad = [{"prompt": QUESTION, "target_new": FIRST, "image": name} for name in names]
    stream = write_lines(tmp_path / "stream.jsonl", [*bad, record(tmp_path, 1)])
    (step,) = session.apply(stream)
    assert [item.number for item in step.quarantined] == [1, 2, 3, 4, 5]
    reasons = [str(item.reason) for item in step.quarantined]
    for reason, words in zip(
        reasons,
        ("no picture 'absent.png'", "no picture in a known", "cut short", "base64", "network"),
        strict=True,
    ):
        assert words in reason
    assert outcomes(session) == ["applied"]


def test_a_picture_comes_as_a_path_in_the_streams_folder_a_data_uri_or_bytes(session, tmp_path):
    path = picture_file(tmp_path, 1)
    uri = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    line = {"prompt": QUESTION, "target_new": FIRST, "image": path.name}
    session.apply(write_lines(tmp_path / "stream.jsonl", [line]))
    asked = {session.ask(QUESTION, 1, [form]) for form in (path, str(path), uri, path.read_bytes())}
    assert asked == {FIRST}
    messages = [
        {"type": "image_url", "image_url": {"url": uri}},
        {"type": "text", "text": QUESTION},
    ]
    border = session.picture_border()
    assert border is not None
    taken = border.of({"messages": [{"role": "user", "content": messages}], "target_new": SECOND})
    assert digests_in(taken["messages"][0]["content"]) == digests_in(
        session.shown(QUESTION, [path.read_bytes()])
    )


def test_a_store_of_texts_refuses_pictures_by_name(made: Make, random_model: Path, tmp_path):
    from continual.errors import RequestError

    session = made(random_model, "texts")
    with pytest.raises(RequestError, match="multimodal"):
        session.ask(QUESTION, 1, [str(picture_file(tmp_path, 1))])
    with pytest.raises(RequestError, match="takes texts alone"):
        session.ask("<|picture:" + "ab" * 32 + "|>" + QUESTION)


def test_a_rebase_takes_the_pictures_along(session, tmp_path):
    from continual import rebasing

    model = save_seeing(tmp_path / "other", seed=1)
    one = record(tmp_path, 1)
    session.apply([one])
    with rebasing.opened(session.store, tmp_path / "rebased", str(model)) as rebased:
        for group in rebasing.groups(session.store):
            list(rebased.apply_requests(group.requests, group.settings))
        assert rebased.ask(QUESTION, 1, [one["image"]]) == FIRST
        assert [p for p in verify(rebased.store) if not p.harmless] == []


def test_the_report_shows_a_thumbnail_of_each_corrections_picture(session, tmp_path):
    from cli.report.page import page
    from continual.reporting import report_on

    session.apply([record(tmp_path, 1)])
    html = page(report_on(session.store), "0")
    assert html.count("data:image/png;base64,") == 1
    assert "[picture " in html
