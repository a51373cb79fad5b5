"""A base in bfloat16 or float16 is corrected, and goes back to its own bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from continual.model import tensor_bytes
from continual.new_store import NewStore, init
from continual.session import Session, open_session
from tests import tiny_language as language
from tests.continual.conftest import probes_of, write_lines
from tests.tiny_memories import WordScope

SETTINGS = {
    "memit": {"place": "end", "clamp_norm_factor": 30.0, "drift_max": 1e6, "contexts": 0},
    "lookup": {"place": "end", "clamp_norm_factor": 30.0, "contexts": 0},
}
TEXTS = [f"{language.ask(c, p)} {language.capital(c)}" for c in range(12) for p in range(2)]
REQUEST = language.correction(20)
IDS = language.tokenizer()(REQUEST["prompt"], return_tensors="pt")["input_ids"]


def state_of(session: Session) -> dict[str, bytes]:
    return {name: tensor_bytes(tensor) for name, tensor in session.model.state_dict().items()}


def logits_of(session: Session) -> Tensor:
    with torch.no_grad():
        logits: Tensor = session.model(input_ids=IDS).logits
    return logits


@pytest.mark.parametrize("editor", ["tpatcher", "lookup", "memit", "serac"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_correction_is_applied_and_taken_back_bit_for_bit(
    scope: WordScope, reading_model: Path, tmp_path: Path, dtype: str, editor: str
) -> None:
    probes = write_lines(tmp_path / "train.jsonl", probes_of(range(10), 0))
    new = NewStore(
        str(reading_model),
        dtype=dtype,
        train_probes=probes,
        watch={"texts": 0},
        editors=SETTINGS,
    )
    with init(tmp_path / "store", new) as session:
        list(session.statistics.collect(TEXTS))
        bare, logits = state_of(session), logits_of(session)
        assert logits.dtype == getattr(torch, dtype)
        (step,) = session.apply([REQUEST], chain=(editor,))
        assert [o.outcome for o in step.outcomes] == ["applied"], step.outcomes
        assert session.ask(REQUEST["prompt"], tokens_max=1) == REQUEST["target_new"]
        corrected = logits_of(session)
        assert torch.equal(corrected, logits) == (editor == "serac")
        session.rollback("base")
        assert state_of(session) == bare
        assert torch.equal(logits_of(session), logits)
        session.rollback(step.revision.id)
    with open_session(tmp_path / "store") as again:
        assert again.edited.fingerprint == step.revision.fingerprint
        assert torch.equal(logits_of(again), corrected)
        assert again.ask(REQUEST["prompt"], tokens_max=1) == REQUEST["target_new"]
