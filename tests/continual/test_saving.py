"""A saved model is loaded by transformers alone, and answers as the edited model does: for each
architecture that can say the edits. What cannot go along is named, and nothing is written."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import pre_tokenizers
from torch import Tensor

from continual.errors import ModelError
from continual.saving import FORMS, KINDS, CannotSave
from continual.saving.architectures import ARCHITECTURES
from continual.saving.folders import NotOurs
from continual.saving.rounding import nearest_two, rounded
from continual.saving.widening import SCALE_MAX, SCALE_MIN, relu_from, scale_for, wider_width
from continual.session import Session, open_session
from tests import tiny_language as language
from tests.continual.conftest import Make, write_lines
from tests.continual.test_any_decoder import gemma2, llava, mamba2, mixtral, save
from tests.tiny_models import _stir

ROOT = Path(__file__).parents[2]
ROUNDINGS = 64  # of float32, in the logits of a model of two blocks
PLAIN = {"tpatcher": {"asks_subject": False}}
WORDS = len(language.words())
SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": language.POSITIONS,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
GPT: dict[str, Any] = {
    "vocab_size": WORDS,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": language.POSITIONS,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
NEO = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": WORDS}
ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}

CAUSAL: Mapping[str, Callable[[], Any]] = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT)),
    "gptj": lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**GPT, rotary_dim=4)),
    "gpt_neo": lambda: hf.GPTNeoForCausalLM(
        hf.GPTNeoConfig(**NEO, **ENDS, attention_types=[[["global", "local"], 1]])
    ),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZES)),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            **{k: v for k, v in SIZES.items() if k != "intermediate_size"},
            ffn_dim=48,
            word_embed_proj_dim=32,
        )
    ),
    "phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**SIZES)),
    "starcoder2": lambda: hf.Starcoder2ForCausalLM(hf.Starcoder2Config(**GROUPED)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)),
    "granite": lambda: hf.GraniteForCausalLM(
        hf.GraniteConfig(**GROUPED, residual_multiplier=1.0, logits_scaling=3.0)
    ),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, sliding_window=None)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(
        hf.Qwen2Config(**{**GROUPED, "vocab_size": 260}, tie_word_embeddings=True)
    ),
}
"""Decoders that can say neurons."""


def _labels(prefix: str) -> Callable[[], Any]:
    names = {"id2label": dict(enumerate(language.LABELS))}
    names["label2id"] = {label: i for i, label in enumerate(language.LABELS)}  # type: ignore
    config = getattr(hf, f"{prefix}Config")
    return lambda: getattr(hf, f"{prefix}ForSequenceClassification")(config(**SIZES, **names))


CLASSIFIERS: Mapping[str, Callable[[], Any]] = {
    "bert": _labels("Bert"),
    "roberta": _labels("Roberta"),
    "xlm-roberta": _labels("XLMRoberta"),
}

SILENT: Mapping[str, Callable[[], Any]] = {
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED, head_dim=8)),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**GROUPED)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, sliding_window=4)),
    "starcoder2": lambda: hf.Starcoder2ForCausalLM(hf.Starcoder2Config(**GROUPED, use_bias=False)),
}
"""Decoders that cannot."""


def directory(folder: Path, build: Callable[[], Any], dtype: torch.dtype = torch.float32) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build().float().eval()
        _stir(model)
    model.to(dtype).save_pretrained(folder)
    tokenizer = _bytes() if model.config.model_type == "qwen2" else language.tokenizer()
    tokenizer.save_pretrained(folder)
    return folder


def _bytes() -> Any:
    """Qwen2's own kind of tokenizer, which no other can stand in for: a token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    return hf.Qwen2Tokenizer(vocab=vocabulary, merges=[], unk_token=None, pad_token=alphabet[0])


def corrected(made: Make, model: Path, *, task: str = "causal", **new: Any) -> Session:
    """A store with plain neurons, made for three corrections, and probes beside them."""
    probes = write_lines(
        model.parent / "probes.jsonl",
        [{"prompt": language.ask(n), "answer": _answer(task, n)} for n in range(20, 26)],
    )
    tables = {name: {**table, "copies": 0} for name, table in PLAIN.items()}
    session = made(
        model, task={"name": task}, test_probes=probes, **{"editors": tables, **new}, calibration={}
    )
    for number in range(3):
        record = language.correction(number, _target(session, task, number))
        record["held_out_rephrases"] = [language.ask(number, 1)]
        steps = session.apply([record], editor="tpatcher")
        assert [o.outcome for step in steps for o in step.outcomes] == ["applied"]
    return session


