"""Whatever byte of a store is damaged, `verify` names it, or nothing was kept there."""

from __future__ import annotations


def test_damage_is_named_or_harmless(short_form):
    short_form("damage")
