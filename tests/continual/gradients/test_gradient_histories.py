"""Edits by gradients among edits of other kinds: exact, resumable, reversible, saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from continual.history.rehearsing import recompute
from continual.history.replaying import rebuild, verify
from continual.session import Session, open_session
from tests import tiny_language as language
from tests.continual.conftest import Make, reopened
from tests.continual.test_mixed_history import (
    apply,
    corrections,
    folder,  # noqa: F401
    fresh,  # noqa: F401
    is_exact,
)

MIXTURE: tuple[tuple[tuple[int, int], str, int], ...] = (
    ((0, 2), "tpatcher", 1),
    ((2, 5), "ultraedit", 1),
    ((5, 8), "memit", 3),
    ((8, 11), "ultraedit", 3),
    ((11, 12), "tpatcher", 1),
)


def apply_mixture(session: Session) -> None:
    for (first, last), editor, size in MIXTURE:
        steps = apply(session, corrections(first, last), editor, batch_size=size)
        is_applied = any(o.outcome == "applied" for step in steps for o in step.outcomes)
        assert is_applied or editor == "tpatcher"  # the last one is right already, or fails
        assert is_exact(session), editor


def test_a_mixture_is_exact_and_comes_back_to_the_same_bits(
    fresh: Session,  # noqa: F811
) -> None:
    apply_mixture(fresh)
    revisions = list(fresh.store.revisions())
    assert all(state.is_same for state in rebuild(fresh, revisions))
    made = list(recompute(fresh, fresh.store.lineage("head")))
    assert len(made) == len(revisions) - 1
    assert [m.difference for m in made if not m.is_same] == []
    path = fresh.store.path
    fresh.close()
    assert verify(path) == []
    with open_session(path) as session:
        for revision in (revisions[4], revisions[2], revisions[-1], revisions[0]):
            session.stand_at(revision)
            assert session.edited.fingerprint == revision.fingerprint


def test_a_reverted_edit_leaves_no_row_and_the_rest_as_it_was(
    fresh: Session,  # noqa: F811
) -> None:
    apply_mixture(fresh)
    identity = next(o.id for o in outcomes_by(fresh, "ultraedit"))
    path = fresh.edited.anatomy.down_path(fresh.edited.anatomy.last)
    rows = len(fresh.edited.matrix(path).gradient_rows)
    fresh.revert(identity)
    assert is_exact(fresh)
    session = reopened(fresh)
    assert len(session.edited.matrix(path).gradient_rows) < rows
    assert session.edited.fingerprint == session.store.head.fingerprint
    session.close()


def outcomes_by(session: Session, editor: str) -> list[Any]:
    from continual.recheck.retention import outcomes_of

    steps = session.store.lineage("head")
    return [o for step in steps for o in outcomes_of(step.body) if o.editor == editor]


@pytest.mark.parametrize("form", ["transformers", "peft"])
def test_edits_by_gradients_are_saved_for_others(
    form: str, made: Make, knowing_model: Path, probe_files: dict[str, Path], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft") if form == "peft" else None
    session = made(knowing_model, watch={"texts": 0, "neighbours": 0}, **probe_files)
    session.apply([language.correction(n) for n in (21, 22)], editor="ultraedit")
    assert session.in_force == 2
    saved = session.save(tmp_path / "saved", form)
    assert saved.unexpected == () and saved.facts["probes"]["edit"]["turned"] == 0
    source = knowing_model if peft else tmp_path / "saved"
    model = hf.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    if peft is not None:
        model = peft.PeftModel.from_pretrained(model, str(tmp_path / "saved"))
    ids = language.tokenizer()([language.ask(n) for n in (21, 22)], return_tensors="pt")
    with torch.no_grad():
        one = model(input_ids=ids["input_ids"]).logits
        other = session.model(input_ids=ids["input_ids"]).logits
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
