"""`generate` for a model with a memory: each input of a batch is routed by itself.

The batch runs through transformers' own `generate` as it is, so that an input that no record is
about is answered as without memory, bit for bit. Inputs that are routed then go on as their readers
answer, behind their own tokens. Knows the form of a batch; leaves finding and reading a record to
`recall`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from continual.errors import ModelError
from continual.memory.routing import Route
from continual.model import EditedModel

UNROUTED = ("inputs_embeds", "streamer", "return_dict_in_generate", "past_key_values")
"""Options of `generate` without a meaning for an answer that is read behind a context."""


class RecordReader(Protocol):
    """Finds and reads records; see `recall.Recall`."""

    def text(self, ids: Sequence[int]) -> str:
        """Return an input as the scope sees it."""

    def routes(self, texts: Sequence[str]) -> list[Route | None]:
        """Return the record that each text is about; None where the model answers by itself."""

    def question(self, place: int, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the tokens to read for an input that is about the record at a place."""

    def room(self, question: Sequence[int]) -> int:
        """Return the number of answer tokens that fit behind a question."""

    def reading(self, method: str) -> AbstractContextManager[Any]:
        """Return a context with the model that reads for a method."""


@dataclass(frozen=True)
class _GenerateCall:
    """The inputs of a call."""

    ids: Tensor  # [B, T]
    mask: Tensor  # [B, T] bool: the real tokens
    options: Mapping[str, Any]  # all other arguments of `generate`
    pad: int

    def row(self, index: int) -> list[int]:
        """Return the real tokens of an input."""
        row: list[int] = self.ids[index][self.mask[index]].tolist()
        return row

    @property
    def copies(self) -> int:
        """The number of answers for each input."""
        return int(self.options.get("num_return_sequences") or 1)


@torch.no_grad()
def generate(edited: EditedModel, recall: RecordReader, *args: Any, **options: Any) -> Any:
    """See `EditedModel.generate`."""
    batch = _batch_of(edited, args, options)
    questions = {} if batch is None else _routed(edited, recall, batch)
    if batch is None or not questions:
        return type(edited.model).generate(edited.model, *args, **options)
    _require_plain(options)
    answers: dict[int, Tensor] = {}  # by row of the output
    if len(questions) < len(batch.ids):
        model_outputs = type(edited.model).generate(edited.model, *args, **options)
        answers = dict(enumerate(model_outputs))
    for method in sorted({method for method, _ in questions.values()}):
        group = {i: question for i, (name, question) in questions.items() if name == method}
        with recall.reading(method) as model:
            answers.update(_read(recall, model, batch, group))
    return _together([answers[i] for i in range(len(batch.ids) * batch.copies)], batch.pad)


def _batch_of(
    edited: EditedModel, args: Sequence[Any], options: Mapping[str, Any]
) -> _GenerateCall | None:
    """Return the inputs of a call; None for a call without token ids."""
    rest = dict(options)
    ids = args[0] if args else rest.pop("input_ids", None)
    if ids is None:
        ids = rest.pop("inputs", None)
    if ids is None:
        return None
    mask = rest.pop("attention_mask", None)
    mask = torch.ones_like(ids) if mask is None else mask
    return _GenerateCall(ids, mask.bool(), rest, _pad(edited, rest))


def _pad(edited: EditedModel, options: Mapping[str, Any]) -> int:
    """Return the token behind answers that end early: from the options, the model or the base."""
    candidates = (
        options.get("pad_token_id"),
        edited.model.generation_config.pad_token_id,
        edited.base.pad,
    )
    return next(int(token) for token in candidates if token is not None)


def _routed(
    edited: EditedModel, recall: RecordReader, batch: _GenerateCall
) -> dict[int, tuple[str, tuple[int, ...]]]:
    """Return (method, question) of each input that a record is about, if an answer has room."""
    texts = [recall.text(batch.row(index)) for index in range(len(batch.ids))]
    questions: dict[int, tuple[str, tuple[int, ...]]] = {}
    for index, route in enumerate(recall.routes(texts)):
        if route is not None:
            question = recall.question(route.place, batch.row(index))
            if recall.room(question):
                questions[index] = (edited.memory.readings[route.place].method, question)
    return questions


def _require_plain(options: Mapping[str, Any]) -> None:
    for name in UNROUTED:
        if options.get(name):
            raise ModelError(
                f"generate({name}=…) cannot be answered from memory: leave it out, or ask the base "
                "model (EditedModel.bare)."
            )


def _read(
    recall: RecordReader, model: Any, batch: _GenerateCall, questions: Mapping[int, tuple[int, ...]]
) -> dict[int, Tensor]:
    """Return the outputs of these inputs: their own tokens, then the reader's answer to the
    question. Questions of one length run together, so that none is padded."""
    by_length: defaultdict[int, list[int]] = defaultdict(list)
    for index, question in questions.items():
        by_length[len(question)].append(index)
    outputs: dict[int, Tensor] = {}
    for length, group in by_length.items():
        ids = torch.tensor([questions[index] for index in group], device=batch.ids.device)
        options = _options(recall, batch, ids)
        answers = type(model).generate(model, ids, **options)[:, length:]
        for number, answer in enumerate(answers):
            index, copy = divmod(number, batch.copies)
            row = group[index]
            outputs[row * batch.copies + copy] = torch.cat([batch.ids[row], answer])
    return outputs


def _options(recall: RecordReader, batch: _GenerateCall, ids: Tensor) -> dict[str, Any]:
    """Return the caller's options for other questions: as many new tokens, if there is room."""
    options = dict(batch.options)
    room = recall.room(ids[0].tolist())
    length_max = options.pop("max_length", None)
    new_tokens_max = options.get("max_new_tokens")
    if new_tokens_max is None and length_max is not None:
        new_tokens_max = length_max - batch.ids.shape[1]
    if new_tokens_max is not None:
        options["max_new_tokens"] = max(1, min(int(new_tokens_max), room))
    return {**options, "attention_mask": torch.ones_like(ids), "pad_token_id": batch.pad}


def _together(rows: Sequence[Tensor], pad: int) -> Tensor:
    """Return the rows as one batch [B, T], padded behind."""
    size = max(len(row) for row in rows)
    batch = rows[0].new_full((len(rows), size), pad)
    for index, row in enumerate(rows):
        batch[index, : len(row)] = row
    return batch
