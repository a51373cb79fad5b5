"""What the base writes for key statistics that nobody gave text for."""

from __future__ import annotations

from continual.listening import Listener
from continual.session import Session
from continual.watch.own_text import TOKENS_LEAST, OwnText
from tests import tiny_language as language


def test_it_is_the_same_whenever_it_is_read_and_says_that_it_is_written(knowing: Session) -> None:
    notes: list[str] = []
    first = OwnText(knowing.site, 0, Listener(notes.append))
    texts = list(first)
    assert list(first) == texts == list(OwnText(knowing.site, 0, Listener()))
    assert list(OwnText(knowing.site, 1, Listener())) != texts
    assert "cedit train stats --text FILE" in notes[0]
    read = language.tokenizer()
    counts = [len(read(text)["input_ids"]) for text in texts]
    assert sum(counts) >= TOKENS_LEAST > sum(counts[:-1])


def test_it_is_the_base_that_writes_whatever_is_on(knowing: Session) -> None:
    texts = list(OwnText(knowing.site, 0, Listener()))
    knowing.apply([language.correction(c) for c in range(4)], editor="ft-last")
    assert knowing.edited.fingerprint != knowing.edited.base.fingerprint
    assert list(OwnText(knowing.site, 0, Listener())) == texts


def test_statistics_that_nobody_gave_are_collected_of_it(knowing: Session) -> None:
    notes: list[str] = []
    knowing.listener.note = notes.append
    knowing.statistics.require([0, 1])
    found = [knowing.statistics.get(block) for block in (0, 1)]
    assert all(one.count >= TOKENS_LEAST for one in found)
    assert len(notes) == 1  # one pass for both
