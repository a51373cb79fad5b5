"""Models without an FFN that adds to the residual sum are edited at their last block, exactly: as
gates on its output, by every editor that needs no matrix, and through every way of asking."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from continual.base import load_base
from continual.effects.places import GatePlace
from continual.errors import CeditError
from continual.requests import Request
from continual.session import Session, open_session
from tests import tiny_language as language
from tests.continual.conftest import Make
from tests.tiny_models import _stir

SIZES: dict[str, Any] = {
    "vocab_size": len(language.words()),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
ATTENTION: dict[str, Any] = {
    **SIZES,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": language.POSITIONS,
}


def gemma2() -> Any:
    """A norm stands behind the FFN."""
    return hf.Gemma2ForCausalLM(hf.Gemma2Config(**ATTENTION, head_dim=8))


def mixtral() -> Any:
    """A mixture of experts."""
    config = hf.MixtralConfig(**ATTENTION, num_local_experts=4, num_experts_per_tok=2)
    return hf.MixtralForCausalLM(config)


def mamba2() -> Any:
    """State-space blocks."""
    sizes = {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8}
    return hf.Mamba2ForCausalLM(hf.Mamba2Config(**SIZES, **sizes, expand=2))


def llava() -> Any:
    """A text decoder inside a class for texts with images."""
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    text = hf.LlamaConfig(**ATTENTION)
    vision_config = hf.CLIPVisionConfig(**vision)
    config = hf.LlavaConfig(
        vision_config=vision_config, text_config=text, image_token_index=1, pad_token_id=0
    )
    return hf.LlavaForConditionalGeneration(config)


def save(directory: Path, build: Callable[[], Any]) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().float().eval()
        _stir(model)
    return language.save_decoder(directory, model)


def apply(session: Session, *numbers: int) -> list[str]:
    """Correct the capitals of these countries, one by one; return the outcomes."""
    found = []
    for number in numbers:
        request = Request.model_validate(language.correction(number))
        for step in session.apply_requests([request], session.settings()):
            found += [outcome.outcome for outcome in step.outcomes]
    return found


@torch.no_grad()
def said(session: Session, number: int) -> set[str]:
    """The answers about a country by a forward pass, by `generate` and by `ask`."""
    ids = torch.tensor([session.edited.tokenizer(language.ask(number))["input_ids"]])
    forward = session.model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
    made = session.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=1, pad_token_id=0
    )[0, -1]
    words = [session.edited.tokenizer.decode([int(token)]).strip() for token in (forward, made)]
    return {*words, session.ask(language.ask(number), tokens_max=1)}


def logits(session: Session) -> torch.Tensor:
    with torch.no_grad():
        ids = torch.arange(3, 19).view(2, 8)
        found: torch.Tensor = session.model(input_ids=ids, use_cache=False).logits
        return found


@pytest.mark.parametrize("build", [gemma2, mixtral, mamba2, llava])
def test_a_decoder_of_any_kind_is_corrected_exactly(
    build: Callable[[], Any], made: Make, tmp_path: Path
) -> None:
    with made(save(tmp_path / "model", build), calibration={}) as session:
        base, fingerprint = logits(session), session.edited.fingerprint
        assert apply(session, 3, 8) == ["applied", "applied"]
        edited = logits(session)
    with open_session(tmp_path / "store") as session:
        assert torch.equal(logits(session), edited)
        for number in (3, 8):
            assert said(session, number) == {language.correction(number)["target_new"]}
        session.rollback("base")
        assert session.edited.fingerprint == fingerprint
        assert torch.equal(logits(session), base)


@pytest.mark.watched
@pytest.mark.parametrize("build", [gemma2, mixtral])
def test_neurons_stand_at_the_output_of_the_last_block(
    build: Callable[[], Any], made: Make, tmp_path: Path
) -> None:
    watch = {"texts": 8, "tokens": 6, "neighbours": 0}
    session = made(save(tmp_path / "model", build), calibration={}, watch=watch)
    apply(session, 3)
    (effect,) = session.edited.open_gates
    assert effect.place == session.site.place == GatePlace.at(1, "hidden", 1, "hidden")
    assert any(effect.subjects)  # neurons there ask for their subject, as at an FFN
    assert session.edited.is_read_off_rows


def test_editors_of_an_ffn_matrix_name_those_that_work_and_these_do(
    made: Make, tmp_path: Path
) -> None:
    session = made(save(tmp_path / "model", mixtral), calibration={})
    for editor in ("memit", "rome", "alphaedit", "emmet", "ft-l"):
        with pytest.raises(CeditError, match=r"tpatcher, serac and ike.*ft-last, ft-all"):
            session.apply([language.correction(3)], editor=editor)
    for editor in ("tpatcher", "ft-last", "ft-all"):
        tables = {} if editor == "tpatcher" else {editor: {"learning_rate": 1e-2}}
        steps = session.apply([language.correction(3)], editor=editor, editors=tables)
        assert [o.outcome for step in steps for o in step.outcomes] == ["applied"], editor
        session.rollback("base")


def test_a_model_whose_end_looks_along_the_sequence_is_edited_by_whole_passes(
    made: Make, tmp_path: Path
) -> None:
    """The classifier takes the mean over its tokens, so that no row has its logits."""
    config = hf.ModernBertConfig(
        **{**ATTENTION, "eos_token_id": 2},
        num_labels=3,
        classifier_pooling="mean",
        cls_token_id=1,
        sep_token_id=2,
    )
    model = save(tmp_path / "model", lambda: hf.ModernBertForSequenceClassification(config))
    session = made(model, task={"name": "classification"})
    assert session.edited.anatomy.no_rows and not session.site.has_rows
    prompt, other = language.ask(3), language.ask(8)
    before = session.ask(prompt), session.ask(other)
    target = next(label for label in ("LABEL_0", "LABEL_1", "LABEL_2") if label != before[0])
    steps = session.apply([{"prompt": prompt, "target_new": target}])
    assert [o.outcome for step in steps for o in step.outcomes] == ["applied"]
    assert (session.ask(prompt), session.ask(other)) == (target, before[1])
    session.rollback("base")
    assert session.ask(prompt) == before[0]


def test_an_anatomy_names_its_reason(tmp_path: Path) -> None:
    anatomy = load_base(save(tmp_path / "model", gemma2)).anatomy
    assert anatomy.down == "mlp.down_proj" and not anatomy.is_at_ffn
    assert "changed before it joins the residual sum" in anatomy.no_ffn_site
