"""A plain forward of a model with edits in memory: it is without them, and says so."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from continual.requests import Request
from continual.session import Session
from tests.tiny_language import ask
from tests.tiny_memories import WordScope, about

COUNTRY = 3


def remembered(session: Session, scope: WordScope) -> None:
    (step,) = session.apply_requests(
        [Request.from_json(about(COUNTRY))], session.settings(chain=("ike",))
    )
    assert step.outcomes[0].outcome == "applied"


def warned(call: Callable[[], object]) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    return [warning for warning in seen if "knows nothing of the edits" in str(warning.message)]


def test_a_forward_without_the_edits_in_memory_says_so_once(
    reader: Session, scope: WordScope
) -> None:
    inputs = reader.tokenizer(ask(COUNTRY), return_tensors="pt")
    assert not warned(lambda: reader.model(**inputs))
    assert not warned(lambda: remembered(reader, scope))
    assert not warned(lambda: reader.model.generate(**inputs, max_new_tokens=2))
    assert not warned(lambda: reader.ask(ask(COUNTRY)))
    (warning,) = warned(lambda: reader.model(**inputs))
    assert warning.filename == __file__
    assert not warned(lambda: reader.model(**inputs))
