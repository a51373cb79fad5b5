"""Whatever is done in whatever order, the history is what a plain model of it says."""

from __future__ import annotations


def test_a_history_is_what_was_done(short_form):
    short_form("histories")
