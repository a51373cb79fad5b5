"""Any number of processes read what one writes, and none of them is fooled."""

from __future__ import annotations


def test_processes_do_not_get_in_each_others_way(short_form):
    short_form("many-processes")