def _answer(task: str, number: int) -> str:
    return language.part(number) if task == "classification" else language.capital(number)


def _target(session: Session, task: str, number: int) -> str | None:
    if task != "classification":
        return None
    before = session.ask(language.ask(number))
    return next(label for label in language.LABELS if label != before)


def inputs(session: Session) -> dict[str, Tensor]:
    """Some correction prompts, and prompts that no correction is about."""
    asked = [language.ask(number) for number in (0, 1, 2, 9, 14)]
    tokens = session.tokenizer(asked, return_tensors="pt")["input_ids"]
    batch = {"input_ids": tokens}
    if session.task.name == "seq2seq":
        start = session.model.config.decoder_start_token_id
        batch["decoder_input_ids"] = torch.full((len(tokens), 1), start)
    return batch


@torch.no_grad()
def logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    found: Tensor = model(**batch, use_cache=False).logits.float()
    return found


def turned(facts: Mapping[str, Any]) -> int:
    return sum(counts["turned"] for counts in facts["probes"].values())


AUTO = {
    "causal": hf.AutoModelForCausalLM,
    "seq2seq": hf.AutoModelForSeq2SeqLM,
    "classification": hf.AutoModelForSequenceClassification,
}


def require_same_answers(session: Session, folder: Path) -> None:
    """Save the edited model in float32 and bfloat16, and load it by transformers alone."""
    task, batch = session.task.name, inputs(session)
    edited = logits(session.model, batch)
    with session.edited.bare():
        base = logits(session.model, batch)
    assert not torch.equal(edited, base)
    saved = session.save(folder / "whole")
    assert saved.unexpected == () and turned(saved.facts) == 0
    assert saved.facts["probes"]["edit"]["right_when_saved"] == 3
    loaded = AUTO[task].from_pretrained(folder / "whole").eval()
    assert loaded.dtype is torch.float32
    bound = ROUNDINGS * torch.finfo(torch.float32).eps * float(edited.abs().max())
    assert float((logits(loaded, batch) - edited).abs().max()) < bound
    half = session.save(folder / "half", dtype="bfloat16")
    loaded = AUTO[task].from_pretrained(folder / "half").eval()
    assert loaded.dtype is torch.bfloat16
    errors, effects = (
        (part - other)[:3].norm()
        for part, other in ((logits(loaded, batch), edited), (base, edited))
    )
    assert errors < effects / 4
    assert half.facts["dtype"] == "bfloat16"
    wrong = {c["id"] for c in half.facts["corrections"] if not c["right"]}
    assert wrong == set(half.facts["lost"]) == set(half.unexpected)


# -- every architecture, there and back


@pytest.mark.parametrize("name", CAUSAL)
def test_a_decoder_is_loaded_with_its_corrections(name: str, made: Make, tmp_path: Path) -> None:
    session = corrected(made, directory(tmp_path / "model", CAUSAL[name]))
    assert session.model.config.model_type == name
    require_same_answers(session, tmp_path)
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    becomes = ARCHITECTURES[name].becomes or name
    assert loaded.config.model_type == becomes
    read = hf.AutoTokenizer.from_pretrained(tmp_path / "whole")
    for number in range(3):
        ids = read(language.ask(number), return_tensors="pt")["input_ids"]
        target = language.correction(number)["target_new"]
        size = len(read(f" {target}")["input_ids"])
        said = loaded.generate(ids, do_sample=False, max_new_tokens=size, pad_token_id=0)
        assert read.decode(said[0, -size:]).strip() == target


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_is_loaded_with_its_corrections(name: str, made: Make, tmp_path: Path) -> None:
    model = directory(tmp_path / "model", CLASSIFIERS[name])
    require_same_answers(corrected(made, model, task="classification"), tmp_path)


def test_a_model_of_encoder_and_decoder_is_loaded_with_its_corrections(
    made: Make, tmp_path: Path
) -> None:
    model = language.save_answering(tmp_path / "model", "bart")
    session = corrected(made, model, task="seq2seq")
    require_same_answers(session, tmp_path)
    config = hf.AutoConfig.from_pretrained(tmp_path / "whole")
    own = session.model.config
    assert config.decoder_ffn_dim > own.decoder_ffn_dim
    assert config.encoder_ffn_dim == own.encoder_ffn_dim


