"""A base in 8 or 4 bits is corrected beside its packed matrices, whose bytes never change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from continual import model_files
from continual.base import load_base
from continual.editors.ke.network import KeNetwork
from continual.editors.malmen.network import MalmenNetwork
from continual.editors.mend.network import MendNetwork
from continual.errors import CeditError, ModelError
from continual.gradients.config import GradientConfig
from continual.gradients.matrices import chosen_matrices
from continual.gradients.networks import EditorNetwork, NetworkForm
from continual.model import EditedModel, tensor_bytes
from continual.new_store import NewStore, init
from continual.patches.low_rank import Factors, LowRankPatch
from continual.requests import Request
from continual.session import Session, open_session
from continual.storage import is_packed
from tests import tiny_language as language
from tests.continual.gradients.networks import file_of, network_of
from tests.tiny_packed import PACKINGS, can_pack, save_packed

FAR = {"place": "end", "clamp_norm_factor": 30.0, "drift_max": 1e6, "contexts": 0, "steps_max": 80}
"""Settings for a model that knows nothing, in which any value has to be far."""
FAMILY = ("memit", "emmet", "alphaedit", "rome")
SETTINGS: Mapping[str, Mapping[str, Any]] = dict.fromkeys(FAMILY, FAR)
BESIDE = ("tpatcher", "lookup", "grace", *FAMILY)
DENSE = ("ft-last", "ft-all", "ft-l")
TEXTS = [f"{language.ask(c, p)} {language.capital(c)}" for c in range(12) for p in range(2)]
IDS = language.tokenizer()(language.ask(3), return_tensors="pt")["input_ids"]


@pytest.fixture(scope="module", params=PACKINGS)
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not can_pack(request.param):
        pytest.skip(f"the packages of {request.param} are not installed")
    folder = tmp_path_factory.mktemp("packed")
    plain = language.save_decoder(folder / "plain", language.decoder("llama"))
    return save_packed(plain, folder / request.param, request.param)


@pytest.fixture
def session(packed: Path, tmp_path: Path) -> Iterator[Session]:
    new = NewStore(str(packed), watch={"texts": 0}, editors=SETTINGS)
    with init(tmp_path / "store", new) as session:
        list(session.statistics.collect(TEXTS))
        yield session


def own_bytes(model: Any) -> dict[str, bytes]:
    """The bytes of everything that a model's file would have, inner tensors included."""
    return {
        name: tensor_bytes(tensor)
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor)
    }


