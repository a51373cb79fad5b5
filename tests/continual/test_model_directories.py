"""What a model directory may hold: nothing in it is run, made up, left out or used in silence."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from continual.base import WrongBaseModel, load_base
from continual.errors import EncoderError, ModelError
from continual.memory.encoder import SentenceEncoder
from continual.model_files import companion_files, directory_fingerprint
from continual.new_store import NewStore, init
from continual.session import open_session
from store import Store, StoreError
from tests import tiny_language as language
from tests.continual.conftest import Make
from tests.tiny_encoders import save_encoder

WEIGHTS = "model.safetensors"
Change = Callable[[Path], None]


@pytest.fixture
def directory(random_model: Path, tmp_path: Path) -> Path:
    """A directory of one's own."""
    return Path(shutil.copytree(random_model, tmp_path / "model"))


def set_json(path: Path, **more: Any) -> None:
    told = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**told, **more}))


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


# -- tensors


def test_a_tensor_that_is_missing_is_never_made_up(directory: Path) -> None:
    change_weights(directory, lambda t: t.pop("transformer.h.1.mlp.c_fc.weight"))
    with pytest.raises(ModelError, match=r"lacks transformer\.h\.1\.mlp\.c_fc\.weight.*made up"):
        load_base(directory)


def test_a_head_that_is_missing_is_never_made_up(tmp_path: Path) -> None:
    """A plain encoder as a classifier: the task would be learned by a random head."""
    whole = language.save_classifier(tmp_path / "whole", "bert")
    model = hf.BertModel.from_pretrained(whole)
    model.save_pretrained(tmp_path / "plain")
    language.tokenizer().save_pretrained(tmp_path / "plain")
    with pytest.raises(ModelError, match=r"lacks classifier.*It is a checkpoint of BertModel"):
        load_base(tmp_path / "plain", "AutoModelForSequenceClassification")


def test_tied_tensors_are_not_missed(directory: Path) -> None:
    assert "lm_head.weight" not in load_file(directory / WEIGHTS)
    base = load_base(directory)
    assert base.model.lm_head.weight is base.model.transformer.wte.weight
    assert base.notes == ()


def test_tensors_that_are_not_used_are_told(directory: Path) -> None:
    change_weights(directory, lambda t: t.update(value_head=torch.ones(3)))
    (note,) = load_base(directory).notes
    assert "has value_head, which GPT2LMHeadModel does not use" in note


def test_a_tensor_of_another_shape_is_named(directory: Path) -> None:
    change_weights(directory, lambda t: t.update({"transformer.ln_f.weight": torch.ones(63)}))
    message = r"transformer\.ln_f\.weight.*has the shape \[63\], and GPT2LMHeadModel takes \[64\]"
    with pytest.raises(ModelError, match=message):
        load_base(directory)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_a_tensor_that_is_not_finite_is_named(directory: Path, number: float) -> None:
    change_weights(directory, lambda t: t["transformer.h.0.attn.c_attn.bias"].fill_(number))
    with pytest.raises(ModelError, match=r"h\.0\.attn\.c_attn\.bias.*NaN or infinite.*download"):
        load_base(directory)


def test_weights_too_large_for_a_number_format_are_named(directory: Path) -> None:
    change_weights(directory, lambda t: t["transformer.ln_f.weight"].fill_(1e6))
    load_base(directory)
    with pytest.raises(ModelError, match=r"infinite numbers in float16.*--dtype float32"):
        load_base(directory, dtype="float16")


# -- files


