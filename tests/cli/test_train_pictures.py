"""Editors by gradients on a model that sees: their networks are trained on pictures, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from continual.editors.ke import KeNetwork
from continual.history.rehearsing import recompute
from continual.new_store import NewStore, init
from continual.picture_marks import digests_in
from continual.session import open_session
from tests import tiny_language as language
from tests.cli.conftest import Cedit, write_lines
from tests.tiny_pictures import picture_file, save_seeing

QUESTION = "the capital of Badar is"
TARGET = language.CAPITALS[4]


def record(folder: Path, number: int, **more: Any) -> dict[str, Any]:
    image = str(picture_file(folder, number))
    target = language.CAPITALS[(3 * number + 4) % 40]
    return {"prompt": QUESTION, "target_new": target, "image": image, **more}


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_seeing(tmp_path_factory.mktemp("models") / "seeing")


@pytest.mark.parametrize("method", ["mend", "malmen", "ke"])
def test_a_network_is_trained_with_pictures_and_edits_what_is_said_of_one(
    cedit: Cedit, seeing: Path, tmp_path: Path, method: str
) -> None:
    store, out = tmp_path / "store", tmp_path / f"{method}.safetensors"
    asked = ("init", "--model", seeing, "--task", "multimodal", "--no-watch", "--store", store)
    assert cedit(*asked).code == 0
    stream = write_lines(tmp_path / "stream.jsonl", [record(tmp_path, n) for n in range(6)])
    options = ("--epochs", 1, "--blocks", "2", "--store", store, "--json")
    trained = cedit("train", method, stream, "--out", out, *options)
    assert trained.code == 0, trained.err
    table = {key: trained.last[key] for key in ("network", "network_digest")}
    with open_session(store) as session:
        pictures = [record(tmp_path, n)["image"] for n in (8, 9)]
        session.apply([record(tmp_path, 9)], editor=method, editors={method: table})
        (entry,) = session.store.head.body["requests"]
        assert entry["outcome"] == "applied", entry
        assert session.ask(QUESTION, 1, pictures[1:]) == record(tmp_path, 9)["target_new"]
        (revision,) = (r for r in session.store.revisions() if r.patch)
        assert all(step.is_same for step in recompute(session, [revision]))


def test_the_gate_of_ke_reads_a_picture_as_its_states(seeing: Path, tmp_path: Path) -> None:
    with init(tmp_path / "store", NewStore(str(seeing), task={"name": "multimodal"})) as session:
        paths = [record(tmp_path, n)["image"] for n in (1, 2)]
        prompts = [session.shown(QUESTION, [path]) for path in paths]
        read = [
            KeNetwork.condition(session.site, session.task.encode(prompt, TARGET))
            for prompt in prompts
        ]
        (digest,) = digests_in(str(prompts[0]))
        states = session.task.sight.prefix(digest)
        places = len(session.task.question(QUESTION).ids)
        assert torch.equal(read[0][-places - len(states) : -places], states)
        assert torch.equal(read[0][-places:], read[1][-places:])
        assert not torch.equal(read[0], read[1])
