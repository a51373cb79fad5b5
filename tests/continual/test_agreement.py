"""What the engine relies on is measured on each model: no look ahead, no answer that padding moves,
`generate` as the ledger judges; a patch that is added as it is, in every number format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from continual import hooks
from continual.anatomy import find_anatomy
from continual.base import PretrainedBase, load_base
from continual.errors import ModelError
from continual.model import EditedModel
from continual.new_store import NewStore, init
from continual.passes.edit_site import find_tail
from continual.passes.partial import capture_answers, capture_site
from continual.tasks import make_task, task_class
from continual.watch.writing import continued
from tests import tiny_language as language
from tests.continual.conftest import Make
from tests.tiny_models import BLOCKS, FFN_WIDTH, TAILED, TINY, VOCAB, WIDTH, _stir, tiny_model

WORDS = len(language.words())
CAUSAL = {"name": "causal"}


def save(directory: Path, model: Any) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _stir(model.float().eval())
    return language.save_decoder(directory, model)


def encoder_sizes(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": WORDS,
        "hidden_size": WIDTH,
        "intermediate_size": FFN_WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "max_position_embeddings": 60,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        **more,
    }


def by_hand(model: Any, tokenizer: Any, prompt: str, tokens: int) -> str:
    """Greedy decoding by forward passes over one sequence: the meaning of the ledger's claim."""
    ids = tokenizer(prompt)["input_ids"]
    asked = len(ids)
    for _ in range(tokens):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
        ids = [*ids, int(logits[0, -1].argmax())]
    return str(tokenizer.decode(ids[asked:], skip_special_tokens=True)).strip()


# -- looking ahead


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Electra"])
def test_a_model_that_looks_ahead_is_no_causal_one(kind: str, tmp_path: Path) -> None:
    config = getattr(hf, f"{kind}Config")
    name = {"Bert": "BertLMHeadModel"}.get(kind, f"{kind}ForCausalLM")
    ahead = save(tmp_path / "ahead", getattr(hf, name)(config(**encoder_sizes())))
    with pytest.raises(ModelError, match=r"looks ahead.*--task classification"):
        init(tmp_path / "store", NewStore(str(ahead)))
    assert not (tmp_path / "store").exists()
    back = save(tmp_path / "back", getattr(hf, name)(config(**encoder_sizes(), is_decoder=True)))
    make_task(load_base(back), CAUSAL)


def test_a_decoder_behind_an_encoder_is_measured_too(tmp_path: Path) -> None:
    config = hf.T5Config(
        vocab_size=WORDS,
        d_model=WIDTH,
        d_kv=4,
        d_ff=FFN_WIDTH,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    directory = save(tmp_path / "model", hf.T5ForConditionalGeneration(config))
    language.answering_tokenizer().save_pretrained(directory)
    base = load_base(directory, task_class({"name": "seq2seq"}).architecture)
    make_task(base, {"name": "seq2seq"})
    first = base.model.decoder.block[0]
    ahead = hooks.altered(first, lambda hidden: hidden + hidden.mean(1, keepdim=True))
    with ahead, pytest.raises(ModelError, match="looks ahead"):
        make_task(base, {"name": "seq2seq"})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_no_decoder_is_taken_for_one_that_looks_ahead(random_model: Path, dtype: str) -> None:
    make_task(load_base(random_model, dtype=dtype), CAUSAL)


# -- padding


def test_a_model_whose_answers_depend_on_padding_is_refused(tmp_path: Path) -> None:
    sizes = encoder_sizes(num_landmarks=64, segment_means_seq_len=64, conv_kernel_size=3)
    model = hf.NystromformerForSequenceClassification(hf.NystromformerConfig(**sizes, num_labels=3))
    directory = save(tmp_path / "model", model)
    with pytest.raises(ModelError, match="answers a text otherwise when it is padded"):
        init(tmp_path / "store", NewStore(str(directory), {"name": "classification"}))


# -- `generate`


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 3.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": "said"},
        {"bad_words_ids": "said"},
        {"begin_suppress_tokens": "said"},
        {"forced_eos_token_id": 5, "max_length": 9},
        {"do_sample": True, "temperature": 50.0, "top_k": 0},
        {"num_beams": 4, "length_penalty": 3.0},
        {"encoder_repetition_penalty": 5.0},
        {"sequence_bias": "said"},
    ],
)
def test_answers_are_plain_and_greedy_whatever_the_directory_asks_for(
    random_model: Path, tmp_path: Path, made: Make, settings: dict[str, Any]
) -> None:
    directory = Path(shutil.copytree(random_model, tmp_path / "model"))
    plain = load_base(directory)
    said = by_hand(plain.model, plain.tokenizer, language.ask(0), 6)
    first = plain.tokenizer(said.split()[0])["input_ids"][0]
    tables = {
        "suppress_tokens": [first],
        "begin_suppress_tokens": [first],
        "bad_words_ids": [[first]],
        "sequence_bias": [[[first], -100.0]],
    }
    told = {key: tables[key] if value == "said" else value for key, value in settings.items()}
    (directory / "generation_config.json").write_text(json.dumps(told))
    session = made(directory)
    assert session.ask(language.ask(0), tokens_max=6) == said
    start = tuple(session.tokenizer(language.ask(0))["input_ids"])
    (written,) = continued(session.edited, [start], 6)
    assert session.tokenizer.decode(written[: len(written)]).strip() == said


