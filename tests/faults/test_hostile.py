"""Whatever is given to it, cedit answers with words and not with a traceback."""

from __future__ import annotations


def test_nothing_hostile_shows_a_traceback(short_form):
    short_form("hostile")
