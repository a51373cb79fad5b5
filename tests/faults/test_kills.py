"""Killed at any moment, a store and a run of `cedit apply` keep all that they acknowledged."""

from __future__ import annotations

from benchmarks.faults import kills


def test_every_kill_leaves_what_was_acknowledged(forms):
    forms(kills)
