"""Whatever is given to it, cedit answers with words and not with a traceback."""

from __future__ import annotations

from benchmarks.faults import hostile


def test_nothing_hostile_shows_a_traceback(forms):
    forms(hostile)