def cut_off(directory: Path) -> None:
    content = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(content[: len(content) // 2])


def pickled(directory: Path) -> None:
    tensors = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    torch.save(tensors, directory / "pytorch_model.bin")


def without_weights(directory: Path) -> None:
    (directory / WEIGHTS).unlink()


def as_gguf(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "model.gguf")


def without_a_shard(directory: Path) -> None:
    index = {"metadata": {}, "weight_map": {"a": WEIGHTS, "b": "model-2.safetensors"}}
    (directory / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def with_an_adapter(directory: Path) -> None:
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def with_own_code(directory: Path) -> None:
    set_json(directory / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own"})


def with_a_broken_config(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": ')


def without_a_type(directory: Path) -> None:
    (directory / "config.json").write_text("{}")


def of_an_unknown_type(directory: Path) -> None:
    set_json(directory / "config.json", model_type="nobodys")


def without_a_tokenizer(directory: Path) -> None:
    for file in directory.glob("tokenizer*"):
        file.unlink()


def with_a_broken_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{}")


def with_a_larger_tokenizer(directory: Path) -> None:
    told = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = told["model"]["vocab"]
    vocabulary.update({f"more{n}": len(vocabulary) + n for n in range(5)})
    (directory / "tokenizer.json").write_text(json.dumps(told))


def quantised(method: str) -> Change:
    def change(directory: Path) -> None:
        told = {"quant_method": method, "bits": 4, "load_in_4bit": True, "group_size": 32}
        set_json(directory / "config.json", quantization_config=told)

    change.__name__ = method
    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut_off, r"model\.safetensors is damaged or cut off .*: copy or download it anew"),
        (pickled, r"pytorch_model\.bin is a pickle, which may run code.*save_pretrained\('NEW'\)"),
        (without_weights, "has no weights: save the model there again"),
        (as_gguf, r"no safetensors weights: model\.gguf is a GGUF file\. Convert it"),
        (without_a_shard, r"lacks model-2\.safetensors, which .*index\.json names"),
        (with_an_adapter, r"has an adapter \(adapter_config\.json\).*merge_and_unload"),
        (with_own_code, r"needs its own code.*is never run"),
        (with_a_broken_config, r"config\.json cannot be read .*copy the model anew"),
        (without_a_type, "cannot be loaded: .*names no model_type"),
        (of_an_unknown_type, "cannot be loaded: .*nobodys.*another version of transformers"),
        (without_a_tokenizer, "has no tokenizer: put its own there"),
        (with_a_broken_tokenizer, "The tokenizer in .* cannot be loaded: .*own tokenizer there"),
        (with_a_larger_tokenizer, r"has 100 tokens, and the model embeddings for 95"),
        *[
            (quantised(method), f"is quantised \\({method}\\) and cannot be loaded: .*float32")
            for method in ("bitsandbytes", "gptq", "awq", "hqq", "mxfp4", "compressed-tensors")
        ],
    ],
)
def test_a_directory_that_cannot_be_used_is_refused_in_one_line(
    directory: Path, tmp_path: Path, change: Change, message: str
) -> None:
    change(directory)
    with pytest.raises(ModelError, match=message) as refused:
        init(tmp_path / "store", NewStore(str(directory)))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "store").exists()


def test_an_adapter_that_comes_later_is_refused_when_the_store_is_opened(
    directory: Path, made: Make
) -> None:
    store = made(directory).store
    store.close()
    with_an_adapter(directory)
    with pytest.raises(ModelError, match="has an adapter"):
        open_session(store.path)
    (directory / "adapter_config.json").unlink()
    open_session(store.path).close()


# -- code


SPY = """
from pathlib import Path
Path({witness!r}).write_text("the directory's code was run")
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
class OwnConfig(GPT2Config):
    model_type = "own"
class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
def generate(model, **options):
    return model
"""


@pytest.mark.parametrize("model_type", ["own", "gpt2"])
def test_code_of_a_directory_is_never_run_and_nobody_is_asked(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    """Config, model, tokenizer and `generate`; whatever stands on standard input."""
    witness, asked = tmp_path / "witness", io.StringIO("y\n" * 100)
    monkeypatch.setattr("sys.stdin", asked)
    (directory / "own.py").write_text(SPY.format(witness=str(witness)))
    (directory / "custom_generate").mkdir()
    shutil.copy(directory / "own.py", directory / "custom_generate" / "generate.py")
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    set_json(directory / "config.json", model_type=model_type, auto_map=classes)
    tokenizer = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
    set_json(
        directory / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map=tokenizer,
    )
    try:
        with init(tmp_path / "store", NewStore(str(directory))) as session:
            session.ask(language.ask(0))
    except ModelError as refused:
        assert "never run" in str(refused)
    assert not witness.exists()
    assert asked.tell() == 0


def test_the_encoders_code_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    witness, asked = tmp_path / "witness", io.StringIO("y\n" * 100)
    monkeypatch.setattr("sys.stdin", asked)
    folder = save_encoder(tmp_path / "encoder")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "own.py").write_text(SPY.format(witness=str(witness)))
    for module in modules[:1]:
        module["type"] = "own.OwnModel"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EncoderError, match="can't be loaded"):
        SentenceEncoder(folder).embed(["a text"])
    assert not witness.exists()
    assert asked.tell() == 0


# -- files that help to decide an answer


def test_a_store_knows_the_files_beside_its_models_fingerprint(directory: Path, made: Make) -> None:
    store = made(directory).store
    fingerprint = directory_fingerprint(directory)
    store.close()
    set_json(directory / "generation_config.json", eos_token_id=3)
    assert directory_fingerprint(directory) == fingerprint
    with pytest.raises(WrongBaseModel, match=r"^generation_config\.json in .* changed since"):
        open_session(store.path)


def test_a_store_that_names_no_such_files_opens_as_it_did(directory: Path, made: Make) -> None:
    """As older ones, whatever has become of the files."""
    store = made(directory).store
    store.close()
    text = (store.path / "cedit.toml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("companions = ")]
    assert len(lines) < len(text.splitlines())
    (store.path / "cedit.toml").write_text("\n".join(lines) + "\n")
    set_json(directory / "generation_config.json", eos_token_id=3)
    open_session(store.path).close()


def test_templates_shards_and_added_tokens_count_and_a_readme_does_not(directory: Path) -> None:
    before = companion_files(directory)
    (directory / "README.md").write_text("read me")
    (directory / "own.py").write_text("1")
    assert companion_files(directory) == before
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool.jinja").write_text("{{ tools }}")
    (directory / "added_tokens.json").write_text("{}")
    (directory / f"{WEIGHTS}.index.json").write_text("{}")
    assert companion_files(directory).keys() - before.keys() == {
        "chat_template.jinja",
        "additional_chat_templates/tool.jinja",
        "added_tokens.json",
        f"{WEIGHTS}.index.json",
    }


def test_a_base_that_was_moved_is_said_with_the_setting_and_a_remedy_that_works(
    directory: Path, tmp_path: Path, made: Make
) -> None:
    store = made(directory).store
    store.close()
    directory.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"not in .*/model any more.*\[model\] path.*ln -s NEW"):
        open_session(store.path)
    directory.symlink_to(tmp_path / "elsewhere")
    open_session(store.path).close()


# -- a store is there or not


def test_a_store_whose_making_fails_is_not_there(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise StoreError("no")

    monkeypatch.setattr("continual.new_store.GeneralRows.keep", fail)
    with pytest.raises(StoreError):
        init(tmp_path / "store", NewStore(str(random_model)))
    assert not (tmp_path / "store").exists()
    monkeypatch.undo()
    with init(tmp_path / "store", NewStore(str(random_model))) as session:
        assert isinstance(session.store, Store)
