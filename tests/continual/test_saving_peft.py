"""An adapter is loaded and merged by peft alone, and answers as the edited model does."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch import Tensor

from continual.errors import CeditError
from continual.patches.low_rank import Factors
from continual.saving import CannotSave
from continual.saving.peft_form import reduced
from continual.session import Session
from tests import tiny_language as language
from tests.continual.conftest import Make

EPS = torch.finfo(torch.float32).eps


def products(count: int, inputs: int, outputs: int, rank: int) -> list[Factors]:
    """Updates of one matrix, all of them within one space of so many dimensions."""
    generator = torch.Generator().manual_seed(count)
    rows = torch.randn(rank, outputs, generator=generator)
    return [
        Factors(
            torch.randn(inputs, 2, generator=generator),
            torch.randint(-3, 4, (2, rank), generator=generator).float() @ rows,
        )
        for _ in range(count)
    ]


def summed(parts: Sequence[Factors]) -> Tensor:
    """The sum of the products, written out in float64."""
    total = torch.zeros(len(parts[0].left), parts[0].right.shape[1], dtype=torch.float64)
    for part in parts:
        for column in range(part.left.shape[1]):
            total += torch.outer(part.left[:, column].double(), part.right[column].double())
    return total


@pytest.mark.parametrize(("count", "rank"), [(1, 2), (3, 2), (20, 7), (40, 12)])
def test_many_updates_come_to_their_exact_rank(count: int, rank: int) -> None:
    parts = products(count, 24, 12, rank)
    down, up = reduced(parts)
    dense = summed(parts)
    assert len(down) == up.shape[1] == int(torch.linalg.matrix_rank(dense))
    error = (up.double() @ down.double()).T - dense
    assert float(error.abs().max()) <= 4 * EPS * float(dense.norm())


@torch.no_grad()
def logits(model: Any) -> Tensor:
    ids = language.tokenizer()([language.ask(n) for n in range(6)], return_tensors="pt")
    found: Tensor = model.eval()(input_ids=ids["input_ids"], use_cache=False).logits
    return found


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_peft_loads_the_corrections(name: str, made: Make, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = language.save_decoder(tmp_path / "model", language.decoder(name))
    session = made(model)
    session.apply([language.correction(n) for n in (1, 2, 3)], editor="memit")
    session.apply([language.correction(4)], editor="memit")
    in_force = session.in_force
    assert in_force >= 2
    saved = session.save(tmp_path / "adapter", "peft")
    assert saved.unexpected == () and saved.facts["probes"]["edit"]["turned"] == 0
    assert saved.facts["rank"] == in_force
    base = hf.AutoModelForCausalLM.from_pretrained(model)
    with_adapter = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    beside, edited = logits(with_adapter), logits(session.model)
    merged = logits(with_adapter.merge_and_unload(safe_merge=True))
    for found in (beside, merged):
        assert float((found - edited).abs().max()) < 256 * EPS * float(edited.abs().max())
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert config["fan_in_fan_out"] is (name == "gpt2")
    assert config["r"] == config["lora_alpha"] == in_force
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {t.shape[0] for n, t in tensors.items() if ".lora_A." in n} == {in_force}
    card = (tmp_path / "adapter" / "README.md").read_text("utf-8")
    assert "base_model_relation: adapter" in card


def test_an_adapter_of_other_edits_is_refused_and_the_other_form_named(
    made: Make, random_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    session = made(random_model)
    session.apply([language.correction(1)], editor="memit")
    session.apply([language.correction(2)], editor="tpatcher")
    session.apply([language.correction(3)], editor="ft-last")
    assert session.in_force == 3
    with pytest.raises(CannotSave) as refused:
        session.save(tmp_path / "out", "peft")
    for part in ("--without neurons", "--without dense", "--as transformers"):
        assert part in str(refused.value)
    saved = session.save(tmp_path / "out", "peft", without=["neurons", "dense"])
    prompts = {c["id"]: c["prompt"] for c in saved.facts["corrections"]}
    assert language.ask(2) in {prompts[i] for i in saved.facts["lost"]}


def test_a_rank_that_no_server_takes_is_refused(
    made: Make, random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    session = made(random_model)
    session.apply([language.correction(n) for n in (1, 2)], editor="memit")
    assert session.in_force == 2
    monkeypatch.setattr("continual.saving.peft_form.RANK_MAX", 1)
    with pytest.raises(CannotSave, match=r"of rank 2.*--as transformers"):
        session.save(tmp_path / "out", "peft")
    assert list(tmp_path.glob("*out*")) == []


def test_a_base_without_edits_has_no_adapter(knowing: Session, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    with pytest.raises(CannotSave, match="no low-rank edit"):
        knowing.save(tmp_path / "out", "peft")


def test_without_peft_the_extra_is_named(
    knowing: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(CeditError, match=r"pip install 'cedit\[peft\]'"):
        knowing.save(tmp_path / "out", "peft")