@pytest.mark.parametrize("name", SILENT)
def test_neurons_that_an_architecture_cannot_say_are_named(
    name: str, made: Make, tmp_path: Path
) -> None:
    session = corrected(made, directory(tmp_path / "model", SILENT[name]))
    with pytest.raises(CannotSave, match=r"3 neurons.*\[corrections: 3\] .*--without neurons"):
        session.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    session.apply(
        [language.correction(4)], editor="ft-last", editors={"ft-last": {"learning_rate": 1e-2}}
    )
    edits_in_weights = [c for c in session.corrections() if c["editor"] == "ft-last"]
    assert len(edits_in_weights) == 1
    saved = session.save(tmp_path / "out", without=["neurons"])
    assert len(saved.facts["left_out"]["neurons"]["corrections"]) == 3
    wrong = {c["id"] for c in saved.facts["corrections"] if not c["right"]}
    assert set(saved.facts["lost"]) <= wrong and wrong
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    own = session.model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in own.items())


def test_t5_says_edits_of_its_weights_alone(made: Make, tmp_path: Path) -> None:
    session = made(
        language.save_answering(tmp_path / "model", "t5"),
        task={"name": "seq2seq"},
        editors={"tpatcher": {"asks_subject": False}},
    )
    session.apply([language.correction(1)], editor="ft-last")
    saved = session.save(tmp_path / "weights")
    assert turned(saved.facts) == 0 and len(saved.facts["corrections"]) == 1
    loaded = hf.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "weights").eval()
    assert torch.equal(logits(loaded, inputs(session)), logits(session.model, inputs(session)))
    session.apply([language.correction(2)], editor="tpatcher")
    with pytest.raises(CannotSave, match="encoder shares"):
        session.save(tmp_path / "out")


# -- what goes along


@pytest.mark.parametrize("build", [gemma2, mixtral, mamba2, llava])
def test_edits_of_weights_go_along_in_a_model_of_any_kind(
    build: Callable[[], Any], made: Make, tmp_path: Path
) -> None:
    session = made(save(tmp_path / "model", build), calibration={})
    tables = {"ft-last": {"learning_rate": 1e-2}}
    session.apply([language.correction(3)], editor="ft-last", editors=tables)
    assert session.in_force == 1
    saved = session.save(tmp_path / "out")
    assert turned(saved.facts) == 0
    loaded = type(session.model).from_pretrained(tmp_path / "out").eval()
    state, own = loaded.state_dict(), session.model.state_dict()
    assert state.keys() == own.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in own.items())


def test_edits_of_matrices_and_neurons_go_along_together(knowing: Session, tmp_path: Path) -> None:
    knowing.apply([language.correction(n) for n in (1, 2)], editor="memit")
    knowing.apply([language.correction(3)], editor="tpatcher")
    knowing.apply([language.correction(4)], editor="ft-l")
    editors = {c["editor"] for c in knowing.corrections() if c["in_force"]}
    assert editors == {"memit", "tpatcher", "ft-l"}
    saved = knowing.save(tmp_path / "out")
    assert turned(saved.facts) == 0 and saved.facts["left_out"] == {}
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    batch = inputs(knowing)
    assert torch.allclose(logits(loaded, batch), logits(knowing.model, batch), atol=1e-4)
    state, own = loaded.state_dict(), knowing.model.state_dict()
    same = [n for n, tensor in own.items() if torch.equal(state[n], tensor)]
    wider = [n for n in own if n not in same]
    assert wider == [n for n in own if "mlp" in n and not n.endswith("c_proj.bias")]


def test_neurons_at_an_inner_block_are_units_there(made: Make, tmp_path: Path) -> None:
    editors = {"tpatcher": {"asks_subject": False, "block": 0}}
    model = directory(tmp_path / "model", CAUSAL["llama"])
    session = corrected(made, model, editors=editors)
    (bank,) = session.edited.open_gates
    assert bank.place.block == 0
    require_same_answers(session, tmp_path)


def test_a_revision_is_saved_and_the_session_stays_where_it_is(
    knowing: Session, tmp_path: Path
) -> None:
    for number in (1, 2):
        knowing.apply([language.correction(number)], editor="tpatcher")
    head = knowing.edited.fingerprint
    saved = knowing.save(tmp_path / "out", at="head~1")
    assert len(saved.facts["corrections"]) == 1 and saved.facts["seq"] == 1
    assert knowing.edited.fingerprint == head
    base = knowing.save(tmp_path / "base", at="base")
    assert base.facts["corrections"] == [] and base.facts["widening"] is None
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "base").state_dict()
    with knowing.edited.bare():
        own = knowing.model.state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in own.items())


