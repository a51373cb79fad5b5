"""A long run needs no more at its end than at its beginning."""

from __future__ import annotations

from benchmarks.faults import soak


def test_a_long_run_stays_as_it_was(forms):
    forms(soak)
