"""A model whose blocks lie on several devices, or on the disk, is corrected as a whole one is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from continual import placement
from continual.base import PretrainedBase, load_base
from continual.effects import FACTORS
from continual.errors import ModelError
from continual.model import EditedModel
from continual.new_store import NewStore, init
from continual.placement import device_map_lines
from continual.session import Session, open_session
from continual.storage import at_hand, device_of, input_device, obstacle
from tests import tiny_language as language

pytest.importorskip("accelerate")

FAR = {
    "place": "end",
    "clamp_norm_factor": 30.0,
    "drift_max": 1e6,
    "contexts": 0,
    "steps_max": 80,
    "blocks": [0, 1],
}
"""Settings for a model that knows nothing, in which any value has to be far."""
SPLIT = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "lm_head": "disk",
}
IDS = language.tokenizer()(language.ask(3), return_tensors="pt")["input_ids"]
TEXTS = [f"{language.ask(c, p)} {language.capital(c)}" for c in range(12) for p in range(2)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    return language.save_decoder(folder, language.decoder("llama"))


@pytest.fixture(scope="module")
def map_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("maps") / "split.json", SPLIT)


def written(path: Path, device_map: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(device_map))
    return path


def split(llama: Path, device_map: Mapping[str, Any] = SPLIT, **more: Any) -> PretrainedBase:
    lines = [f"{module} {place}" for module, place in device_map.items()]
    return load_base(llama, device_map=lines, **more)


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=IDS).logits
    return logits


def made(llama: Path, place: Path, device_map: str) -> Session:
    new = NewStore(
        str(llama), device_map=device_map, watch={"texts": 0}, editors={"memit": FAR, "lookup": {}}
    )
    session = init(place, new)
    list(session.statistics.collect(TEXTS))
    return session


def test_it_is_the_same_model_with_the_same_anatomy(llama: Path) -> None:
    whole, base = load_base(llama), split(llama)
    assert base.fingerprint == whole.fingerprint
    assert base.anatomy == whole.anatomy
    assert torch.equal(logits_of(base.model), logits_of(whole.model))
    down = base.anatomy.down_module(base.model, 1)
    assert "offloaded" in obstacle(down.weight)
    assert device_of(down) == input_device(base.model) == torch.device("cpu")
    with at_hand(down):
        assert torch.equal(down.weight, whole.anatomy.down_module(whole.model, 1).weight)
    assert down.weight.is_meta
    assert torch.equal(EditedModel(base).weight(1).base, whole.anatomy.down_weight(whole.model, 1))


def test_it_runs_in_half_precision_by_files_of_its_own(llama: Path, tmp_path: Path) -> None:
    whole = load_base(llama, dtype="bfloat16")
    base = split(llama, dtype="bfloat16", offload=tmp_path)
    assert torch.equal(logits_of(base.model), logits_of(whole.model))


@pytest.mark.parametrize("editor", ["tpatcher", "lookup", "memit"])
def test_a_correction_comes_to_the_same_answers_and_is_taken_back_bit_for_bit(
    llama: Path, map_file: Path, tmp_path: Path, editor: str
) -> None:
    request = language.correction(3)
    with made(llama, tmp_path / "whole", "") as whole:
        (step,) = whole.apply([request], chain=(editor,))
        assert [o.outcome for o in step.outcomes] == ["applied"]
        expected = [whole.ask(language.ask(c), tokens_max=2) for c in range(8)]
    with made(llama, tmp_path / "split", str(map_file)) as session:
        lines = session.store.settings["model"]["device_map"]
        assert lines == [f"{module} {place}" for module, place in SPLIT.items()]
        bare = logits_of(session.model)
        (step,) = session.apply([request], chain=(editor,))
        assert [o.outcome for o in step.outcomes] == ["applied"]
        assert session.edited.beside.get(FACTORS, 0) == (editor == "memit")
        corrected = logits_of(session.model)
        assert not torch.equal(corrected, bare)
        assert [session.ask(language.ask(c), tokens_max=2) for c in range(8)] == expected
        session.rollback("base")
        assert torch.equal(logits_of(session.model), bare)
    with open_session(tmp_path / "split") as again:
        again.rollback(step.revision.id)
        assert again.edited.fingerprint == step.revision.fingerprint
        assert torch.equal(logits_of(again.model), corrected)


def test_what_would_change_a_block_on_the_disk_is_refused_by_name(
    llama: Path, map_file: Path, tmp_path: Path
) -> None:
    with (
        made(llama, tmp_path / "store", str(map_file)) as session,
        pytest.raises(ModelError, match=r"ft-last changes .* is kept away .*memit"),
    ):
        session.apply([language.correction(3)], chain=("ft-last",))


def test_two_names_of_the_cpu_are_one_device(llama: Path) -> None:
    device_map = {**dict.fromkeys(SPLIT, "cpu"), "model.layers.1": "cpu:0"}
    base = split(llama, device_map)
    assert device_of(base.anatomy.block(base.model, 1)).type == "cpu"
    assert torch.equal(logits_of(base.model), logits_of(load_base(llama).model))
    assert torch.zeros(1, device="cpu:0").device == torch.zeros(1, device="cpu").device


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is no JSON object of modules and their devices"),
        ("{", r"cannot be read .*give a JSON file"),
        ('{"": ["cpu"]}', "is no JSON object of modules and their devices"),
    ],
)
def test_a_map_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "map.json"
    file.write_text(text)
    with pytest.raises(ModelError, match=message):
        device_map_lines(str(file))


def test_two_places_for_a_model_are_refused(llama: Path, map_file: Path, tmp_path: Path) -> None:
    new = NewStore(str(llama), device="cuda", device_map=str(map_file))
    with pytest.raises(ModelError, match="give one of --device and --device-map"):
        init(tmp_path / "store", new)


def test_a_device_or_a_library_that_is_missing_is_named(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="'nowhere' cannot be used here"):
        split(llama, {"": "nowhere"})
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'cedit\[large\]'"):
        split(llama)
