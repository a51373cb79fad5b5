"""Killed at any moment, a server keeps all that it acknowledged, once."""

from __future__ import annotations

import pytest


def test_every_kill_of_a_server_leaves_what_was_acknowledged(short_form):
    pytest.importorskip("fastapi")
    short_form("server-kills")
