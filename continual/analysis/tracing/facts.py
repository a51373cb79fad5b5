"""Facts to trace: a prompt as tokens, the tokens of its subject, and the answer's.

The subject's tokens are those that overlap it in the tokenizer's own offsets, at every place where
the prompt has it as it is written: a place left out would tell the model the subject after all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from continual.analysis.tracing.runs import AnsweredSequence
from continual.errors import CeditError
from continual.passes.partial import logits_of
from continual.prompts import Prompt
from continual.storage import input_device
from continual.tasks import Encoding, PromptText, Task


class SubjectAbsent(CeditError):
    """A prompt that does not name its subject."""

    exit_code = 1

    def __init__(self, prompt: Prompt, subject: str) -> None:
        text = str(prompt)
        near = " (it does in other letters)" if subject.casefold() in text.casefold() else ""
        cause = (
            f"does not contain its subject {subject!r}{near}"
            if subject.strip()
            else "comes without a subject"
        )
        super().__init__(
            f"The prompt {text!r} {cause}: name the subject as it is written there (--subject)."
        )


@dataclass(frozen=True)
class TracedFact:
    """A fact as tokens."""

    prompt: Prompt
    subject: str
    answer: str
    sequence: AnsweredSequence
    token_texts: tuple[str, ...]  # of the prompt
    mention: tuple[int, ...]  # the subject's tokens at its last place in the prompt

    @property
    def size(self) -> int:
        """The number of the prompt's tokens, T."""
        return len(self.token_texts)


def read_fact(
    model: Any, tokenizer: Any, task: Task, prompt: Prompt, subject: str, answer: str | None
) -> TracedFact:
    """Read a fact for a model; without an answer it is the model's own next token. Raises
    SubjectAbsent, and RequestError for a prompt or an answer that cannot be read."""
    asked = task.asked(prompt)
    question = task.question(prompt)
    mentions = mentioned(tokenizer, asked, prompt, subject)
    encoding = (
        Encoding(question, (len(question.ids) - 1,), (_next_token(model, question.ids),))
        if answer is None
        else task.encode(prompt, answer)
    )
    places = tuple(sorted({place for mention in mentions for place in mention}))
    sequence = AnsweredSequence(encoding.ids, places, encoding.positions, encoding.targets)
    texts = token_texts(tokenizer, question.ids)
    said = (
        answer
        if answer is not None
        else task.text(encoding.targets) or texts_of(tokenizer, encoding.targets)
    )
    return TracedFact(prompt, subject, said, sequence, texts, mentions[-1])


@torch.no_grad()
def _next_token(model: Any, ids: Sequence[int]) -> int:
    """Return the token that the model says next."""
    device = input_device(model)
    logits = logits_of(model, {"input_ids": torch.tensor([list(ids)], device=device)})
    return int(logits[0, -1].argmax())


def mentioned(
    tokenizer: Any, asked: PromptText, prompt: Prompt, subject: str
) -> list[tuple[int, ...]]:
    """Return the positions of the subject's tokens at each of its places in a prompt. Raises
    SubjectAbsent."""
    name = subject.strip()
    starts = _places(asked.text, name) if name else []
    if not starts:
        raise SubjectAbsent(prompt, subject)
    spans = [(start, start + len(name)) for start in starts]
    return [overlapping(tokenizer, asked, span) for span in spans]


def _places(text: str, name: str) -> list[int]:
    """Return where a name begins in a text, at places that do not overlap."""
    starts: list[int] = []
    start = text.find(name)
    while start >= 0:
        starts.append(start)
        start = text.find(name, start + len(name))
    return starts


def overlapping(tokenizer: Any, asked: PromptText, span: tuple[int, int]) -> tuple[int, ...]:
    """Return the positions of the tokens that overlap a span of a text's characters."""
    start, end = span
    adds_special = not asked.is_whole
    if getattr(tokenizer, "is_fast", False):
        encoding = tokenizer(
            asked.text, return_offsets_mapping=True, add_special_tokens=adds_special
        )
        offsets = encoding["offset_mapping"]
        return tuple(i for i, (a, b) in enumerate(offsets) if b > start and a < end)
    whole = list(tokenizer(asked.text, add_special_tokens=adds_special)["input_ids"])
    first, _ = _shared(tokenizer, whole, asked.text[:start], adds_special)
    stop, is_cut = _shared(tokenizer, whole, asked.text[:end], adds_special)
    return tuple(range(first, stop + is_cut))


def _shared(
    tokenizer: Any, whole: Sequence[int], text: str, adds_special: bool
) -> tuple[int, bool]:
    """Return how many first tokens a beginning of a text shares with the whole, and whether a token
    of the whole reaches over the beginning's end: for tokenizers without offsets."""
    ids = list(tokenizer(text, add_special_tokens=adds_special)["input_ids"])
    while ids and ids[-1] in tokenizer.all_special_ids:
        ids.pop()
    count = 0
    while count < min(len(ids), len(whole)) and ids[count] == whole[count]:
        count += 1
    return count, count < len(ids)


def token_texts(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Return each token as a person reads it."""
    return tuple(texts_of(tokenizer, [token]) for token in ids)


def texts_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return tokens as text, to the letter."""
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
