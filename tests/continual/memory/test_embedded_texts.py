"""What was embedded is kept with the store, and taken up by the very same encoder only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from continual.memory import embedded_texts
from continual.memory.encoder import SentenceEncoder
from continual.memory.scope import ThresholdScope
from continual.new_store import NewStore, init
from continual.session import open_session
from store import Store
from tests.continual.conftest import probes_of, write_lines
from tests.tiny_encoders import save_encoder
from tests.tiny_language import CAPITALS, ask
from tests.tiny_memories import about


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def session(folder: Path, reading_model: Path, tmp_path: Path, monkeypatch):
    def make(config: object) -> ThresholdScope:
        return ThresholdScope(SentenceEncoder(folder), threshold=0.999)

    monkeypatch.setattr("continual.memory.recall.make_scope", make)
    probes = write_lines(tmp_path / "train.jsonl", probes_of(range(10), 0))
    with init(tmp_path / "store", NewStore(str(reading_model), train_probes=probes)) as session:
        yield session


def forbid_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the encoder fails at any text that it was not reminded of."""
    monkeypatch.setattr("continual.memory.encoder._sentence_transformer", None)


def test_a_store_that_is_opened_again_embeds_no_text_twice(session, monkeypatch):
    (step,) = session.apply([about(20, CAPITALS[0])], editor="serac")
    assert step.outcomes[0].outcome == "applied"
    found = session.run_state.ledger.outcomes()
    session.close()
    forbid_embedding(monkeypatch)
    with open_session(session.store.path) as again:
        assert again.run_state.ledger.outcomes() == found
        assert again.answer(ask(20)).route is not None
        with pytest.raises(TypeError):
            again.answer("the capital of Erewhon is not")


def test_what_another_encoder_made_is_not_taken(session, tmp_path):
    session.apply([about(20, CAPITALS[0])], editor="serac")
    session.close()
    with Store.open(session.store.path) as store:
        same = session.edited.recall.scope.encoder
        again = SentenceEncoder(same.folder)
        embedded_texts.load(store, again)
        assert again.remembered.keys() == same.remembered.keys()
        text = next(iter(again.remembered))
        assert torch.equal(again.remembered[text], SentenceEncoder(same.folder).embed([text])[0])
        kept = store.cached(embedded_texts.NAME)
        with kept.path.open("r+b") as file:
            file.seek(-4, 2)
            file.write(b"\0\1\2\3")
        damaged = SentenceEncoder(same.folder)
        embedded_texts.load(store, damaged)
        assert not damaged.remembered


def test_a_store_without_a_memory_keeps_nothing(session):
    session.apply([about(21)], editor="tpatcher")
    session.close()
    with Store.open(session.store.path) as store:
        assert store.cached(embedded_texts.NAME) is None
