"""Every way to call the model of a session: it answers with the edits, or says that it does not."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from continual.errors import ModelError
from continual.requests import Request
from continual.session import Session
from tests.tiny_language import CAPITALS, ask, capital, correction

Inputs = Mapping[str, Tensor]
Call = Callable[[Any, Inputs], Tensor]  # a model and the tokens of a prompt → logits [B, T, v]

COUNTRY = 3


def other_than(country: int) -> str:
    return next(c for c in CAPITALS if c != capital(country))


def corrected(session: Session, **more: Any) -> None:
    request = Request.from_json(correction(COUNTRY, other_than(COUNTRY), **more))
    (step,) = session.apply_requests([request], session.settings(chain=("tpatcher",)))
    assert step.outcomes[0].outcome == "applied"


def read(session: Session, country: int = COUNTRY) -> Inputs:
    tokens: Inputs = session.tokenizer(ask(country), return_tensors="pt")
    return tokens


def as_method(model: Any, inputs: Inputs) -> Tensor:
    model.compile(backend="eager")
    try:
        logits: Tensor = model(**inputs).logits
        return logits
    finally:
        model._compiled_call_impl = None


def by_parameters(model: Any, inputs: Inputs) -> Tensor:
    parameters = dict(model.named_parameters())
    logits: Tensor = torch.func.functional_call(model, parameters, (), dict(inputs)).logits
    return logits


def compiled(callee: Callable[..., Any], **more: Any) -> Callable[..., Any]:
    return torch.compile(callee, backend="eager", **more)


CALLS: dict[str, Call] = {
    "hidden states": lambda m, x: m(**x, output_hidden_states=True).logits,
    "compiled": lambda m, x: compiled(m)(**x).logits,
    "compiled whole": lambda m, x: compiled(m, fullgraph=True)(**x).logits,
    "its forward compiled": lambda m, x: compiled(m.forward)(**x).logits,
    "compiled in a function": lambda m, x: compiled(lambda: m(**x).logits + 0)(),
    "compiled in place": as_method,
    "its trunk compiled": lambda m, x: m.lm_head(compiled(m.base_model)(**x).last_hidden_state),
    "functional": by_parameters,
    "copied": lambda m, x: copy.deepcopy(m)(**x).logits,
}


@pytest.mark.parametrize("way", CALLS)
def test_a_call_answers_with_the_edits_and_without_them_after_a_rollback(
    knowing: Session, way: str
) -> None:
    inputs = read(knowing)
    base = knowing.model(**inputs).logits
    knowing.model(**inputs, output_hidden_states=True)
    corrected(knowing)
    edited = knowing.model(**inputs).logits
    assert not torch.equal(edited, base)
    assert torch.equal(CALLS[way](knowing.model, inputs), edited)
    knowing.rollback("base")
    assert torch.equal(CALLS[way](knowing.model, inputs), base)


def test_code_that_was_compiled_before_an_edit_answers_with_it(knowing: Session) -> None:
    inputs = read(knowing)
    model = compiled(knowing.model)
    base = model(**inputs).logits
    corrected(knowing)
    assert torch.equal(model(**inputs).logits, knowing.model(**inputs).logits)
    assert not torch.equal(model(**inputs).logits, base)


@pytest.mark.parametrize(
    "graph",
    [
        lambda m, ids: torch.jit.trace(m, (ids,), strict=False),
        lambda m, ids: torch.export.export(m, (ids,)),
    ],
    ids=["traced", "exported"],
)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_graph_that_would_go_without_the_edits_is_refused(
    knowing: Session, graph: Callable[..., Any]
) -> None:
    corrected(knowing)
    with pytest.raises(ModelError, match="hooks"):
        graph(knowing.model, read(knowing)["input_ids"])


def test_a_part_that_is_called_by_itself_never_takes_the_text_of_another_pass(
    knowing: Session,
) -> None:
    corrected(knowing, subject=f"country {COUNTRY}")
    neurons = knowing.edited.site_bank
    neurons._subjects[:] = [ask(COUNTRY).split()[0]] * neurons.size  # ask for a word of the prompt
    inputs = read(knowing)
    knowing.model(**inputs)
    with pytest.raises(ValueError, match="Call the whole model"):
        knowing.model.base_model(**inputs)


def test_the_arguments_of_a_model_can_be_read(knowing: Session) -> None:
    model = knowing.model
    for method in ("forward", "generate"):
        own = getattr(type(model), method)
        names = list(inspect.signature(own).parameters)
        assert list(inspect.signature(getattr(model, method)).parameters) == names[1:]
