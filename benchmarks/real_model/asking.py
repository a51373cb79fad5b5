"""Answers by free greedy generation, as a user of the open session gets them.

Prompts of like lengths are asked together, padded on the left. The base is asked the same questions
in the same batches as the model behind the stream, so that rounding can't tell them apart. The
base's answers are kept in files named by the fingerprint of the model and the questions.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import tables
from benchmarks.real_model.measures import says
from benchmarks.real_model.questions import ANSWER_TOKENS, CounterFactRecord
from benchmarks.real_model.questions import StreamQuestion as Survey
from continual.memory.answers import AnswerJudge
from continual.passes.partial import logits_of
from continual.prompts import Chat
from continual.session import Session
from continual.task_model import answer_logits
from continual.tasks import Encoding, Question

ROWS = 32  # of a batch, at most
NOTED_EVERY = 5  # batches
CHOSEN_AT_ONCE = 32  # facts

Tokens = tuple[int, ...]
AskedPrompt = tuple[str, int]  # a prompt, and the most tokens of its answer


@dataclass(frozen=True)
class Outside:
    """An open session, seen by its model's own `generate`."""

    session: Session
    chat: bool = False  # prompts are a user's turns

    def question(self, prompt: str) -> Question:
        """Return a prompt's tokens, as they are asked."""
        return self.session.task.question(Chat.asking(prompt) if self.chat else prompt)

    def answers(self, questions: Iterable[AskedPrompt]) -> dict[AskedPrompt, Tokens]:
        """Generate the answer to each prompt, cut off where the model ends it."""
        prompts: defaultdict[int, list[tuple[AskedPrompt, Tokens]]] = defaultdict(list)
        for prompt, tokens in dict.fromkeys(questions):
            prompts[tokens].append(((prompt, tokens), self.question(prompt).ids))
        batches = [
            (by_length[first : first + ROWS], tokens)
            for tokens, group in sorted(prompts.items())
            for by_length in [sorted(group, key=lambda entry: len(entry[1]))]
            for first in range(0, len(by_length), ROWS)
        ]
        answers: dict[AskedPrompt, Tokens] = {}
        for number, (batch, tokens) in enumerate(batches, start=1):
            generated = self._generate([ids for _, ids in batch], tokens)
            answers |= zip((question for question, _ in batch), generated, strict=True)
            if number % NOTED_EVERY == 0:
                tables.note(f"{number} of {len(batches)} batches asked")
        return answers

    def text(self, answer: Tokens) -> str:
        """Return the words of an answer."""
        text: str = self.session.tokenizer.decode(list(answer), skip_special_tokens=True)
        return text

    @torch.no_grad()
    def agreement(self, prompt: str, answer: Tokens) -> float | None:
        """Return the share of an answer's tokens that the model says, given the words before each.

        None for an empty answer.
        """
        if not answer:
            return None
        question = self.question(prompt)
        first = len(question.ids) - 1
        encoding = Encoding(question, tuple(range(first, first + len(answer))), answer)
        answers, route = AnswerJudge(self.session.site), self.session.route(question)
        read = None if route is None else answers.read(route.place, encoding)
        if read is None:
            return self._share(self.session.model, encoding)
        with answers.recall.reading(read.method) as model:
            return self._share(model, read.encoding())

    def _share(self, model: torch.nn.Module, encoding: Encoding) -> float:
        logits = logits_of(model, self.session.site.inputs([encoding]))
        said, targets = answer_logits([encoding], logits)
        return float((said.argmax(-1) == targets).float().mean())

    @torch.no_grad()
    def _generate(self, batch: Sequence[Tokens], tokens: int) -> list[Tokens]:
        device, pad = self.session.edited.device, self.session.edited.base.pad
        longest = max(map(len, batch))
        missing = [longest - len(row) for row in batch]
        rows = [[*[pad] * count, *row] for row, count in zip(batch, missing, strict=True)]
        mask = [[*[0] * count, *[1] * (longest - count)] for count in missing]
        generated = self.session.model.generate(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=torch.tensor(mask, device=device),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=pad,
        )
        return [self._ended(row) for row in generated[:, longest:].tolist()]

    def _ended(self, row: Sequence[int]) -> Tokens:
        """Return the tokens before the first that ends an answer."""
        ending = self.session.model.generation_config.eos_token_id
        ends = {ending} if isinstance(ending, int) else set(ending or ())
        return tuple(row[: next((i for i, token in enumerate(row) if token in ends), len(row))])


class BaseAnswers:
    """The answers of the base model: each list of questions is asked once and kept in a file."""

    def __init__(self, outside: Outside, folder: Path) -> None:
        self._outside, self._folder = outside, folder

    def answers(self, questions: Iterable[AskedPrompt]) -> dict[AskedPrompt, Tokens]:
        """Return the base's answer to each prompt."""
        asked = list(dict.fromkeys(questions))
        file = self._file(asked)
        if not file.exists():
            with self._outside.session.edited.bare():
                answers = self._outside.answers(asked)
            tables.write_whole(file, [list(answers[question]) for question in asked])
        kept = json.loads(file.read_text(encoding="utf-8"))
        return {question: tuple(tokens) for question, tokens in zip(asked, kept, strict=True)}

    def text(self, answer: Tokens) -> str:
        """Return the words of an answer."""
        return self._outside.text(answer)

    def _file(self, asked: Sequence[AskedPrompt]) -> Path:
        digest = hashlib.sha256(json.dumps([ROWS, self._outside.chat, asked]).encode()).hexdigest()
        base = self._outside.session.edited.base.fingerprint
        return self._folder / f"real-model-{base[:16]}" / f"answers-{digest[:16]}.json"


def asked(questions: Iterable[Survey]) -> list[AskedPrompt]:
    """Return the prompts and lengths of questions."""
    return [(question.prompt, question.tokens) for question in questions]


def wrong_facts(
    base: BaseAnswers, facts: Sequence[CounterFactRecord], count: int
) -> list[CounterFactRecord]:
    """Return the first `count` facts that the base answers otherwise than by their target."""
    wrong: list[CounterFactRecord] = []
    for first in range(0, len(facts), CHOSEN_AT_ONCE):
        if len(wrong) >= count:
            break
        offered = facts[first : first + CHOSEN_AT_ONCE]
        answers = base.answers((fact.prompt, ANSWER_TOKENS) for fact in offered)
        texts = {prompt: base.text(answer) for (prompt, _), answer in answers.items()}
        wrong += [fact for fact in offered if not says(texts[fact.prompt], fact.target)]
    return wrong[:count]
