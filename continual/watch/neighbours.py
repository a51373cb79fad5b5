"""The neighbourhood of a request: prompts near it that an edit has to answer as before.

Nobody has to give them. The model writes openings about the subject and lists of other subjects;
the request's prompt is asked about these, as a plain text and in a chat turn, and the model writes
about the target, too. Prompts of the store's history, and of the stream, about other subjects are
asked about this one: prompts of other relations are neighbours, prompts of the same relation are
further wordings of the request. Each neighbour goes on with the model's own answer before the edit.
Some of them are memory of this one edit, the others are held out and measured. The words behind the
answer belong to the neighbourhood, too: the model goes on there as if it had always given that
answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Self

from continual.choices import DECODERS
from continual.errors import RequestError
from continual.picture_marks import digests_in, marked, substituted
from continual.pictures.album import album_of
from continual.prompts import (
    Chat,
    Message,
    Prompt,
    compared,
    normalised,
    prompt_json,
    read_prompt,
)
from continual.requests import Request
from continual.site import Site
from continual.site.rows import Rows
from continual.tasks import Encoding
from continual.watch import names
from continual.watch.config import WatchConfig
from continual.watch.general import expected
from continual.watch.passages import Passage
from continual.watch.stating import CorrectedFact
from continual.watch.writing import continued

OPENINGS, LISTS, TARGETS = 5, 1, 1
"""The numbers of texts that the model writes: about a subject, lists of subjects that begin with
this one, and texts about the new answer."""
WRITTEN = 12  # tokens of each
OPENING_TOKENS_MAX = 6  # of a text about the subject that becomes a question
HISTORY_SHARE = 0.5  # of the other subjects, at most, are from the store's history
HISTORY_REQUESTS = 256  # the latest ones, then the stream's, for prompts and subjects
ASKED_ELSEWHERE, ASKED_HELD_OUT = 12, 4
"""Prompts of other relations that are asked about the subject, and the number of them held out: a
third, where there are few."""
TURNS_ASKED = 2  # texts about the subject, as turns of a chat, among the questions
OTHER_PICTURES, OTHER_PROMPTS = 6, 4
"""Pictures of other requests that a prompt is asked about, and their prompts that are asked about
its picture."""
WORDINGS = 2  # prompts of the same relation that are asked about the subject
CHAT_QUESTIONS = 2


@dataclass(frozen=True)
class Neighbourhood:
    """The passages near a request that its edit has to leave alone."""

    memory: tuple[Passage, ...] = ()
    held_out: tuple[Passage, ...] = ()
    behind: tuple[Passage, ...] = ()  # behind the answer: one text for each form of the request
    answers: tuple[int, ...] = ()  # first tokens of the model's answer before the edit
    wordings: tuple[Prompt, ...] = ()  # of the request, from other requests of its relation

    @property
    def silent(self) -> list[Passage]:
        """The passages that the edit's own neurons stay silent on."""
        return [*self.memory, *self.behind]

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a revision's body."""
        parts = {"memory": self.memory, "held_out": self.held_out, "behind": self.behind}
        passages = {n: [passage.to_json() for passage in part] for n, part in parts.items()}
        wordings = [prompt_json(wording) for wording in self.wordings]
        record = {**passages, "answers": list(self.answers), "wordings": wordings}
        return {name: value for name, value in record.items() if value}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Read a neighbourhood from its JSON form."""

        def passages(name: str) -> tuple[Passage, ...]:
            return tuple(map(Passage.from_json, record.get(name, ())))

        return cls(
            passages("memory"),
            passages("held_out"),
            passages("behind"),
            tuple(record.get("answers", ())),
            tuple(map(read_prompt, record.get("wordings", ()))),
        )

    def fact(self, request: Request) -> CorrectedFact:
        """Return the request's fact as it stood before the edit."""
        return CorrectedFact.of(request.prompt, request.subject, self.answers)