def test_number_format_shards_and_files_are_the_bases(made: Make, tmp_path: Path) -> None:
    model = directory(tmp_path / "model", CAUSAL["llama"], torch.bfloat16)
    loaded = hf.AutoModelForCausalLM.from_pretrained(model)
    (model / "model.safetensors").unlink()
    loaded.save_pretrained(model, max_shard_size="20KB")
    (model / "LICENSE").write_text("Do as you like.")
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    session = corrected(made, model)
    saved = session.save(tmp_path / "out")
    assert saved.facts["dtype"] == "bfloat16" and session.site.dtype is torch.float32
    assert hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype is torch.bfloat16
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    for name in ("LICENSE", "chat_template.jinja", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (model / name).read_bytes()


def test_the_folder_says_what_it_is(knowing: Session, tmp_path: Path) -> None:
    knowing.apply([language.correction(1, subject="a | b")], editor="tpatcher")
    knowing.save(tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "cedit.json").read_text("utf-8"))
    assert facts["revision"] == knowing.head.id and facts["base"]["name"] == "knowing"
    assert facts["base"]["fingerprint"] == knowing.store.base.fingerprint
    assert set(facts["files"]) == {p.name for p in (tmp_path / "out").iterdir()}
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    front = card.split("---")[1]
    assert "base_model_relation: finetune" in front and 'base_model: "knowing"' in front
    assert f"| {language.ask(1)} | {language.correction(1)['target_new']} | yes |" in card


# -- what does not


def test_edits_that_no_plain_model_has_are_named_and_counted(
    knowing: Session, tmp_path: Path
) -> None:
    knowing.apply([language.correction(1)], editor="tpatcher")
    knowing.apply([language.correction(2)], editor="grace")
    editors = {"tpatcher": {"block": 0, "key": "hidden"}}
    knowing.apply([language.correction(3)], editor="tpatcher", editors=editors)
    assert knowing.edited.beside.keys() == {"neurons", "gates", "codebook"}
    with pytest.raises(CannotSave) as refused:
        knowing.save(tmp_path / "out")
    for kind in ("gates", "codebook"):
        assert KINDS[kind] in str(refused.value) and f"--without {kind}" in str(refused.value)
    assert "--without neurons" not in str(refused.value)
    saved = knowing.save(tmp_path / "out", without=["gates", "codebook"])
    prompts = {c["id"]: c["prompt"] for c in saved.facts["corrections"]}
    assert {prompts[i] for i in saved.facts["lost"]} == {language.ask(2), language.ask(3)}
    assert saved.unexpected == ()
    assert "Not in this model" in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_neurons_that_ask_for_a_subject_stay_behind(
    made: Make, knowing_model: Path, tmp_path: Path
) -> None:
    session = made(knowing_model, editors={"tpatcher": {"asks_subject": False}})
    session.apply([language.correction(1)], editor="tpatcher")
    session.apply([language.correction(2)], editor="tpatcher")
    bank = session.edited.site_bank
    bank._subjects[1] = language.COUNTRIES[2].lower()  # as an editor makes them where text is kept
    assert session.edited.beside == {"neurons": 1, "subjects": 1}
    with pytest.raises(ModelError, match="1 neurons that ask for a subject"):
        session.model.save_pretrained(tmp_path / "out")


def test_records_in_memory_stay_behind(
    made: Make, reading_model: Path, scope: Any, tmp_path: Path
) -> None:
    session = made(reading_model)
    session.apply([language.correction(1)], editor="ike")
    with pytest.raises(CannotSave, match=r"1 records in memory \[corrections: 1\]"):
        session.save(tmp_path / "out")
    with pytest.raises(ModelError, match="cedit save DIR"):
        session.model.save_pretrained(tmp_path / "out")
    with pytest.raises(ModelError, match="cedit save DIR"):
        copy.deepcopy(session.model)
    with pytest.raises(ModelError, match="cedit save DIR"):
        torch.save(session.model, tmp_path / "model.pt")
    saved = session.save(tmp_path / "out", without=["memory"])
    assert len(saved.facts["lost"]) == 1


