"""Killed at any moment, a store and a run of `cedit apply` keep all that they acknowledged."""

from __future__ import annotations


def test_every_kill_leaves_what_was_acknowledged(short_form):
    short_form("kills")
