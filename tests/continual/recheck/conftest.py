"""A store on a tiny model of each kind, with two corrections, for gates at any place."""

from __future__ import annotations

import pytest

from continual.session import Session
from tests.continual.conftest import TASKS, write_lines
from tests.tiny_language import CAPITALS, LABELS, ask, capital, correction, part


@pytest.fixture(params=TASKS)
def gated(request, made, models, tmp_path) -> Session:
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


def from_scratch(session: Session) -> dict[str, bool]:
    """The outcome of every active probe, by whole passes."""
    ledger = session.run_state.ledger
    entries = [entry for key in ledger.outcomes() if (entry := ledger.entry(key)) is not None]
    right = session.site.judge_in_full([entry.encoding for entry in entries])
    return {entry.key: found for entry, found in zip(entries, right, strict=True)}
