"""Memory that runs out is said to have, and costs nothing that was there."""

from __future__ import annotations


def test_a_run_without_memory_says_so_and_goes_on_with_it(short_form):
    short_form("failing-memory")
