"""BLIP-2's class: a picture's queries stand in front of the text, and its decoder is edited."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from continual.base import PretrainedBase, load_base
from continual.errors import ModelError
from continual.history.rehearsing import recompute
from continual.model import EditedModel
from continual.picture_marks import FIRST_ID, digests_in, mark
from continual.pictures.content import read
from continual.site import Site
from continual.tasks import make_task, new_settings
from continual.tasks.agreement import require_seen
from continual.tasks.multimodal import MultimodalTask
from tests import tiny_language as language
from tests.continual.conftest import Make
from tests.tiny_pictures import (
    IMAGE,
    QUERIES,
    picture,
    picture_file,
    querying_model,
    querying_tokenizer,
    save_querying,
    seeing_model,
    seeing_tokenizer,
)

QUESTION = "the capital of Badar is"
TARGET = language.CAPITALS[4]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_querying(tmp_path_factory.mktemp("models") / "querying")


@pytest.fixture(scope="module")
def base(directory: Path) -> PretrainedBase:
    return load_base(directory, MultimodalTask.architecture)


@pytest.fixture
def task(base: PretrainedBase) -> MultimodalTask:
    made = make_task(base, new_settings(base, {"name": "multimodal"}))
    assert isinstance(made, MultimodalTask)
    require_seen(made)
    return made


def marked(task: MultimodalTask, number: int, text: str = QUESTION) -> str:
    file = io.BytesIO()
    picture(number).save(file, "PNG")
    return mark(task.album.add(read(file.getvalue()))) + text


def own(directory: Path, number: int, text: str = QUESTION) -> tuple[Any, Any]:
    """The model and the inputs as transformers' own classes make them."""
    model = hf.Blip2ForConditionalGeneration.from_pretrained(directory).eval()
    processor = hf.AutoProcessor.from_pretrained(directory)
    return model, processor(images=[picture(number)], text=[text], return_tensors="pt")


# -- tokens and passes


def test_a_picture_stands_where_the_models_own_processor_puts_it(task, directory):
    ids = task.question(marked(task, 1)).ids
    _, inputs = own(directory, 1)
    assert [task.sight.token if token >= FIRST_ID else token for token in ids] == inputs[
        "input_ids"
    ][0].tolist()
    assert sum(token >= FIRST_ID for token in ids) == QUERIES
    assert ids[0] >= FIRST_ID  # before the token that begins the text
    assert task.tokens(task.readable(ids)) == ids


def test_a_pass_has_the_logits_of_the_models_own_forward(task, base, directory):
    encoding = task.encode(marked(task, 2), TARGET)
    model, inputs = own(directory, 2)
    with torch.no_grad():
        logits = base.model(**task.inputs([encoding])).logits[0]
        own_logits = model(**inputs).logits[0]
    torch.testing.assert_close(logits[: len(own_logits)], own_logits, rtol=1e-4, atol=1e-5)


def test_rows_of_texts_with_and_without_pictures_agree_with_the_models_own(task, base, directory):
    encodings = [task.encode(p, TARGET) for p in (marked(task, 1), QUESTION)]
    edited = EditedModel(base)
    with edited, torch.no_grad():
        site = Site(edited, task)
        logits = site.logits(site.patched(site.rows_in_passes(encodings)))
        model, inputs = own(directory, 1)
        text = hf.AutoTokenizer.from_pretrained(directory)(QUESTION, return_tensors="pt")
        text_logits = model.language_model(input_ids=text["input_ids"]).logits[0, -1]
        owns = torch.stack([model(**inputs).logits[0, -1], text_logits])
    torch.testing.assert_close(logits, owns, rtol=1e-4, atol=1e-4)


def test_generation_says_what_the_models_own_generate_says(task, base, directory):
    answer = task.answer(base.model, task.question(marked(task, 4)), 6)
    model, inputs = own(directory, 4)
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0].tolist()
    assert list(answer) == ids[inputs["input_ids"].shape[1] :]


def test_a_call_with_pixels_is_still_the_models_own(base, directory):
    model, inputs = own(directory, 3)
    with torch.no_grad():
        assert torch.equal(base.model(**inputs).logits, model(**inputs).logits)
    assert type(base.model).__name__ == type(model).__name__
    assert torch.equal(
        base.model.generate(**inputs, max_new_tokens=3), model.generate(**inputs, max_new_tokens=3)
    )


# -- the vision side