def test_the_directorys_settings_would_make_another_answer(random_model: Path) -> None:
    """So the test above can fail; and they are there again behind each answer."""
    base = load_base(random_model)
    said = by_hand(base.model, base.tokenizer, language.ask(0), 6)
    base.model.generation_config.repetition_penalty = 3.0
    task = make_task(base, CAUSAL)
    answer = task.answer(base.model, task.question(language.ask(0)), 6)
    assert task.text(answer) == said
    assert base.model.generation_config.repetition_penalty == 3.0
    ids = torch.tensor([task.question(language.ask(0)).ids])
    penalised = base.model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert base.tokenizer.decode(penalised[0, ids.shape[1] :]).strip() != said


@pytest.mark.parametrize("kind", ["Roberta", "Camembert", "XLMRoberta", "Data2VecText"])
def test_a_model_whose_generate_counts_positions_otherwise_is_asked_by_its_forward(
    kind: str, tmp_path: Path, made: Make
) -> None:
    """RoBERTa and its kin as decoders: the ledger, `ask` and the model's own forward agree."""
    config = getattr(hf, f"{kind}Config")(**encoder_sizes(), is_decoder=True)
    directory = save(tmp_path / "model", getattr(hf, f"{kind}ForCausalLM")(config))
    with made(directory) as session:
        assert session.edited.base.decoding
        request = language.correction(3)
        (step,) = session.apply_requests([session_request(request)], session.settings())
        assert [outcome.outcome for outcome in step.outcomes] == ["applied"]
        for country in range(5):
            prompt = language.ask(country)
            expected = by_hand(session.model, session.tokenizer, prompt, 5)
            assert session.ask(prompt, tokens_max=5) == expected
        assert session.ask(request["prompt"], tokens_max=1) == request["target_new"]


def session_request(record: dict[str, Any]) -> Any:
    from continual.requests import Request

    return Request.model_validate(record)


def test_a_model_on_which_generate_fails_is_asked_by_its_forward(random_model: Path) -> None:
    base = load_base(random_model)
    expected = by_hand(base.model, base.tokenizer, language.ask(0), 4)

    def unable(*_: Any, **__: Any) -> Any:
        raise ValueError("no cache of this kind")

    base.model._sample = unable
    task = make_task(base, CAUSAL)
    assert task.text(task.answer(base.model, task.question(language.ask(0)), 4)) == expected


def test_a_model_that_cannot_be_asked_at_all_is_refused(random_model: Path) -> None:
    base = load_base(random_model)

    def unable(*_: Any, **__: Any) -> Any:
        raise ValueError("no cache of this kind")

    base.model._prepare_generation_config = unable
    with pytest.raises(ModelError, match=r"cannot be asked.*no cache of this kind"):
        _ = base.decoding


def test_other_models_are_asked_by_transformers_own_generate(random_model: Path) -> None:
    assert load_base(random_model).decoding == {}


# -- an FFN that is run for some positions alone


@pytest.mark.parametrize("name", TAILED)
def test_an_ffn_is_known_to_work_row_by_row(name: str) -> None:
    assert find_anatomy(tiny_model(name)).is_rowwise


def mamba() -> Any:
    config = hf.MambaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        state_size=4,
        time_step_rank=4,
    )
    return hf.MambaForCausalLM(config)


@pytest.mark.parametrize("name", ["mamba", "one of two"])
def test_what_looks_along_the_sequence_is_run_whole(name: str) -> None:
    overrides = {}
    if name == "mamba":
        model = mamba().float().eval()
        _stir(model)
        model.requires_grad_(False)
    else:
        model, overrides = tiny_model("llama"), {"up": "mlp.up_proj"}
    anatomy = find_anatomy(model, overrides)
    assert not anatomy.is_rowwise
    ids = torch.arange(4, 18).view(2, 7)
    rows = torch.tensor([3, 6, 11])
    whole = capture_site(model, anatomy, {"input_ids": ids}, anatomy.last)
    some = capture_answers(model, anatomy, {"input_ids": ids}, rows)
    for found, expected in zip(some, whole, strict=True):
        assert torch.equal(found, expected.reshape(-1, WIDTH)[rows])


