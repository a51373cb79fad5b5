"""The sample: facts to write in trials, their rewordings, and texts and facts that have to stay.

The facts are requests of a stream or of the history that the base answers otherwise. If there are
too few, prompts are cut from texts that the base wrote, with the next word of another text as the
target. Rewordings are held out of a trial: the request's own rephrases, the wordings of other
requests of its relation, and the prompt behind sentences that the base wrote, as far as the base
answers them like the prompt. A request's `held_out_rephrases` are not used: they measure the run.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice

from continual.errors import RequestError
from continual.picture_marks import spelled
from continual.prompts import Prompt
from continual.recheck.encoded_requests import EncodedRequest, encode
from continual.requests import Request
from continual.site import Site
from continual.tasks import Encoding
from continual.watch import neighbours
from continual.watch.config import WatchConfig
from continual.watch.general import GeneralText
from continual.watch.neighbours import Neighbourhood, WatchedRequest, about_other, is_alike
from continual.watch.passages import Passage
from continual.watch.writing import continued

LENT = 2  # wordings that other requests lend
BEHIND = 2  # sentences that a prompt is put behind
SENTENCE_WORDS_MAX = 12
COMPARED = 2  # tokens by which two answers of the base are told apart
OTHERS_MAX = 256  # other facts
CUT = 0.6  # share of a text's words that becomes the prompt
WORDS_MIN = 5  # a text with no more words is not cut


@dataclass(frozen=True)
class CalibrationFact:
    """A request without its rephrases, and its rewordings."""

    encoded_request: EncodedRequest
    rewordings: tuple[Encoding, ...]  # with the new target

    @property
    def id(self) -> str:
        """The request's id."""
        return self.encoded_request.id