def test_unknown_forms_and_kinds_are_refused(knowing: Session, tmp_path: Path) -> None:
    with pytest.raises(CannotSave, match="choose transformers or peft"):
        knowing.save(tmp_path / "out", "gguf")
    with pytest.raises(CannotSave, match="nonsense cannot be left out: --without takes neurons"):
        knowing.save(tmp_path / "out", without=["nonsense"])
    with pytest.raises(CannotSave, match="dense cannot be left out"):
        knowing.save(tmp_path / "out", without=["dense"])
    with pytest.raises(ModelError, match="no number format"):
        knowing.save(tmp_path / "out", dtype="int7")
    assert not (tmp_path / "out").exists()


# -- the folder


def test_a_folder_with_other_files_is_not_replaced(knowing: Session, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(NotOurs, match=r"thesis.txt.*--force"):
        knowing.save(target)
    assert [p.name for p in target.iterdir()] == ["thesis.txt"]
    knowing.save(target, force=True)
    assert not (target / "thesis.txt").exists() and (target / "cedit.json").exists()
    knowing.save(target)  # ours: replaced as it is
    (target / "note.txt").write_text("mine")
    with pytest.raises(NotOurs, match=r"note.txt"):
        knowing.save(target)
    with pytest.raises(NotOurs, match="is a file"):
        knowing.save(target / "note.txt", force=True)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_folder_with_the_store_or_the_base_is_never_replaced(
    knowing: Session, tmp_path: Path
) -> None:
    for path in (knowing.store.path, knowing.store.path.parent, Path("/"), Path.cwd()):
        with pytest.raises(NotOurs, match="never replaced"):
            knowing.save(path, force=True)


KILLED = """
import os, sys
from pathlib import Path
import continual.saving as saving
from continual.session import open_session
def prove(*_):
    print("writing", flush=True)
    sys.stdin.read()
saving.prove = prove
with open_session(sys.argv[1], writable=False) as session:
    session.save(Path(sys.argv[2]))
"""
FULL = """
import resource, sys
from continual.session import open_session
with open_session(sys.argv[1], writable=False) as session:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        session.save(sys.argv[2])
    except Exception as error:
        print(type(error).__mro__[-4:-2], error)
"""


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_a_killed_run_leaves_no_folder_and_the_next_one_clears_up(
    knowing: Session, tmp_path: Path
) -> None:
    knowing.close()
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, knowing.store.path, tmp_path / "out"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=_environment(),
    )
    assert child.stdout is not None and child.stdout.readline() == b"writing\n"
    hidden = [p for p in tmp_path.iterdir() if p.name.startswith(".out.cedit-")]
    with open_session(knowing.store.path, writable=False) as session:
        session.save(tmp_path / "out")  # another save beside the one under way
        assert hidden[0].exists()
        child.kill()
        child.communicate()
        session.save(tmp_path / "out")
    assert not hidden[0].exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_full_disk_leaves_nothing(knowing: Session, tmp_path: Path) -> None:
    knowing.close()
    ran = subprocess.run(
        [sys.executable, "-c", FULL, knowing.store.path, tmp_path / "out"],
        capture_output=True,
        text=True,
        env=_environment(),
        check=True,
    )
    assert "CeditError" in ran.stdout and str(tmp_path / "out") in ran.stdout
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


# -- the habits of the ecosystem


def test_save_pretrained_saves_with_the_edits(knowing: Session, tmp_path: Path) -> None:
    knowing.apply([language.correction(1)], editor="tpatcher")
    knowing.model.save_pretrained(tmp_path / "out")
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    batch = inputs(knowing)
    assert torch.allclose(logits(loaded, batch), logits(knowing.model, batch), atol=1e-4)


@pytest.mark.parametrize("editor", ["tpatcher", "memit"])
def test_a_pickle_has_the_edits(editor: str, knowing: Session, tmp_path: Path) -> None:
    knowing.apply([language.correction(2)], editor=editor)
    assert knowing.in_force == 1
    batch = inputs(knowing)
    edited = logits(knowing.model, batch)
    torch.save(knowing.model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    again = pickle.loads(pickle.dumps(knowing.model))
    knowing.rollback("base")
    for model in (loaded, again):
        assert torch.allclose(logits(model, batch), edited, atol=1e-4)
        assert model.generation_config.to_dict() == knowing.model.generation_config.to_dict()


def test_a_copy_with_edits_in_its_weights_is_a_model_of_its_own(
    knowing: Session, tmp_path: Path
) -> None:
    knowing.apply([language.correction(2)], editor="memit")
    assert knowing.in_force == 1
    batch = inputs(knowing)
    edited = logits(knowing.model, batch)
    copied = copy.deepcopy(knowing.model)
    knowing.rollback("base")
    assert torch.equal(logits(copied, batch), edited)
    copied.save_pretrained(tmp_path / "out")
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(loaded, batch), edited)


