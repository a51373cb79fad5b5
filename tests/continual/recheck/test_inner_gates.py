"""Neurons at an inner block are seen: every probe is measured again, as from scratch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from continual.effects import Reach
from continual.errors import EditError
from continual.patches.neuron import NeuronPatch
from continual.session import Session
from tests import tiny_language as language
from tests.continual.conftest import write_lines
from tests.tiny_language import CAPITALS, LABELS, ask, capital, correction, part

TASKS = ("causal", "seq2seq", "classification")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "causal": language.save_decoder(folder / "causal", language.trained_decoder()),
        "seq2seq": language.save_answering(folder / "seq2seq", "t5"),
        "classification": language.save_classifier(folder / "labels", "bert"),
    }


@pytest.fixture(params=TASKS)
def session(request, made, models, tmp_path) -> Session:
    task = request.param
    is_causal = task != "classification"
    right = capital if is_causal else part
    probes = [{"prompt": ask(c, 1), "answer": right(c)} for c in range(10, 30)]
    opened = made(
        models[task],
        task={"name": task},
        train_probes=write_lines(tmp_path / "train.jsonl", probes),
    )
    wrong = CAPITALS[3] if is_causal else LABELS[0]
    opened.apply([correction(c, wrong) for c in (0, 1)], editor="tpatcher")
    return opened


def inner(session: Session, subjects: tuple[str, ...] = ()) -> NeuronPatch:
    """Three strong neurons at the first block, which fire on some tokens and not on others."""
    width = session.edited.anatomy.width
    draw = torch.Generator().manual_seed(1)
    keys, values = (torch.randn(3, width, generator=draw) for _ in range(2))
    return NeuronPatch(0, keys, torch.full((3,), -0.5), 20.0 * values, subjects=subjects)


def from_scratch(session: Session) -> dict[str, bool]:
    ledger = session.standing.ledger
    entries = [entry for key in ledger.outcomes() if (entry := ledger.entry(key)) is not None]
    right = session.site.judge_in_full([entry.encoding for entry in entries])
    return {entry.key: found for entry, found in zip(entries, right, strict=True)}


def test_the_ledger_follows_neurons_at_an_inner_block(session):
    ledger = session.standing.ledger
    before, state = ledger.outcomes(), session.edited.rows_state
    session.edited.put([inner(session)])
    last = session.site.block
    assert session.edited.reach.lowest(last) == 0
    assert session.edited.rows_state != state
    previewed = {entry.key for entry in ledger.would_break(["edit", "train"])}
    turned = ledger.advance()
    now = ledger.outcomes()
    assert now == from_scratch(session)
    assert turned and now != before
    assert previewed == {key for key, right in turned.items() if not right}
    session.edited.take_off(session.edited.depth - 1)
    ledger.advance()
    assert ledger.outcomes() == before == from_scratch(session)
    assert session.edited.rows_state == state


def test_neurons_at_an_inner_block_cannot_ask_for_a_subject(session):
    depth = session.edited.depth
    with pytest.raises(EditError, match="block 0 ask for a subject"):
        session.edited.put([inner(session, ("a", "b", "c"))])
    assert session.edited.depth == depth


def test_a_reach_is_joined_and_says_where_rows_move():
    joined = Reach(gates=frozenset({3})) | Reach(blocks=frozenset({2, 5}), records=True)
    assert joined == Reach(frozenset({3}), frozenset({2, 5}), records=True)
    assert joined.lowest(5) == 2
    assert Reach(gates=frozenset({3})).lowest(3) is None
    assert Reach(gates=frozenset({1, 3})).lowest(3) == 1
    assert not Reach(records=True).moves(3)