@dataclass(frozen=True)
class Sample:
    """The facts that trials write, and the probes that measure them, as the base answers them."""

    facts: tuple[CalibrationFact, ...]
    memory: tuple[Passage, ...]  # general text on which editors stay silent
    general: tuple[Encoding, ...]  # positions of general text that is held out
    others: tuple[Encoding, ...]  # other facts that the base knows
    source: str  # the facts' origin, in words for people
    write: Callable[[Sequence[EncodedRequest]], list[Neighbourhood]]

    @cached_property
    def neighbourhoods(self) -> Mapping[str, Neighbourhood]:
        """The neighbourhood of each fact by its id, written at the first use."""
        encoded_requests = [fact.encoded_request for fact in self.facts]
        results = self.write(encoded_requests)
        return {
            c.id: neighbourhood for c, neighbourhood in zip(encoded_requests, results, strict=True)
        }

    @property
    def has_neighbourhoods(self) -> bool:
        """True once the neighbourhoods are written."""
        return "neighbourhoods" in self.__dict__  # without writing them

    @property
    def digest(self) -> str:
        """The SHA-256 of the facts and of the numbers of probes: names the sample."""
        parts = [fact.encoded_request.request.to_json() for fact in self.facts]
        counts = [len(self.general), len(self.others), len(self.memory)]
        text = json.dumps([parts, counts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Draw:
    """Draws samples for a model and its general text. The model has to be at base."""

    site: Site
    general: GeneralText
    watch: WatchConfig
    seed: int

    def sample(
        self, requests: Sequence[Request], source: str, others: Sequence[Encoding], count: int
    ) -> Sample:
        """Draw `count` facts from the requests, or from texts of the base if the requests give too
        few.

        `others` are probes; the base's right answers among them become the sample's other facts.
        """
        encoded_requests = self._unknown(requests, count)
        if len(encoded_requests) < count // 2:
            source = "prompts cut from what the base writes"
            encoded_requests = self._unknown(list(self._own()), count)
        ids = {encoded_request.id for encoded_request in encoded_requests}
        all_requests = [c.request for c in encoded_requests]
        all_requests += [request for request in requests if request.id not in ids]
        return Sample(
            tuple(self._facts(encoded_requests, all_requests)),
            self.general.memory,
            tuple(e for passage in self.general.held_out for e in passage.positions()),
            tuple(self._known(others)),
            source,
            partial(self._neighbourhoods, all_requests),
        )

    def _neighbourhoods(
        self, known: Sequence[Request], encoded_requests: Sequence[EncodedRequest]
    ) -> list[Neighbourhood]:
        corrections = [
            WatchedRequest(c.request, c.required, self.site.rows(c.required))
            for c in encoded_requests
        ]
        return neighbours.write(self.site, corrections, known, self.watch, self.seed)

    # -- facts

    def _unknown(self, requests: Sequence[Request], count: int) -> list[EncodedRequest]:
        """Draw requests that the base answers wrongly, each fact once. All their texts have to fit
        the model; requests that name their subject come first."""
        draw = random.Random(self.seed).sample(requests, len(requests))
        by_key = {r.key: _without_rephrases(r) for r in draw}
        encoded_requests = list(islice(self._encoded(by_key.values()), 3 * count))
        prompts = [encoded_request.learned[0] for encoded_request in encoded_requests]
        verdicts = self.site.judge_in_full(prompts) if prompts else []
        unknowns = [
            c for c, is_right in zip(encoded_requests, verdicts, strict=True) if not is_right
        ]
        with_subjects = [c for c in unknowns if c.request.named_subject]
        return [*with_subjects, *(c for c in unknowns if not c.request.named_subject)][:count]

    def _encoded(self, requests: Iterable[Request]) -> Iterator[EncodedRequest]:
        for request in requests:
            try:
                yield encode(request, self.site.task)
            except RequestError:
                continue

    def _own(self) -> Iterator[Request]:
        """Yield requests cut from general text in memory; the target is a word of the next text."""
        texts = [words for words in map(self._words, self.general.memory) if len(words) > WORDS_MIN]
        for words, successor in zip(texts, [*texts[1:], *texts[:1]], strict=True):
            length, place = int(CUT * len(words)), int(CUT * len(successor))
            subject = max(words[1:length], key=len)
            prompt = " ".join(words[:length])
            if successor[place] == words[length]:
                continue
            record = {"prompt": prompt, "target_new": successor[place], "subject": subject}
            try:
                request = Request.from_json(record)
            except RequestError:  # the base wrote characters that no store can hold
                continue
            yield request

    def _words(self, passage: Passage) -> list[str]:
        tokenizer = self.site.edited.tokenizer
        text = spelled(tokenizer, passage.ids, skip_special_tokens=True)
        return text.split()

    # -- rewordings and other facts

    def _facts(
        self, encoded_requests: Sequence[EncodedRequest], known: Sequence[Request]
    ) -> Iterator[CalibrationFact]:
        originals = {_without_rephrases(r).id: r for r in known}
        wordings = [
            self._wordings(c, originals.get(c.id, c.request).rephrases, known)
            for c in encoded_requests
        ]
        rewording_lists = self._answered_alike(encoded_requests, wordings)
        for encoded_request, rewordings in zip(encoded_requests, rewording_lists, strict=True):
            yield CalibrationFact(encoded_request, rewordings)

    def _wordings(
        self, encoded_request: EncodedRequest, own: Sequence[Prompt], known: Sequence[Request]
    ) -> list[Encoding]:
        """Encode other wordings of a request with its new target: its own rephrases, lent wordings,
        and the prompt behind sentences."""
        request = encoded_request.request
        context_prompts = [
            f"{sentence} {request.prompt}"
            for sentence in self._sentences(encoded_request.id)
            if isinstance(request.prompt, str)
        ]
        loans = islice(_lent(request, known), LENT)
        encodings = []
        for wording in dict.fromkeys([*own, *loans, *context_prompts]):
            try:
                encodings.append(self.site.task.encode(wording, request.target_new))
            except RequestError:
                continue
        return encodings

    def _sentences(self, name: str) -> list[str]:
        """Draw BEHIND beginnings of texts in memory, each with a full stop, seeded by `name`."""
        texts = [words[:SENTENCE_WORDS_MAX] for words in map(self._words, self.general.memory)]
        beginnings = [" ".join(words).rstrip(".,;:") + "." for words in texts if words]
        draw = random.Random(f"{self.seed}|{name}")
        return draw.sample(beginnings, min(BEHIND, len(beginnings)))

    def _answered_alike(
        self, encoded_requests: Sequence[EncodedRequest], wordings: Sequence[Sequence[Encoding]]
    ) -> list[tuple[Encoding, ...]]:
        """Return each request's wordings that the base answers like the prompt, by the first
        COMPARED tokens."""
        prompts = [encoded_request.learned[0].question.ids for encoded_request in encoded_requests]
        questions = [encoding.question.ids for group in wordings for encoding in group]
        if not questions:
            return [() for _ in encoded_requests]
        answers = iter(continued(self.site.edited, [*prompts, *questions], COMPARED))
        prompt_answers = list(islice(answers, len(prompts)))
        return [
            tuple(e for e in group if next(answers) == answer)
            for group, answer in zip(wordings, prompt_answers, strict=True)
        ]

    def _known(self, others: Sequence[Encoding]) -> Iterator[Encoding]:
        """Draw up to OTHERS_MAX other facts, and return the ones that the base answers rightly."""
        sample = random.Random(self.seed).sample(others, min(OTHERS_MAX, len(others)))
        verdicts = self.site.judge_in_full(sample) if sample else []
        return (e for e, is_right in zip(sample, verdicts, strict=True) if is_right)


def _lent(request: Request, known: Sequence[Request]) -> Iterator[Prompt]:
    """Yield the prompts of other requests of its relation, with the request's subject put in."""
    if request.subject:
        for lender in known:
            is_of_kind = type(lender.prompt) is type(request.prompt)
            if is_of_kind and lender.subject and is_alike(request, lender):
                prompt = about_other(lender.prompt, lender.subject, request.subject)
                if prompt not in (request.prompt, lender.prompt):
                    yield prompt


def _without_rephrases(request: Request) -> Request:
    """Return the request without rephrases, locality and portability, so that all facts of a sample
    have the same fields."""
    blanks: dict[str, object] = dict.fromkeys(
        ("rephrases", "held_out_rephrases", "locality", "portability"), ()
    )
    return request.model_copy(update=blanks)