def test_what_a_picture_goes_through_is_found_by_structure(task):
    assert set(task.sight.projection_paths) == {
        "language_projection.weight",
        "language_projection.bias",
    }
    assert all(p.startswith("qformer.encoder.layer.1.") for p in task.sight.last_block_paths)
    assert "query_tokens" in task.sight.front_paths


def test_a_prefix_is_computed_anew_when_the_queries_change(task, base):
    digest = digests_in(marked(task, 5))[0]
    before, queries = task.sight.prefix(digest), base.model.query_tokens
    kept = queries.clone()
    with torch.no_grad():
        queries.copy_(kept.flip(-1))
    assert not torch.equal(task.sight.prefix(digest), before)
    with torch.no_grad():
        queries.copy_(kept)
    assert torch.equal(task.sight.prefix(digest), before)


# -- corrections


@pytest.mark.parametrize(
    ("editor", "table"),
    [
        ("tpatcher", {}),
        ("memit", {"drift_max": 100.0, "clamp_norm_factor": 8.0}),
        ("ft-last", {}),
        ("ft-vision", {"learning_rate": 3e-3}),
        ("ft-vision", {"part": "block", "learning_rate": 1e-2}),
    ],
)
def test_a_correction_is_made_replayed_and_taken_back(
    made: Make, directory: Path, tmp_path: Path, editor: str, table: dict[str, Any]
):
    session = made(directory, task={"name": "multimodal"}, watch={"texts": 0, "neighbours": 0})
    base = session.edited.fingerprint
    path = str(picture_file(tmp_path, 1))
    record = {"prompt": QUESTION, "target_new": TARGET, "image": path, "subject": "Badar"}
    session.apply([record], editor=editor, editors={editor: table})
    (entry,) = session.store.head.body["requests"]
    assert entry["outcome"] == "applied", json.dumps(entry)
    assert session.ask(QUESTION, 1, [path]) == TARGET
    (revision,) = (r for r in session.store.revisions() if r.patch)
    assert all(step.is_same for step in recompute(session, [revision]))
    session.rollback("base")
    assert session.edited.fingerprint == base


# -- kin that is refused


def test_an_encoder_decoder_behind_the_pictures_is_refused_by_name(tmp_path: Path):
    text = hf.T5Config(
        vocab_size=120, d_model=32, d_kv=8, d_ff=40, num_layers=1, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    folder = save_querying(tmp_path / "t5", text=text)
    with pytest.raises(ModelError, match=r"encoder-decoder .*T5ForConditionalGeneration"):
        load_base(folder, MultimodalTask.architecture)


def test_a_class_whose_queries_read_the_question_is_refused_by_name(tmp_path: Path):
    """InstructBLIP's Q-Former reads the text beside the picture: no prefix of a picture alone."""
    tokenizer = querying_tokenizer()
    config = querying_model(tokenizer).config
    instruct = hf.InstructBlipConfig(
        vision_config=hf.InstructBlipVisionConfig(**_sizes(config.vision_config)).to_dict(),
        qformer_config=hf.InstructBlipQFormerConfig(
            **_sizes(config.qformer_config), cross_attention_frequency=1, vocab_size=8
        ).to_dict(),
        text_config=config.text_config.to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=config.image_token_index,
    )
    model = hf.InstructBlipForConditionalGeneration(instruct)
    model.save_pretrained(tmp_path)
    hf.BlipImageProcessor().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"InstructBlip.* (whatever the text|qformer_input_ids)"):
        loaded = load_base(tmp_path, MultimodalTask.architecture)
        require_seen(make_task(loaded, new_settings(loaded, {"name": "multimodal"})))


def _sizes(config: Any) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    extra = ("image_size", "patch_size")
    return {name: getattr(config, name) for name in (*names, *extra) if hasattr(config, name)}


def test_a_model_that_runs_on_tokens_is_left_as_it_is():
    from continual.anatomy.text_side import run_on_tokens

    model = seeing_model(seeing_tokenizer())
    run_on_tokens(model)
    assert type(model) is hf.LlavaForConditionalGeneration


def test_the_place_of_a_picture_stays_in_the_middle_of_a_text(task):
    ids = task.question(f"people {marked(task, 1, '')} Badar").ids
    assert ids[0] < FIRST_ID
    assert task.tokens(task.readable(ids)) == ids
    assert IMAGE not in task.readable(ids)
