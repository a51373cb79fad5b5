"""Whatever is done in whatever order, the history is what a plain model of it says."""

from __future__ import annotations

from benchmarks.faults import histories


def test_a_history_is_what_was_done(forms):
    forms(histories)
