"""Turns a request into the texts that its edit is made from, each with the token to write to.

Chooses the texts and tokens; leaves reading the model there to ``targets`` and ``keys``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from continual.errors import RequestError
from continual.locate_then_edit.subjects import subject_position
from continual.picture_marks import leading, put_before, replaced, shows
from continual.prompts import Prompt
from continual.proposals import Edit
from continual.task_model import TaskModel
from continual.tasks import Encoding, Question
from continual.tasks.sight import Sight

ESSENCE = "{} is a"
"""The model's continuation of it shows its essence of the subject (Meng et al. 2022, eq. 4)."""


@dataclass(frozen=True)
class LocatedText:
    """A prompt as tokens, and the position of the token to write to."""

    encoding: Encoding
    place: int

    def until_place(self) -> Encoding:
        """Return the text up to that token, and including it."""
        return Encoding(Question(self.encoding.ids[: self.place + 1]), (), ())

    def saying(self, number: int) -> LocatedText:
        """Return the text up to the token that says token `number` of the answer, which is the one
        to write to."""
        place = self.encoding.positions[number]
        question = Question(self.encoding.ids[: place + 1])
        said = (self.encoding.targets[number],)
        return LocatedText(Encoding(question, (place,), said), place)


@dataclass(frozen=True)
class EditTexts:
    """The texts that one request is learned from."""

    id: str
    texts: tuple[LocatedText, ...]  # the prompt, rephrases with the subject, prompt in contexts
    shares: tuple[float, ...]
    """The weight of each text in the key; their sum is 1. All contexts together weigh as much as
    the prompt, as in the public code of MEMIT: if each did, they would take the key too far from
    the prompt's."""
    anchors: tuple[LocatedText, ...]
    """Texts whose continuation at one position must stay the same: `ESSENCE`, and the request's
    locality prompts that contain the subject."""
    is_at_end: bool = False
    """True if the token to write to is the last one of the prompt, not of the subject."""
    own: int = 1  # the first so many texts are the request's own wordings; the rest, in contexts

    def at_end(self) -> EditTexts:
        """Return the texts with their places at the end of each prompt (``fact_token = "last"`` in
        the public code).

        They have no anchors: texts with another end have other keys, so the update leaves them
        alone.
        """
        texts = tuple(replace(text, place=text.encoding.positions[0]) for text in self.texts)
        return replace(self, texts=texts, anchors=(), is_at_end=True)

    def by_token(self) -> list[EditTexts]:
        """Return the texts for each token of the answer in turn, each with a value of its own: they
        end with the token that says it. Texts whose answer is tokenised otherwise than the prompt's
        are left out."""
        targets = self.texts[0].encoding.targets
        texts, shares = zip(
            *[
                (text, share)
                for text, share in zip(self.texts, self.shares, strict=True)
                if text.encoding.targets == targets
            ],
            strict=True,
        )
        own = sum(text.encoding.targets == targets for text in self.texts[: self.own])
        weights = tuple(share / sum(shares) for share in shares)
        return [
            replace(
                self,
                texts=tuple(text.saying(number) for text in texts),
                shares=weights,
                anchors=(),
                is_at_end=True,
                own=own,
            )
            for number in range(len(targets))
        ]


def texts_of_edit(edit: Edit, contexts: Sequence[str], task_model: TaskModel) -> EditTexts:
    """Make the texts of an edit; `contexts` begin with the empty one.

    A context is left out if the prompt behind it gets too long. Raises SubjectMissing.
    """
    request = edit.request
    forms, rephrase_encodings = edit.encodings[: edit.forms], edit.encodings[edit.forms :]
    prompt_texts = [
        LocatedText(encoding, subject_place(prompt, request.subject, task_model))
        for prompt, encoding in zip(request.asked, forms, strict=True)
    ]
    assert request.subject is not None
    rephrase_texts = [
        LocatedText(encoding, subject_place(rephrase, request.subject, task_model))
        for rephrase, encoding in zip(request.rephrases, rephrase_encodings, strict=False)
        if request.subject in str(rephrase)
    ]
    context_texts = tuple(_in_contexts(edit, contexts, task_model))
    weights = [
        *[1.0] * (len(prompt_texts) + len(rephrase_texts)),
        *[1.0 / len(context_texts) for _ in context_texts],
    ]
    shares = tuple(weight / sum(weights) for weight in weights)
    anchors = tuple(_anchors(edit, request.subject, task_model))
    own_texts = (*prompt_texts, *rephrase_texts)
    texts = (*own_texts, *context_texts)
    return EditTexts(edit.id, texts, shares, anchors, own=len(own_texts))


