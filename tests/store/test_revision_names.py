"""The grammar of names, ranges and tags."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.errors import StoreError, UnknownRevision
from store.revisions import Name, parse_name, parse_range, require_tag


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("head", Name("head", 0)),
        ("head~", Name("head", 1)),
        ("head~~", Name("head", 2)),
        ("head~3~2", Name("head", 5)),
        ("v1.0~0", Name("v1.0", 0)),
        ("@7~1", Name("@7", 1)),
    ],
)
def test_names_say_where_to_start_and_how_far_to_go_back(text, name):
    assert parse_name(text) == name


@given(st.text())
def test_any_text_is_a_name_or_unknown(text):
    try:
        name = parse_name(text)
    except UnknownRevision:
        return
    assert name.stem
    assert name.back >= 0


@given(st.from_regex(r"[a-z0-9@]{1,9}", fullmatch=True), st.integers(0, 10**6))
def test_steps_are_read_as_they_are_written(stem, back):
    assert parse_name(f"{stem}~{back}") == Name(stem, back)


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("a..b", ("a", "b")),
        ("..b", ("base", "b")),
        ("a..", ("a", "head")),
        ("v1.0~2..head", ("v1.0~2", "head")),
    ],
)
def test_ranges_have_two_ends(text, ends):
    assert parse_range(text) == ends


def test_a_name_is_no_range():
    with pytest.raises(UnknownRevision):
        parse_range("head")


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True))
def test_a_tag_that_is_let_through_is_found_again_as_a_name_and_in_a_range(tag):
    try:
        require_tag(tag)
    except StoreError:
        assert ".." in tag or tag.endswith(".") or tag.lower() in ("head", "base")
        return
    assert parse_name(tag) == Name(tag, 0)
    assert parse_range(f"{tag}..{tag}~1") == (tag, f"{tag}~1")


@pytest.mark.parametrize(
    "tag", ["", "head", "Base", "a..b", "a.", "-a", "a/b", "a b", "é", "a" * 65]
)
def test_tags_that_could_mislead_are_refused(tag):
    with pytest.raises(StoreError, match="can't be a tag"):
        require_tag(tag)
