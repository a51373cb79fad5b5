"""The texts of an edit, each with the token whose key may open the edit's records.

An edit can be keyed at its subject's last token, at its prompt's last one, or at each token that
says one of the answer's. Knows texts and tokens; leaves keys to `gates`, and values to the search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from continual.editors.lookup.config import LookupConfig
from continual.errors import RequestError
from continual.locate_then_edit.edit_texts import (
    EditTexts,
    LocatedText,
    subject_place,
    texts_at_end,
    texts_of_edit,
)
from continual.locate_then_edit.prefixes import Prefixes, behind
from continual.locate_then_edit.subjects import SubjectMissing
from continual.prompts import Prompt
from continual.proposals import Edit, EditContext
from continual.tasks import Encoding

SUBJECT, END, ANSWER = "subject", "end", "answer"
"""The tokens that an edit can be keyed at: the subject's last one, the prompt's last one, or each
token that says one of the answer's."""


@dataclass(frozen=True)
class KeyedTexts:
    """The texts that one value is searched for on, and copies whose keys should open it, too."""

    learned: EditTexts
    copies: tuple[LocatedText, ...]

    @property
    def own(self) -> Sequence[LocatedText]:
        """The prompt in all its forms, and the rephrases that may be learned from."""
        return self.learned.texts[: self.learned.own]

    @property
    def wanted(self) -> Sequence[LocatedText]:
        """All texts whose keys should open a record; the own ones first."""
        return (*self.learned.texts, *self.copies)

    def saying(self, number: int) -> KeyedTexts:
        """Return the texts up to the token that says token `number` of the answer. Texts whose
        answer is tokenised otherwise than the prompt's are left out."""
        targets = self.own[0].encoding.targets
        texts, own_texts, copies = (
            tuple(t.saying(number) for t in group if t.encoding.targets == targets)
            for group in (self.learned.texts, self.own, self.copies)
        )
        shares = (1.0 / len(texts),) * len(texts)
        learned = replace(self.learned, texts=texts, shares=shares, own=len(own_texts))
        return KeyedTexts(learned, copies)


@dataclass(frozen=True)
class KeyedEdit:
    """An edit keyed at one kind of token: the texts of each value, in the order of its tokens."""

    where: str
    parts: tuple[KeyedTexts, ...]

    def by_token(self) -> KeyedEdit | None:
        """Return the same edit with a value for each token of the answer; None if it has one token,
        or is not keyed at the prompt's end."""
        if self.where != END:
            return None
        (texts,) = self.parts
        count = len(texts.own[0].encoding.targets)
        if count == 1:
            return None
        return KeyedEdit(ANSWER, tuple(texts.saying(number) for number in range(count)))


def keyed(
    edit: Edit,
    contexts: Sequence[str],
    prefixes: Prefixes,
    context: EditContext,
    config: LookupConfig,
) -> list[KeyedEdit]:
    """Return an edit keyed at its subject and at its prompt's end, as far as `config.place` and its
    prompt allow."""
    sentences = prefixes.draw_for(edit.id, config.copies, context)
    prompts = [*behind(sentences, edit.request.prompt), *edit.wordings]
    choices: list[KeyedEdit] = []
    if config.place != END:
        choices += _at_subject(edit, contexts, prompts, context)
    if config.place != SUBJECT:
        learned = texts_at_end(edit, contexts, context.site)
        encodings = (encoding for _, encoding in _encoded(edit, prompts, context))
        copies = tuple(LocatedText(e, e.positions[0]) for e in encodings)
        choices.append(KeyedEdit(END, (KeyedTexts(learned, copies),)))
    return choices


def _at_subject(
    edit: Edit, contexts: Sequence[str], prompts: Sequence[Prompt], context: EditContext
) -> Iterator[KeyedEdit]:
    """Yield an edit keyed at its subject, if its prompt names that. Copies that do not name it once
    are left out."""
    subject = edit.request.subject
    try:
        learned = texts_of_edit(edit, contexts, context.site)
    except SubjectMissing:
        return
    copies = (
        LocatedText(encoding, subject_place(prompt, subject, context.site))
        for prompt, encoding in _encoded(edit, prompts, context)
        if str(prompt).count(str(subject)) == 1
    )
    yield KeyedEdit(SUBJECT, (KeyedTexts(learned, tuple(copies)),))


def _encoded(
    edit: Edit, prompts: Sequence[Prompt], context: EditContext
) -> Iterator[tuple[Prompt, Encoding]]:
    """Yield each prompt with its encoding, without those that break a limit."""
    for prompt in prompts:
        try:
            yield prompt, context.site.task.encode(prompt, edit.request.target_new)
        except RequestError:
            continue