def texts_at_end(edit: Edit, contexts: Sequence[str], task_model: TaskModel) -> EditTexts:
    """Make the texts of an edit with the places at the end of each prompt, whether or not the
    prompts name a subject; otherwise as `texts_of_edit` and `EditTexts.at_end`."""
    plain_texts = list(map(_ended, edit.encodings))
    context_texts = [_ended(encoding) for _, encoding in _encoded_in(edit, contexts, task_model)]
    weights = [
        *[1.0] * len(plain_texts),
        *[1.0 / len(context_texts) for _ in context_texts],
    ]
    shares = tuple(weight / sum(weights) for weight in weights)
    texts = (*plain_texts, *context_texts)
    return EditTexts(edit.id, texts, shares, (), is_at_end=True, own=len(plain_texts))


def _ended(encoding: Encoding) -> LocatedText:
    return LocatedText(encoding, encoding.positions[0])


def subject_place(
    prompt: Prompt, subject: str | None, task_model: TaskModel, before: str = ""
) -> int:
    """Return the position of the subject's last token among the tokens of `before` and the prompt.
    Raises SubjectMissing."""
    wording, tokenizer = task_model.task.asked(prompt), task_model.edited.tokenizer
    sight = getattr(task_model.task, "sight", None)
    if not isinstance(sight, Sight) or not shows(wording.text):
        return subject_position(tokenizer, wording.text, subject, before, is_whole=wording.is_whole)
    pictures, words = leading(wording.text)
    words, front = (replaced(text, sight.placeholder) for text in (words, pictures + before))
    place = subject_position(tokenizer, words, subject, front, is_whole=wording.is_whole)
    text = put_before(before, wording.text)
    return sight.place_among(text, place, is_whole=wording.is_whole)


def _in_contexts(
    edit: Edit, contexts: Sequence[str], task_model: TaskModel
) -> Iterator[LocatedText]:
    """Yield a plain prompt behind each context; none for a turn of a chat, which has a fixed
    beginning."""
    prompt = task_model.task.asked(edit.request.prompt).text
    for context, encoding in _encoded_in(edit, contexts, task_model):
        place = subject_place(prompt, edit.request.subject, task_model, context)
        yield LocatedText(encoding, place)


def _encoded_in(
    edit: Edit, contexts: Sequence[str], task_model: TaskModel
) -> Iterator[tuple[str, Encoding]]:
    """Yield each context with the encoding of the prompt behind it; see `_in_contexts`."""
    request, wording = edit.request, task_model.task.asked(edit.request.prompt)
    if wording.is_whole:
        return
    for context in filter(None, contexts):
        text = put_before(context, wording.text)
        try:
            yield context, task_model.task.encode(text, request.target_new)
        except RequestError:  # too long for the model, or for the task's limits
            continue


def _anchors(edit: Edit, subject: str, task_model: TaskModel) -> Iterator[LocatedText]:
    local_prompts = [
        probe.prompt for probe in edit.request.locality if subject in str(probe.prompt)
    ]
    for prompt in dict.fromkeys([ESSENCE.replace("{}", subject), *local_prompts]):
        try:
            question = task_model.task.question(prompt)
        except RequestError:
            continue
        place = subject_place(prompt, subject, task_model)
        yield LocatedText(Encoding(question, (len(question) - 1,), ()), place)
