"""The causal task: a decoder continues the prompt, and the answer is right when greedy decoding
yields exactly its tokens. One teacher-forced pass decides that: greedy decoding yields the target
if and only if the target token is the arg-max at every one of its positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from continual.requests import Limits
from continual.tasks import Encoding, Question
from continual.tasks.tokens import Reader, padded

if TYPE_CHECKING:
    from continual.base import BaseModel


class CausalTask:
    """Prompt, a space, the answer, and the terminator where the store sets one."""

    name: ClassVar[str] = "causal"
    architecture: ClassVar[str] = "AutoModelForCausalLM"

    def __init__(self, reader: Reader, terminator: str = "") -> None:
        self._reader, self._tokenizer = reader, reader.tokenizer
        self._terminator = terminator

    @classmethod
    def of(cls, base: BaseModel, settings: Mapping[str, Any], limits: Limits) -> CausalTask:
        """See `Task.of`; `terminator` is a text that ends every answer."""
        return cls(Reader.of(base, limits), str(settings.get("terminator", "")))

    def encode(self, prompt: str, answer: str) -> Encoding:
        """Tokens of a probe; see `Task.encode`."""
        question = self._reader.prompt(prompt)
        targets = self._answer_ids(prompt, question, answer)
        self._reader.require_answer(answer, targets)
        self._reader.require_context(prompt, len(question) + len(targets) - 1)
        first = len(question) - 1
        positions = tuple(range(first, first + len(targets)))
        return Encoding(Question(question), positions, targets)

    def question(self, prompt: str) -> Question:
        """Tokens of a prompt; see `Task.question`."""
        return Question(self._reader.prompt(prompt))

    def inputs(self, batch: Sequence[Encoding]) -> dict[str, Tensor]:
        """input_ids and attention_mask [B, T]; see `Task.inputs`."""
        return padded([encoding.ids for encoding in batch], self._reader.pad)

    def answer(self, model: Any, question: Question, tokens_max: int) -> tuple[int, ...]:
        """How the model's own `generate` goes on."""
        ids = torch.tensor([question.ids], device=model.device)
        context = self._reader.context_tokens_max
        room = tokens_max if context is None else min(tokens_max, context - len(question.ids))
        generated = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max(1, room),
            do_sample=False,
            pad_token_id=self._reader.pad,
        )
        return tuple(generated[0, len(question.ids) :].tolist())

    def text(self, answer: Sequence[int]) -> str:
        """The words up to the terminator."""
        text: str = self._tokenizer.decode(list(answer), skip_special_tokens=True)
        return text.split(self._terminator)[0].strip() if self._terminator else text.strip()

    def _answer_ids(self, prompt: str, question: tuple[int, ...], answer: str) -> tuple[int, ...]:
        """The answer's tokens behind the prompt: as tokenised together where the prompt's own
        tokens stay the same, else on its own."""
        tail = f"{'' if prompt[-1].isspace() else ' '}{answer}{self._terminator}"
        together = tuple(self._tokenizer(prompt + tail)["input_ids"])
        if together[: len(question)] == question:
            return together[len(question) :]
        return tuple(self._tokenizer(tail, add_special_tokens=False)["input_ids"])
