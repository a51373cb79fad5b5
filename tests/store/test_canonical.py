"""Equal records have equal bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import canonical
from store.errors import StoreError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",)))
)
TEXT = st.text(st.characters(exclude_categories=("Cs",)))
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner))


@given(JSON)
def test_what_is_written_is_read_back(value):
    assert canonical.loads(canonical.dumps(value)) == value


@given(st.dictionaries(TEXT, SCALARS))
def test_the_order_of_keys_makes_no_difference(record):
    backwards = dict(reversed(record.items()))
    assert canonical.dumps(backwards) == canonical.dumps(record)


@given(JSON)
def test_the_spelling_is_stable(value):
    data = canonical.dumps(value)
    assert canonical.dumps(canonical.loads(data)) == data


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), {1, 2}, b"bytes", "\ud800", object()]
)
def test_what_json_cannot_say_is_refused(value):
    with pytest.raises(StoreError, match="JSON"):
        canonical.dumps({"value": value})


def test_endless_records_are_refused():
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(StoreError):
        canonical.dumps(endless)


@given(st.binary())
def test_any_bytes_are_read_or_refused(data):
    try:
        canonical.loads(data)
    except ValueError:
        return


@pytest.mark.parametrize("data", [b"NaN", b"[Infinity]", b"\xff", b"", b"[" * 100_000])
def test_what_is_not_json_is_refused(data):
    with pytest.raises(ValueError, match=r"\S"):
        canonical.loads(data)
