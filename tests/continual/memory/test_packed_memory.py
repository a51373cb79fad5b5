"""Records are answered beside a packed base, and taken out again."""

from __future__ import annotations

from pathlib import Path

import pytest

from continual.new_store import NewStore, init
from continual.session import open_session
from tests import tiny_language as language
from tests.continual.conftest import probes_of, write_lines
from tests.tiny_memories import WordScope
from tests.tiny_packed import PACKINGS, can_pack, save_packed

REQUEST = language.correction(20)


@pytest.mark.parametrize("editor", ["serac", "ike"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_record_is_answered_beside_it_and_taken_out(
    scope: WordScope, reading_model: Path, tmp_path: Path, packing: str, editor: str
) -> None:
    if not can_pack(packing):
        pytest.skip(f"the packages of {packing} are not installed")
    packed = save_packed(reading_model, tmp_path / "packed", packing)
    probes = write_lines(tmp_path / "train.jsonl", probes_of(range(10), 0))
    new = NewStore(str(packed), train_probes=probes, watch={"texts": 0})
    with init(tmp_path / "store", new) as session:
        before = session.ask(REQUEST["prompt"], tokens_max=1)
        (step,) = session.apply([REQUEST], chain=(editor,))
        assert [o.outcome for o in step.outcomes] == ["applied"], step.outcomes
        assert session.ask(REQUEST["prompt"], tokens_max=1) == REQUEST["target_new"] != before
        session.rollback("base")
        assert session.ask(REQUEST["prompt"], tokens_max=1) == before
        session.rollback(step.revision.id)
    with open_session(tmp_path / "store") as again:
        assert again.edited.fingerprint == step.revision.fingerprint
        assert again.ask(REQUEST["prompt"], tokens_max=1) == REQUEST["target_new"]
