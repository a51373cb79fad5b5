"""The names that a program imports, and the session that it holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import cedit
import continual
from tests.cli.conftest import Cedit, made_store, model, request, store  # noqa: F401
from tests.cli.conftest import cedit as command  # noqa: F401


def test_every_name_is_there_under_both_packages() -> None:
    for name in continual.__all__:
        assert getattr(cedit, name) == getattr(continual, name), name
    assert dir(cedit) == dir(continual) == sorted(continual.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        cedit.nothing  # noqa: B018


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = "import sys, cedit; dir(cedit); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_all_errors_have_one_root() -> None:
    assert issubclass(continual.StoreError, continual.CeditError)
    with pytest.raises(continual.CeditError):
        continual.open("/nowhere/at/all")


def test_a_session_says_where_it_stands(store: Path) -> None:  # noqa: F811
    with continual.open(store) as session:
        (step,) = session.apply([request(0)])
        assert repr(step) == f"<cedit step {session.head.id[:12]} (@1): 1 of 1 applied>"
        assert step.summary()["SR"] == 1.0
        assert "<th>applied</th><td>1</td>" in step._repr_html_()
        assert repr(session).startswith(f"<cedit session on {store}: ")
        assert repr(session).endswith("(@1), 1 in force>")
        assert session.status()["seq"] == session.head.seq == 1
        assert [entry["seq"] for entry in session.log()] == [1, 0]
        assert session.show("head")["outcomes"][0]["outcome"] == "applied"
        assert [c["target_new"] for c in session.corrections()] == ["Lyon"]
        assert [c["target_new"] for c in session.corrections("COUNTRY 0")] == ["Lyon"]
        assert session.diff("base")["added"][0]["target_new"] == "Lyon"
        assert "<th>ER</th>" in session._repr_html_()
    assert repr(session) == f"<cedit session on {store}, closed>"


def test_a_closed_session_answers_nothing(store: Path) -> None:  # noqa: F811
    with continual.open(store) as session:
        session.apply([request(0)])
    with pytest.raises(continual.CeditError, match="closed"):
        session.ask(request(0)["prompt"])
    with pytest.raises(continual.CeditError, match="closed"):
        session.model  # noqa: B018


def test_a_store_is_created_and_opened(model: Path, tmp_path: Path) -> None:  # noqa: F811
    with cedit.create(tmp_path / "new", model, watch={"texts": 0, "neighbours": 0}) as session:
        assert session.head.seq == 0
    with cedit.open(tmp_path / "new", writable=False) as session:
        assert session.status()["requests_active"] == 0