@dataclass(frozen=True)
class WatchedRequest:
    """A request with the tokens that its answer is judged by."""

    request: Request
    encodings: tuple[Encoding, ...]  # of each form that has to be right; the prompt's first
    rows: Rows  # of the prompt's encoding at the least, as the model stands
    is_known: bool = False  # training probes name the subject: the model need not write about it


@dataclass
class _NeighbourhoodDraft:
    """A neighbourhood in the making."""

    asked: WatchedRequest
    answers: tuple[int, ...]
    rng: random.Random
    questions: list[tuple[int, ...]] = field(default_factory=list)
    openings: list[tuple[tuple[int, ...], int]] = field(default_factory=list)  # ids, first
    wordings: tuple[Prompt, ...] = ()
    held_out: int = 0  # of the questions, the last so many

    @property
    def fact(self) -> CorrectedFact:
        """The request's fact."""
        request = self.asked.request
        return CorrectedFact.of(request.prompt, request.subject, self.answers)


def write(
    site: Site,
    asked: Sequence[WatchedRequest],
    known: Iterable[Request],
    config: WatchConfig,
    seed: int,
) -> list[Neighbourhood]:
    """Write the neighbourhoods of these requests; `known` are the requests of the store's history,
    the latest first, and behind them the stream's."""
    if site.task.name not in DECODERS or not config.neighbours:
        return [Neighbourhood() for _ in asked]
    drafts = [_draft(site, correction, seed) for correction in asked]
    _write_openings(site, drafts, list(islice(known, HISTORY_REQUESTS)), config, seed)
    questions = [question for draft in drafts for question in draft.questions]
    endings = [_behind(encoding) for draft in drafts for encoding in draft.asked.encodings]
    answers = _answers(site, [*questions, *endings], max(config.said, config.behind))
    answered, ends = iter(answers[: len(questions)]), iter(answers[len(questions) :])
    return [_neighbourhood(site, draft, answered, ends, config) for draft in drafts]


def _draft(site: Site, asked: WatchedRequest, seed: int) -> _NeighbourhoodDraft:
    """Begin with the answer that the model gives now."""
    request, encoding = asked.request, asked.encodings[0]
    count = len(encoding.targets)
    answers = {_first_said(site, asked, count)} - {encoding.targets[0]}
    if request.target_old:
        answers |= _first_token(site, request.prompt, request.target_old)
    return _NeighbourhoodDraft(asked, tuple(sorted(answers)), random.Random(f"{seed}|{request.id}"))


def _first_said(site: Site, asked: WatchedRequest, count: int) -> int:
    """Return the model's answer to the prompt, its first token."""
    if not site.has_rows:
        return int(site.leading_in_full(asked.encodings[:1])[0][0])
    hidden = site.patched(asked.rows)[:count]
    return int(site.logits(hidden).argmax(-1)[0])


def _first_token(site: Site, prompt: Prompt, answer: str) -> set[int]:
    try:
        return {site.task.encode(prompt, answer).targets[0]}
    except RequestError:
        return set()


def _write_openings(
    site: Site,
    drafts: Sequence[_NeighbourhoodDraft],
    known: Sequence[Request],
    config: WatchConfig,
    seed: int,
) -> None:
    """Let the model write about each subject and its target, and list others; then collect the
    questions."""
    drafts = [draft for draft in drafts if not draft.asked.is_known]
    starts = [_starts(site, draft.asked.request) for draft in drafts]
    all_starts = [start for group in starts for start in group]
    continuations = iter(
        continued(site.edited, all_starts, WRITTEN, seed=seed) if all_starts else ()
    )
    for draft, group in zip(drafts, starts, strict=True):
        texts = [(start, next(continuations)) for start in group]
        lists = texts[:LISTS] if draft.asked.request.subject else []
        for start, text in texts[len(lists) :]:
            draft.openings.append(((*start, *text), max(0, len(start) - 1)))
        list_names = [name for _, text in lists for name in _listed(site, draft, text)]
        turns = _turns(site, draft, config)
        draft.openings += [(turn, len(turn) - 1) for turn in turns[TURNS_ASKED:]]
        _look_elsewhere(site, draft, known, config)
        _ask(site, draft, turns[:TURNS_ASKED], _others(draft, list_names, known, config), config)
        _ask_elsewhere(site, draft, known, config)