def test_a_state_space_model_is_corrected(tmp_path: Path, made: Make) -> None:
    config = hf.MambaConfig(
        vocab_size=WORDS,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=4,
        time_step_rank=4,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    directory = save(tmp_path / "model", hf.MambaForCausalLM(config))
    with made(directory) as session:
        fingerprint = session.edited.fingerprint
        request = language.correction(3)
        (step,) = session.apply_requests([session_request(request)], session.settings())
        assert [outcome.outcome for outcome in step.outcomes] == ["applied"]
        said = by_hand(session.model, session.tokenizer, request["prompt"], 1)
        assert said == request["target_new"] == session.ask(request["prompt"], tokens_max=1)
        session.rollback("base")
        assert session.edited.fingerprint == fingerprint


# -- a patch that is added as it is


def granite(multiplier: float, dtype: torch.dtype) -> Any:
    model = tiny_model("granite")
    for block in model.model.layers:
        block.residual_multiplier = multiplier
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("multiplier", [0.2, 0.9, 0.95, 0.98, 1.05])
def test_a_scaled_ffn_is_found_in_every_number_format(
    dtype: torch.dtype, multiplier: float
) -> None:
    model = granite(multiplier, dtype)
    with pytest.raises(ModelError, match=r"changed before.*multiplied by [01]\.\d") as refused:
        find_tail(model, find_anatomy(model))
    said = float(str(refused.value).split("multiplied by ")[1].split(")")[0])
    assert said == pytest.approx(multiplier, abs=0.005)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", TAILED)
def test_an_ffn_that_is_added_as_it_is_passes_in_every_number_format(
    name: str, dtype: torch.dtype
) -> None:
    for seed in range(3):
        model = tiny_model(name, seed=seed).to(dtype)
        find_tail(model, find_anatomy(model))


# -- inputs


@pytest.mark.parametrize("kind", ["Canine", "Perceiver"])
def test_a_model_without_token_embeddings_is_refused(kind: str) -> None:
    sizes = {
        "Canine": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4},
        "Perceiver": {"num_latents": 4, "d_latents": 16, "d_model": 16, "num_blocks": 1},
    }
    config = getattr(hf, f"{kind}Config")(**sizes[kind], num_labels=3)
    model = getattr(hf, f"{kind}ForSequenceClassification")(config).eval()
    with pytest.raises(ModelError, match="has no table of token embeddings"):
        find_anatomy(model)


def test_a_decoder_alone_is_no_seq2seq_model(random_model: Path) -> None:
    base = load_base(random_model)
    with pytest.raises(ModelError, match=r"has no encoder and no decoder.*--task causal"):
        make_task(base, {"name": "seq2seq"})


def test_a_seq2seq_model_that_names_no_start_is_refused() -> None:
    model = TINY["t5"](FFN_WIDTH).float().eval()
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    base = PretrainedBase(model, language.answering_tokenizer(), find_anatomy(model), "")
    with pytest.raises(ModelError, match="names no decoder_start_token_id"):
        make_task(base, {"name": "seq2seq"})


def test_what_wraps_a_base_is_bare_outside_its_block(random_model: Path) -> None:
    base = load_base(random_model)
    with EditedModel(base) as edited:
        edited.base.decoding  # noqa: B018  measured while the model is hooked
    assert not any(module._forward_hooks for module in base.model.modules())


# -- soft caps


@pytest.mark.parametrize("name", ["final_logit_softcapping", "logits_soft_cap", "soft_cap_of_it"])
def test_a_soft_cap_of_the_logits_is_found_whatever_it_is_called(name: str) -> None:
    model = tiny_model("llama")
    model.config.attn_logit_softcapping = 50.0
    setattr(model.config, name, 2.0)
    head = model.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        made = head(*args, **kwargs)
        made.logits = 2.0 * torch.tanh(made.logits / 2.0)
        return made

    model.forward = capped
    anatomy = find_anatomy(model)
    tail = find_tail(model, anatomy)
    ids = torch.arange(4, 11)[None]
    _, hidden = capture_site(model, anatomy, {"input_ids": ids}, anatomy.last)
    torch.testing.assert_close(tail(hidden[0]), model(input_ids=ids, use_cache=False).logits[0])
