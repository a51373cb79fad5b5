"""`cedit consolidate`: the matrix edits in force become one patch."""

from __future__ import annotations

from pathlib import Path

import pytest

from continual.session import Session
from tests.cli.conftest import Cedit
from tests.continual.test_mixed_history import (
    apply,
    corrections,
    folder,  # noqa: F401
    fresh,  # noqa: F401
)

KEYS = {
    *("type", "revision", "seq", "editor", "requests", "replaced", "columns_before", "columns"),
    *("before", "after", "broke", "recovered", "fingerprint"),
}


@pytest.fixture
def batches(fresh: Session) -> Path:  # noqa: F811
    """A store with two batches of MEMIT and a neuron."""
    apply(fresh, corrections(0, 3), "memit")
    apply(fresh, corrections(3, 4), "tpatcher")
    apply(fresh, corrections(4, 7), "memit")
    path = fresh.store.path
    fresh.close()
    return path


def test_batches_become_one_patch_and_a_rollback_leads_back(cedit: Cedit, batches: Path) -> None:
    ran = cedit("consolidate", "--store", str(batches), "--json")
    assert ran.code == 0
    assert ran.last.keys() == KEYS
    assert (ran.last["editor"], len(ran.last["requests"]), ran.last["columns"]) == ("memit", 6, 6)
    assert ran.last["after"]["ER"] == 1.0
    log = cedit("log", "--store", str(batches)).out
    assert "consolidate" in log
    shown = cedit("show", "head", "--store", str(batches), "--json").last
    assert shown["operation"] == "consolidate"
    assert cedit("verify", "--store", str(batches)).code == 0
    assert cedit("rollback", "head~1", "--store", str(batches)).code == 0
    again = cedit("consolidate", "--store", str(batches))
    assert "2 patches made one by memit, for 6 corrections" in again.out
    assert "columns      6 before, 6 now" in again.out
    refused = cedit("consolidate", "--store", str(batches))
    assert refused.code != 0 and "nothing to consolidate: 1 patches" in refused.err


def test_a_refusal_says_why_and_an_unknown_editor_is_named(cedit: Cedit, batches: Path) -> None:
    small = cedit("consolidate", "--store", str(batches), "--set", "memit.drift_max=1e-6")
    assert small.code != 0 and "cannot be written in one batch by memit" in small.err
    unknown = cedit("consolidate", "--store", str(batches), "--editor", "mmit")
    assert unknown.code != 0 and "mmit" in unknown.err
    assert cedit("status", "--store", str(batches), "--json").last["requests_active"] == 7
