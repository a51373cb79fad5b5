"""A running model's text is known at every step, so that neurons can ask for their subject."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from continual.base import load_base
from continual.embedded import ATLAS
from continual.model import EditedModel
from continual.patches.neuron import NeuronPatch
from continual.site import Site
from continual.tasks import make_task

PROMPT, OTHER = "The capital of France is", "The capital of Spain is"


@pytest.fixture
def edited() -> Iterator[EditedModel]:
    model = EditedModel(load_base(ATLAS.name))
    with model:
        yield model


def neuron(edited: EditedModel, subject: str, token: str) -> NeuronPatch:
    """A neuron that fires everywhere, and makes the model say a token."""
    width = edited.anatomy.width
    (target,) = edited.tokenizer(token)["input_ids"]
    value = edited.model.get_output_embeddings().weight[target].clone()[None] * 1000.0
    subjects = (subject,) if subject else ()
    return NeuronPatch(
        edited.anatomy.last, torch.zeros(1, width), torch.ones(1), value, ("r",), subjects
    )


def first_word(edited: EditedModel, prompt: str, **options: object) -> str:
    inputs = edited.tokenizer(prompt, return_tensors="pt")
    said = edited.model.generate(**inputs, max_new_tokens=3, do_sample=False, **options)
    return str(edited.tokenizer.decode(said[0, inputs["input_ids"].shape[1] :]))


def test_a_neuron_fires_only_where_its_subject_was_read(edited: EditedModel) -> None:
    before = first_word(edited, OTHER)
    edited.put([neuron(edited, "france", " Tokyo")])
    assert first_word(edited, PROMPT) == " Tokyo Tokyo Tokyo"
    assert first_word(edited, OTHER) == before


@pytest.mark.parametrize("options", [{"use_cache": False}, {"num_beams": 3}])
def test_it_is_so_without_a_cache_and_with_beams(
    edited: EditedModel, options: dict[str, object]
) -> None:
    before = first_word(edited, OTHER, **options)
    edited.put([neuron(edited, "france", " Tokyo")])
    assert first_word(edited, PROMPT, **options).startswith(" Tokyo")
    assert first_word(edited, OTHER, **options) == before


def test_sequences_of_one_batch_are_told_apart(edited: EditedModel) -> None:
    edited.put([neuron(edited, "france", " Tokyo")])
    tokenizer = edited.tokenizer
    ids = [tokenizer(prompt)["input_ids"] for prompt in (PROMPT, OTHER)]
    assert len(ids[0]) == len(ids[1])
    logits = edited.model(input_ids=torch.tensor(ids)).logits[:, -1].argmax(-1)
    words = [tokenizer.decode([token]) for token in logits.tolist()]
    assert words[0] == " Tokyo" != words[1]


def test_the_site_and_the_model_agree(edited: EditedModel) -> None:
    task = make_task(edited.base, {"name": "causal"})
    site = Site(edited, task)
    edited.put([neuron(edited, "france", " Tokyo")])
    encodings = [task.encode(prompt, "Tokyo") for prompt in (PROMPT, OTHER)]
    rows = site.rows(encodings)
    assert site.judge(rows).right.tolist() == site.judge_in_full(encodings) == [True, False]


def test_rows_without_their_text_are_refused_where_a_neuron_asks(edited: EditedModel) -> None:
    edited.put([neuron(edited, "france", " Tokyo")])
    bank = edited.bank(edited.anatomy.last)
    with pytest.raises(ValueError, match="asks for its subject"):
        bank.firing(torch.zeros(1, edited.anatomy.width))


def test_a_silent_neuron_leaves_the_very_bits(edited: EditedModel) -> None:
    ids = edited.tokenizer(OTHER, return_tensors="pt")["input_ids"]
    before = edited.model(input_ids=ids).logits
    edited.put([neuron(edited, "france", " Tokyo")])
    assert torch.equal(edited.model(input_ids=ids).logits, before)