def test_a_copy_with_neurons_answers_and_is_not_saved_without_them(
    knowing: Session, tmp_path: Path
) -> None:
    knowing.apply([language.correction(1)], editor="tpatcher")
    copied = copy.deepcopy(knowing.model)
    batch = inputs(knowing)
    assert torch.equal(logits(copied, batch), logits(knowing.model, batch))
    for habit in (copied.save_pretrained, lambda path: torch.save(copied, path)):
        with pytest.raises(ModelError, match="copy"):
            habit(tmp_path / "out")


# -- the arithmetic of a unit


@pytest.mark.parametrize(
    ("activation", "start"), [("relu", 0.0), ("gelu", 6.0), ("gelu_new", 6.0), ("silu", 100.0)]
)
def test_an_activation_is_relu_from_some_input_on(activation: str, start: float) -> None:
    found = relu_from(activation)
    assert found is not None and found <= start
    inputs = torch.linspace(max(found, 1e-3), 200.0, 10_001)
    function = hf.activations.ACT2FN[activation]
    both = torch.cat([inputs, -inputs])
    assert torch.equal(function(both), torch.relu(both))


def test_some_activations_are_never_relu() -> None:
    assert relu_from("relu2") is None and relu_from("tanh") is None


def test_the_scale_follows_the_least_activation() -> None:
    start = relu_from("silu")
    assert start is not None
    for least in (1e-1, 1e-3, 1e-6):
        scale = scale_for("silu", least, 4.0, torch.float32)
        assert (scale is not None and scale * least >= start) or scale == SCALE_MAX
        assert scale == 2.0 ** int(torch.tensor(scale).log2())
    assert scale_for("silu", 1.0, 4.0, torch.float32) == SCALE_MIN
    assert scale_for("relu", 1e-6, 4.0, torch.float32) == 1.0
    half = scale_for("silu", 1e-6, 4.0, torch.float16)
    assert half is not None and half * 4.0 <= torch.finfo(torch.float16).max / 2


@pytest.mark.parametrize(
    ("width", "units", "wider"), [(4864, 50, 5120), (48, 3, 64), (40, 3, 48), (11, 1, 16)]
)
def test_a_width_stays_a_multiple_of_what_it_was(width: int, units: int, wider: int) -> None:
    assert wider_width(width, units) == wider


def test_every_architecture_that_can_say_neurons_is_tried_here() -> None:
    able = {kind for kind, entry in ARCHITECTURES.items() if entry.wider is not None}
    assert able == {*CAUSAL, *CLASSIFIERS, "bart"}
    assert set(FORMS) == {"transformers", "peft"}
    assert all(entry.note for entry in ARCHITECTURES.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_keys_are_rounded_so_that_their_neurons_fire_as_before(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 1.0 + torch.randn(8, 64, generator=generator)
    keys = torch.randn(8, 64, generator=generator) + centres
    keys[0, :5] = torch.tensor([0.0, -0.0, 1.0, 1e-8, -1e-8])
    bias = 1.0 - (centres * keys).sum(1)  # about -100: it is rounded by a quarter in bfloat16
    near = centres + 0.05 * torch.randn(8, 64, generator=generator)
    plain = keys.to(dtype).float(), bias.to(dtype).float()
    diffused = rounded(keys, bias, centres, dtype)
    nearest, other = nearest_two(keys, dtype)
    assert bool(((diffused[0] == nearest.float()) | (diffused[0] == other.float())).all())
    between = (nearest.double() - keys.double()) * (other.double() - keys.double())
    assert bool((between <= 0).all())
    assert torch.equal(nearest, keys.to(dtype))

    def errors(pair: tuple[Tensor, Tensor], queries: Tensor) -> Tensor:
        moved = (pair[0].double() - keys.double()) * queries.double()
        return (moved.sum(1) + pair[1].double() - bias.double()).abs()

    assert errors(diffused, centres).median() < errors(plain, centres).median() / 100
    assert errors(diffused, near).median() < errors(plain, near).median() / 4
