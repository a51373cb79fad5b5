"""The classification task: a model reads the prompt and names one of its labels.

The answer is a label's name, the model's head has a logit for each label, and it reads one
position: the first token, or the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from continual.errors import ModelError, RequestError
from continual.passes.edit_site import find_tail
from continual.passes.partial import logits_of
from continual.prompts import Prompt
from continual.requests import Limits, named
from continual.tasks import Encoding, PromptText, Question
from continual.tasks.tokens import PromptReader, padded

if TYPE_CHECKING:
    from continual.base import PretrainedBase

WHOLE = -1  # the position that stands for a whole text, where the head reads all of it


class ClassificationTask:
    """The task of a classifier: one label for a text."""

    name: ClassVar[str] = "classification"
    architecture: ClassVar[str] = "AutoModelForSequenceClassification"

    def __init__(self, reader: PromptReader, labels: Sequence[str], pooled: int) -> None:
        """Take the `labels` in the order of their logits, and the position `pooled` that the head
        reads, counted from the end if it is negative."""
        self._reader, self._labels, self._pooled = reader, tuple(labels), pooled
        self.limits = reader.limits

    @classmethod
    def of(
        cls, base: PretrainedBase, settings: Mapping[str, Any], limits: Limits
    ) -> ClassificationTask:
        """See `Task.of`. Raises ModelError for a model that does not choose between labels."""
        config = base.model.config
        is_rowwise = not base.anatomy.no_rows
        pooled = find_tail(base.model, base.anatomy).pooled if is_rowwise else WHOLE
        name = type(base.model).__name__
        if pooled is None or config.num_labels < 2:
            raise ModelError(f"{name} does not choose between labels, as classification needs.")
        pad = getattr(config.get_text_config(), "pad_token_id", None)
        if is_rowwise and pooled < 0 and pad is None:
            raise ModelError(
                f"{name} looks at the last token that is no padding, and its config.json names no "
                "pad_token_id: set it and save the model again."
            )
        labels = [str(config.id2label[index]) for index in range(config.num_labels)]
        reader = PromptReader.of(base, settings, limits)
        if pooled < 0 and pad is not None:  # the model tells padding by its own token
            reader = replace(reader, pad=int(pad))
        return cls(reader, labels, pooled)

    def settings(self) -> dict[str, Any]:
        """See `Task.settings`: none."""
        return {}

    def encode(self, prompt: Prompt, answer: str) -> Encoding:
        """Encode a probe; see `Task.encode`. The answer is a label's name, in any case."""
        question = self.question(prompt)
        return Encoding(question, (self._pooled % len(question.ids),), (self._label(answer),))

    def question(self, prompt: Prompt) -> Question:
        """Encode a prompt; see `Task.question`."""
        return Question(self._reader.prompt(self._reader.text(prompt)))

    def asked(self, prompt: Prompt) -> PromptText:
        """Return a prompt as text; see `Task.asked`."""
        return PromptText(self._reader.text(prompt), is_whole=False)

    def tokens(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text; see `Task.tokens`."""
        return self._reader.ids(text)

    def readable(self, ids: Sequence[int]) -> str:
        """Return the text of tokens; see `Task.readable`."""
        return self._reader.words(ids)

    def inputs(self, batch: Sequence[Encoding]) -> dict[str, Tensor]:
        """Return input_ids and attention_mask [B, T]; see `Task.inputs`."""
        return padded([encoding.ids for encoding in batch], self._reader.pad)

    @torch.no_grad()
    def answer(self, model: Any, question: Question, tokens_max: int) -> tuple[int, ...]:
        """Return the label with the highest logit."""
        ids = torch.tensor([question.ids], device=model.device)
        return (int(logits_of(model, {"input_ids": ids})[0].argmax()),)

    def text(self, answer: Sequence[int]) -> str:
        """Return the label's name."""
        return self._labels[answer[0]]

    def _label(self, answer: str) -> int:
        answer = answer.strip()
        if answer in self._labels:
            return self._labels.index(answer)
        lowercase_labels = [label.casefold() for label in self._labels]
        if lowercase_labels.count(answer.casefold()) != 1:
            raise RequestError(
                f"{named(answer)} is no label of the model: it has {', '.join(self._labels)}."
            )
        return lowercase_labels.index(answer.casefold())
