"""cedit.toml holds what it was given, and says what it is."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store import config
from store.errors import FormatVersionError, IntegrityError, NoStore, StoreError

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
VALUES = (
    TEXT
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.lists(TEXT, max_size=3)
)
TABLES = st.dictionaries(TEXT, st.dictionaries(TEXT, VALUES, max_size=4), max_size=3)


@given(TABLES.filter(lambda tables: not {"format", "lmdb"} & tables.keys()))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_settings_are_read_as_they_were_written(tmp_path, tables):
    config.write(tmp_path, tables)
    assert config.read(tmp_path) == tables


def test_a_setting_of_none_is_left_out(tmp_path):
    config.write(tmp_path, {"name": "n", "task": {"label": None, "nested": {"deep": 1}}})
    assert config.read(tmp_path) == {"name": "n", "task": {"nested": {"deep": 1}}}


@pytest.mark.parametrize("settings_", [{"format": 2}, {"model": {"x": object()}}])
def test_what_cannot_be_kept_is_refused(tmp_path, settings_):
    with pytest.raises(StoreError):
        config.write(tmp_path, settings_)
    assert not config.exists(tmp_path)


@pytest.mark.parametrize("text", ["format = 9\nlmdb = 0", "format = 4\nlmdb = 1"])
def test_another_format_is_refused_by_name(tmp_path, text):
    (tmp_path / config.FILE_NAME).write_text(text)
    with pytest.raises(FormatVersionError, match="this cedit reads"):
        config.read(tmp_path)


@pytest.mark.parametrize("data", [b"\xff", b"format", b"", b"format = 3"])
def test_a_file_that_says_nothing_is_damaged(tmp_path, data):
    (tmp_path / config.FILE_NAME).write_bytes(data)
    with pytest.raises(IntegrityError, match=r"cedit\.toml"):
        config.read(tmp_path)


def test_no_file_is_no_store(tmp_path):
    with pytest.raises(NoStore):
        config.read(tmp_path)
