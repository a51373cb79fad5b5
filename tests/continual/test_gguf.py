"""A GGUF file is a base model like any other; nothing is ever written into it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from continual import model_files
from continual.base import load_base
from continual.errors import CeditError, ModelError
from continual.new_store import NewStore, init
from continual.session import open_session
from tests.continual.conftest import write_lines

pytest.importorskip("gguf")
pytest.importorskip("accelerate")

LETTERS = {"name": "causal", "blank": "never"}  # an answer of one letter is one token
EDITORS = ("tpatcher", "grace", "memit", "ft-last")
FAR = {"place": "end", "clamp_norm_factor": 30.0, "drift_max": 1e6, "contexts": 0, "steps_max": 80}
"""Settings for a model that knows nothing, in which any value has to be far."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_gguf import write_gguf

    return write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_its_numbers_are_those_that_the_file_stands_for(file: Path) -> None:
    from tests.tiny_gguf import name_of, numbers

    expected = numbers(file)
    base = load_base(file)
    parameters = dict(base.model.named_parameters())
    assert {name_of(name) for name in parameters} == expected.keys()
    for name, parameter in parameters.items():
        assert parameter.dtype == torch.float32
        assert np.array_equal(parameter.numpy(), expected[name_of(name)].reshape(parameter.shape))
    assert base.tokenizer.decode(base.tokenizer("Zürich")["input_ids"]) == "Zürich"


def test_it_runs_in_half_precision_too(file: Path) -> None:
    assert next(load_base(file, dtype="bfloat16").model.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("editor", EDITORS)
def test_a_correction_is_made_and_taken_back_bit_for_bit(
    file: Path, tmp_path: Path, editor: str
) -> None:
    before = digest(file)
    probes = [{"prompt": f"probe {n}", "answer": "x"} for n in range(4)]
    new = NewStore(
        str(file),
        task=LETTERS,
        train_probes=write_lines(tmp_path / "probes.jsonl", probes),
        watch={"texts": 0},
        editors={"memit": FAR},
    )
    request = {"prompt": "The seat of Ubar is", "target_new": "q", "subject": "Ubar"}
    with init(tmp_path / "store", new) as session:
        bare = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
        if editor == "memit":
            texts = [f"text {n} of anything at all" for n in range(20)]
            list(session.statistics.collect(texts))
        (step,) = session.apply([request], chain=(editor,))
        assert [o.outcome for o in step.outcomes] == ["applied"]
    with open_session(tmp_path / "store") as session:
        assert session.ask(request["prompt"], tokens_max=1) == "q"
        session.rollback("base")
        state = session.model.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in bare.items())
        session.rollback(step.revision.id)
        assert session.ask(request["prompt"], tokens_max=1) == "q"
    assert digest(file) == before


def test_the_edited_model_is_saved_as_a_directory_and_not_as_an_adapter(
    file: Path, tmp_path: Path
) -> None:
    new = NewStore(str(file), task=LETTERS, watch={"texts": 0})
    with init(tmp_path / "store", new) as session:
        request = {"prompt": "The seat of Ubar is", "target_new": "q"}
        session.apply([request], chain=("ft-last",))
        saved = session.save(tmp_path / "out", "transformers", without=())
        assert saved is not None
        with pytest.raises(CeditError, match="is a GGUF file: save --as transformers"):
            session.save(tmp_path / "adapter", "peft", without=("dense",))
    loaded = load_base(tmp_path / "out")
    ids = loaded.tokenizer(request["prompt"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert loaded.tokenizer.decode(loaded.model(input_ids=ids).logits[0, -1].argmax()) == "q"


def test_another_file_under_its_name_is_refused(file: Path, tmp_path: Path) -> None:
    from tests.tiny_gguf import write_gguf

    moved = tmp_path / "model.gguf"
    moved.write_bytes(file.read_bytes())
    init(tmp_path / "store", NewStore(str(moved), watch={"texts": 0})).close()
    write_gguf(moved, seed=1)
    with pytest.raises(CeditError, match="put the right model back"):
        open_session(tmp_path / "store")


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUX" + bytes(60))
    with pytest.raises(ModelError, match="is no GGUF file: it does not begin as one"):
        load_base(tmp_path / "model.gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ModelError, match=r"in .*model\.gguf cannot be loaded"):
        load_base(tmp_path / "model.gguf")


def test_the_packages_that_read_it_are_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        return None

    monkeypatch.setattr(model_files, "find_spec", absent)
    with pytest.raises(ModelError, match=r"gguf and accelerate .*pip install 'cedit\[gguf\]'"):
        load_base(file)