def _starts(site: Site, request: Request) -> list[tuple[int, ...]]:
    """Return the beginnings of texts: of lists and openings about the subject, or without one of
    the prompt itself; and of texts about the new answer."""
    if request.subject:
        texts = [*[f"{request.subject},"] * LISTS, *[request.subject] * OPENINGS]
    else:
        words = str(request.prompt).split()
        cuts = (1 + number * len(words) // (OPENINGS + 1) for number in range(OPENINGS))
        texts = [" ".join(words[:length]) for length in cuts]
    texts += [request.target_new.strip()] * TARGETS
    return [ids for ids in (_text_ids(site, text) for text in texts) if ids]


def _text_ids(site: Site, text: str) -> tuple[int, ...]:
    """Return the tokens of the beginning of a text, which may show pictures."""
    if digests_in(text):
        return site.task.tokens(text)
    return tuple(site.edited.tokenizer(text)["input_ids"])


def _listed(site: Site, draft: _NeighbourhoodDraft, text: Sequence[int]) -> list[str]:
    """Return the names of a list without the last one, which may be cut off."""
    listing: str = site.edited.tokenizer.decode(list(text), skip_special_tokens=True)
    return names.listed(listing, draft.asked.request.subject or "")[:-1]


def _others(
    draft: _NeighbourhoodDraft, listed: Iterable[str], known: Sequence[Request], config: WatchConfig
) -> list[str]:
    """Return other subjects: from the store's history, and from the model's lists."""
    subject = draft.asked.request.subject or ""
    count = config.neighbours // 2
    subjects = [request.subject for request in known if request.subject]
    history_names = names.drawn(
        subjects, subject, int(HISTORY_SHARE * count), draft.rng.getrandbits(32)
    )
    model_names = [name for name in dict.fromkeys(listed) if name not in history_names]
    return [*history_names, *model_names][:count]


def _turns(site: Site, draft: _NeighbourhoodDraft, config: WatchConfig) -> list[tuple[int, ...]]:
    """Return the texts about the subject as turns of a chat, in random order: the texts whole, and
    cut short. None for a request that is no chat."""
    prompt = draft.asked.request.prompt
    if isinstance(prompt, str):
        return []
    *before, asking = prompt.messages
    turns = []
    for ids, place in draft.openings:
        for length in (_short(draft, place), len(ids)):
            text = marked(site.edited.tokenizer, ids[:length], skip_special_tokens=True)
            turns.append(_question(site, Chat((*before, Message(asking.role, text.strip())))))
    distinct = [turn for turn in dict.fromkeys(turns) if turn and _fits(site, turn, config)]
    draft.rng.shuffle(distinct)
    return distinct


def _short(draft: _NeighbourhoodDraft, place: int) -> int:
    """Draw the number of tokens of a text that is cut short behind a place."""
    return place + 1 + draft.rng.randrange(1, OPENING_TOKENS_MAX + 1)


def _ask(
    site: Site,
    draft: _NeighbourhoodDraft,
    turns: Sequence[tuple[int, ...]],
    others: Sequence[str],
    config: WatchConfig,
) -> None:
    """Collect the questions: the prompt about others, the openings cut short, the `turns` of a
    chat, and in chat turns the prompt about others and whether the new answer is true."""
    request = draft.asked.request
    about_others: list[Prompt] = []
    if request.subject:
        about_others = [about_other(request.prompt, request.subject, name) for name in others]
    questions = [_question(site, p) for p in about_others if p != request.prompt]
    questions += turns
    for ids, place in draft.openings:
        length = _short(draft, place)
        questions.append(ids[:length] if length < len(ids) else None)
    if isinstance(request.prompt, str):
        asked = [f"{request.prompt} {request.target_new.strip()}?"]
        asked += [p for p in about_others[-CHAT_QUESTIONS:] if isinstance(p, str)]
        questions += [_question(site, Chat.asking(turn)) for turn in asked]
    edit_questions = {encoding.question.ids for encoding in draft.asked.encodings}
    candidates = [
        q
        for q in dict.fromkeys(questions)
        if q and q not in edit_questions and _fits(site, q, config)
    ]
    draft.rng.shuffle(candidates)
    draft.questions = [*draft.questions, *candidates][: config.neighbours]


def _look_elsewhere(
    site: Site, draft: _NeighbourhoodDraft, known: Sequence[Request], config: WatchConfig
) -> None:
    """Ask the prompt about other pictures, and other prompts about its picture: an edit that looks
    at words alone, or at the picture alone, changes these. Other pictures are those of the history
    and the stream, and a plain one; no picture at all is one more case."""
    request = draft.asked.request
    pictures = digests_in(str(request.prompt))
    album = album_of(site.task)
    if not pictures or album is None:
        return
    shown = [other for r in known for other in digests_in(str(r.prompt)) if other not in pictures]
    others = list(dict.fromkeys(shown))
    sample = draft.rng.sample(others, min(OTHER_PICTURES, len(others)))
    prompts: list[Prompt] = [_showing(request.prompt, [other]) for other in sample]
    prompts += [_showing(request.prompt, [album.plain()]), _showing(request.prompt, [])]
    asked = [_showing(r.prompt, pictures) for r in known if digests_in(str(r.prompt))]
    words = [p for p in dict.fromkeys(asked) if compared(p) != compared(request.prompt)]
    prompts += draft.rng.sample(words, min(OTHER_PROMPTS, len(words)))
    edit_questions = {encoding.question.ids for encoding in draft.asked.encodings}
    questions = dict.fromkeys(_question(site, prompt) for prompt in prompts)
    draft.questions = [
        q for q in questions if q and q not in edit_questions and _fits(site, q, config)
    ]
    draft.rng.shuffle(draft.questions)


def _showing(prompt: Prompt, pictures: Sequence[str]) -> Prompt:
    """Return the prompt with these pictures in the place of its own, one for each, the first for
    those beyond; without any picture it shows none."""
    if isinstance(prompt, str):
        return substituted(prompt, pictures)
    turns = (Message(m.role, substituted(m.content, pictures)) for m in prompt.messages)
    return Chat(tuple(turns))


def _ask_elsewhere(
    site: Site, draft: _NeighbourhoodDraft, known: Sequence[Request], config: WatchConfig
) -> None:
    """Ask the history's prompts about the subject: prompts of the same relation are wordings of the
    request; of the others some are held out, and the rest is read like openings."""
    correction = draft.asked.request
    if not correction.subject:
        return
    questions: dict[Prompt, None] = {}
    wordings: dict[Prompt, None] = {}
    for request in known:
        if request.subject and type(request.prompt) is type(correction.prompt):
            prompt = about_other(request.prompt, request.subject, correction.subject)
            if prompt not in (correction.prompt, request.prompt):
                (wordings if is_alike(correction, request) else questions)[prompt] = None
    draft.wordings = tuple(islice(wordings, WORDINGS))
    prompts = [prompt for prompt in questions if prompt not in wordings]
    sample = draft.rng.sample(prompts, min(ASKED_ELSEWHERE, len(prompts)))
    tokens = [question for prompt in sample if (question := _question(site, prompt)) is not None]
    additions = [q for q in tokens if q not in draft.questions and _fits(site, q, config)]
    draft.held_out = min(ASKED_HELD_OUT, len(additions) // 3)
    draft.questions += additions[: draft.held_out]
    draft.openings += [(question, len(question) - 1) for question in additions[draft.held_out :]]


def is_alike(one: Request, other: Request) -> bool:
    """Tell whether two requests are about the same relation, by its name."""
    return bool(one.relation) and normalised(one.relation or "") == normalised(other.relation or "")


def about_other(prompt: Prompt, subject: str, other: str) -> Prompt:
    """Return the prompt with another subject in the place of its own."""
    if isinstance(prompt, str):
        return prompt.replace(subject, other)
    turns = (Message(m.role, m.content.replace(subject, other)) for m in prompt.messages)
    return Chat(tuple(turns))


def _question(site: Site, prompt: Prompt) -> tuple[int, ...] | None:
    """Return a prompt's tokens; None if a limit or the template forbids it."""
    try:
        return site.task.question(prompt).ids
    except RequestError:
        return None


def _fits(site: Site, question: tuple[int, ...], config: WatchConfig) -> bool:
    room = site.edited.base.context_tokens_max
    return room is None or len(question) + config.said <= room


def _behind(encoding: Encoding) -> tuple[int, ...]:
    """Return the tokens of a prompt with its answer."""
    return (*encoding.question.ids, *encoding.targets)


def _answers(site: Site, questions: Sequence[tuple[int, ...]], tokens: int) -> list[Passage]:
    """Return each question with the model's own answer behind it, or without one if there is no
    room."""
    room = site.edited.base.context_tokens_max
    prompts = [q for q in questions if room is None or len(q) + tokens <= room]
    answers = (
        dict(zip(prompts, continued(site.edited, prompts, tokens), strict=True)) if prompts else {}
    )
    return [
        Passage((*q, *answer[:-1]), len(q) - 1, answer)
        for q in questions
        for answer in (answers.get(q, ()),)
    ]


def _neighbourhood(
    site: Site,
    draft: _NeighbourhoodDraft,
    answered: Iterator[Passage],
    ends: Iterator[Passage],
    config: WatchConfig,
) -> Neighbourhood:
    """Finish a draft. Every other question is held out, and the draft's last `held_out` ones;
    passages that state the corrected fact are left out. One pass over the openings reads their
    expected tokens; the answers of questions are written already."""
    questions = [next(answered).cut(config.said) for _ in draft.questions]
    boundary = len(questions) - draft.held_out
    questions, held_out = questions[:boundary], questions[boundary:]
    endings = [next(ends).cut(config.behind) for _ in draft.asked.encodings]
    probes, held_out = (
        [q for q in group if q.rows and not _states(site, draft.fact, q)]
        for group in (questions, held_out)
    )
    opening_passages = [
        Passage(ids, place, (0,) * (len(ids) - place)) for ids, place in draft.openings
    ]
    if opening_passages:
        rows = site.rows([passage.encoding() for passage in opening_passages])
        opening_passages = list(expected(site, opening_passages, rows))
    quiet_passages = [
        part for passage in opening_passages for part in _unstated(draft.fact, passage)
    ]
    readable_endings = tuple(passage for passage in endings if passage.rows)
    return Neighbourhood(
        (*probes[1::2], *quiet_passages),
        (*probes[::2], *held_out),
        readable_endings,
        draft.answers,
        draft.wordings,
    )


def _states(site: Site, fact: CorrectedFact, passage: Passage) -> bool:
    text = site.edited.decode(passage.ids[: passage.first + 1])
    return fact.is_about(text) and not fact.answers.isdisjoint(passage.said)


def _unstated(fact: CorrectedFact, passage: Passage) -> list[Passage]:
    """Return a text about the subject up to the place where it states the fact; none if that is its
    beginning."""
    place = next((i for i, token in enumerate(passage.said) if token in fact.answers), None)
    part = passage if place is None else passage.cut(place)
    return [part] if part.rows else []
