"""A long run needs no more at its end than at its beginning."""

from __future__ import annotations


def test_a_long_run_stays_as_it_was(short_form):
    short_form("soak")