def digest(directory: Path) -> str:
    files = sorted(directory.glob("*"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=IDS).logits
    return logits


def test_its_matrices_are_packed(packed: Path) -> None:
    base = load_base(packed)
    assert is_packed(base.anatomy.down_module(base.model, 0).weight)
    assert base.anatomy.is_at_ffn


@pytest.mark.parametrize("editor", BESIDE)
def test_a_correction_stands_beside_it_and_is_taken_back_bit_for_bit(
    session: Session, packed: Path, editor: str
) -> None:
    files, bytes_before = digest(packed), own_bytes(session.model)
    with session.edited:
        logits_before = logits_of(session.model)
    request = language.correction(3)
    (step,) = session.apply([request], chain=(editor,))
    assert [o.outcome for o in step.outcomes] == ["applied"], step.outcomes
    assert session.ask(request["prompt"], tokens_max=1) == request["target_new"]
    assert own_bytes(session.model) == bytes_before
    corrected = logits_of(session.model)
    assert not torch.equal(corrected, logits_before)
    session.rollback("base")
    assert own_bytes(session.model) == bytes_before
    assert torch.equal(logits_of(session.model), logits_before)
    session.rollback(step.revision.id)
    assert torch.equal(logits_of(session.model), corrected)
    path = session.store.path
    session.close()
    with open_session(path) as again:
        assert again.edited.fingerprint == step.revision.fingerprint
        assert torch.equal(logits_of(again.model), corrected)
    assert digest(packed) == files


@pytest.mark.parametrize(
    ("editor", "kind"), [("mend", MendNetwork), ("malmen", MalmenNetwork), ("ke", KeNetwork)]
)
def test_the_updates_of_a_network_stand_beside_it(
    session: Session, tmp_path: Path, editor: str, kind: type[EditorNetwork]
) -> None:
    """MEND's and MALMEN's begin at the gradient itself, and KE's at nothing."""
    matrices = chosen_matrices(session.edited, GradientConfig(blocks=(1,)))
    form = NetworkForm({m.path: m.shape for m in matrices}, kind.size(session.site, 5))
    network = network_of(session, kind, matrices) if kind is KeNetwork else kind(form)
    table = {**file_of(session, network, tmp_path / "network.safetensors"), "scale_max": 2**20}
    bytes_before, logits_before = own_bytes(session.model), logits_of(session.model)
    settings = session.settings(chain=(editor,), editors={editor: table})
    (step,) = session.apply_requests([Request.from_json(language.correction(3))], settings)
    assert [o.outcome for o in step.outcomes] == ["applied"], step.outcomes
    assert own_bytes(session.model) == bytes_before
    assert not torch.equal(logits_of(session.model), logits_before)
    session.rollback("base")
    assert torch.equal(logits_of(session.model), logits_before)


def test_one_correction_of_several_goes_and_the_others_stay(session: Session) -> None:
    requests = [language.correction(country) for country in (3, 4)]
    steps = [step for r in requests for step in session.apply([r], chain=("memit",))]
    outcomes = [o for step in steps for o in step.outcomes]
    assert [o.outcome for o in outcomes] == ["applied", "applied"]
    session.revert(outcomes[0].id)
    assert session.ask(requests[1]["prompt"], tokens_max=1) == requests[1]["target_new"]


@pytest.mark.parametrize("editor", DENSE)
def test_what_would_change_it_as_a_whole_is_refused_by_name(session: Session, editor: str) -> None:
    with pytest.raises(ModelError, match=rf"{editor} changes .* is packed .*memit"):
        list(session.apply([language.correction(3)], chain=(editor,)))
    assert session.store.head.operation == "base"


def test_knowledge_neurons_are_refused_by_name(session: Session) -> None:
    with pytest.raises(ModelError, match=r"is packed .*kn, .*Editors that need no rows: tpatcher"):
        list(session.apply([language.correction(3)], chain=("kn",)))


def test_factors_beside_are_the_sum_that_a_plain_matrix_would_have(packed: Path) -> None:
    edited = EditedModel(load_base(packed))
    generator = torch.Generator().manual_seed(0)
    weight = edited.weight(1)
    inputs, outputs = weight.shape
    parts = [
        Factors(torch.randn(inputs, n, generator=generator), torch.randn(n, outputs).mul(0.01))
        for n in (2, 3)
    ]
    path = edited.anatomy.down_path(1)
    keys = torch.randn(5, inputs, generator=generator)
    module = edited.anatomy.down_module(edited.model, 1)
    with edited, torch.no_grad():
        plain = module(keys)
        for part in parts:
            edited.put([LowRankPatch({path: part}, {path: 1})])
        products = [keys.double() @ part.left.double() @ part.right.double() for part in parts]
        torch.testing.assert_close(module(keys), (plain.double() + sum(products)).float())
        first = edited.fingerprint
        edited.take_off(1)
        edited.put([LowRankPatch({path: parts[1]}, {path: 1})])
        assert edited.fingerprint == first
        with edited.bare():
            assert torch.equal(module(keys), plain)
        edited.take_off(0)
        assert torch.equal(module(keys), plain)
    rows = torch.eye(inputs)
    torch.testing.assert_close(weight.base, module(rows).float(), atol=0, rtol=0)


def test_gradients_come_through_it(packed: Path) -> None:
    base = load_base(packed)
    edited = EditedModel(base)
    module, weight = base.anatomy.down_module(base.model, 1), edited.weight(1)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, weight.shape[0], generator=generator).requires_grad_()
    gradient = torch.randn(5, weight.shape[1], generator=generator)
    with torch.enable_grad():
        module(rows).backward(gradient)
    torch.testing.assert_close(rows.grad, gradient @ weight.base.T, rtol=2e-3, atol=2e-3)


def test_a_patch_without_factors_is_refused(packed: Path) -> None:
    from continual.patches.dense import DensePatch

    edited = EditedModel(load_base(packed))
    path = edited.anatomy.down_path(1)
    inputs, outputs = edited.weight(1).shape
    before = own_bytes(edited.model)
    with edited, pytest.raises(CeditError, match="only products of factors stand beside it"):
        edited.put([DensePatch({path: torch.ones(outputs, inputs)}, {path: 1})])
    assert own_bytes(edited.model) == before


def test_it_is_saved_as_an_adapter_for_the_packed_base(session: Session, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    session.apply([language.correction(3)], chain=("memit",))
    with pytest.raises(CeditError, match="save --as peft"):
        session.save(tmp_path / "out", "transformers", without=())
    assert session.save(tmp_path / "adapter", "peft", without=()) is not None


def test_a_library_that_is_missing_is_named(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"not installed: pip install 'cedit\[\w+\]'\. Or give"):
        load_base(packed)


def test_outliers_that_are_chosen_over_all_tokens_are_refused(tmp_path: Path) -> None:
    if not can_pack("bitsandbytes-8"):
        pytest.skip("the packages of bitsandbytes-8 are not installed")
    plain = language.save_decoder(tmp_path / "plain", language.decoder("llama"))
    packed = save_packed(plain, tmp_path / "packed", "bitsandbytes-8")
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"]["llm_int8_threshold"] = 6.0
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"Set llm_int8_threshold to 0\.0 in its config\.json"):
        load_base(packed)


def test_another_number_format_than_its_own_is_refused(packed: Path) -> None:
    with pytest.raises(ModelError, match=r"is packed for float32, .*: give --dtype float32"):
        load_base(packed, dtype="bfloat16")
