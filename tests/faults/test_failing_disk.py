"""A disk that fails, is full, or forbids is met by name, and changes nothing that was there."""

from __future__ import annotations


def test_a_disk_that_fails_is_named_and_harmless(short_form):
    short_form("failing-disk")
