"""Requests and probes: what is to be corrected, and what has to stay right around it.

Knows what a well-formed request is, what names it (``id``) and what makes two requests compete
(``key``). Leaves the formats of the datasets to ``readers``, the lines they stand on to
``streams``, and everything about tokens to the tasks.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from continual.errors import RequestError
from continual.naming import names, normalised

PROMPT_CHARACTERS_MAX = 8192
TARGET_CHARACTERS_MAX = 2048
LABEL_CHARACTERS_MAX = 512  # relations, names of probe groups, identifiers of the source
PROBES_MAX = 256  # rephrases, locality and portability of one request, together

ID_HEX_DIGITS = 32
KEY_SEPARATOR = "\x1f"  # counts as whitespace, so no normalised text can hold it

_SURROGATE = re.compile("[\ud800-\udfff]")
_NAMED_MAX = 40  # characters of a foreign name that a message repeats
_PROBLEMS_MAX = 3  # problems that one message lists


@dataclass(frozen=True)
class Limits:
    """How much of anything a request may bring; the token limits are held by the tasks."""

    line_bytes_max: int = 1_000_000
    prompt_tokens_max: int = 512
    target_tokens_max: int = 64


def _clean(value: str, characters_max: int) -> str:
    """The text without its surrounding whitespace."""
    if "\0" in value:
        raise ValueError("holds a NUL character")
    if _SURROGATE.search(value):
        raise ValueError("holds an unpaired surrogate, which has no UTF-8 form")
    text = value.strip()
    if len(text) > characters_max:
        raise ValueError(f"has {len(text)} characters, more than the {characters_max} allowed")
    return text


def _filled(value: str, characters_max: int) -> str:
    text = _clean(value, characters_max)
    if not text:
        raise ValueError("is empty")
    return text


def _absent_if_blank(value: str | None, characters_max: int) -> str | None:
    return None if value is None else _clean(value, characters_max) or None


Prompt = Annotated[str, AfterValidator(partial(_filled, characters_max=PROMPT_CHARACTERS_MAX))]
Target = Annotated[str, AfterValidator(partial(_filled, characters_max=TARGET_CHARACTERS_MAX))]
Label = Annotated[str, AfterValidator(partial(_clean, characters_max=LABEL_CHARACTERS_MAX))]
OptionalSubject = Annotated[
    str | None, AfterValidator(partial(_absent_if_blank, characters_max=PROMPT_CHARACTERS_MAX))
]
OptionalTarget = Annotated[
    str | None, AfterValidator(partial(_absent_if_blank, characters_max=TARGET_CHARACTERS_MAX))
]
OptionalLabel = Annotated[
    str | None, AfterValidator(partial(_absent_if_blank, characters_max=LABEL_CHARACTERS_MAX))
]


class Probe(BaseModel):
    """An input with its expected output; ``name`` is its group in the source, if it had one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Prompt
    answer: Target
    name: Label = ""


class Request(BaseModel):
    """One correction: a prompt, the new target, and what is known around it.

    ``rephrases`` are other ways to ask that an editor may learn from; ``held_out_rephrases`` are
    measured and never learned from. ``locality`` must stay as it is, ``portability`` must follow.
    ``case`` is the source's own identifier and takes no part in the request's identity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Prompt
    target_new: Target
    subject: OptionalSubject = None
    relation: OptionalLabel = None
    target_old: OptionalTarget = None
    rephrases: tuple[Prompt, ...] = ()
    held_out_rephrases: tuple[Prompt, ...] = ()
    locality: tuple[Probe, ...] = ()
    portability: tuple[Probe, ...] = ()
    case: OptionalLabel = None

    @field_validator("rephrases", "held_out_rephrases")
    @classmethod
    def _only_other_wordings(cls, given: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        """Each wording once, in its order, and none that is the prompt or is learned from."""
        known = {info.data.get("prompt"), *info.data.get("rephrases", ())}
        return tuple(dict.fromkeys(wording for wording in given if wording not in known))

    @model_validator(mode="after")
    def _few_enough_probes(self) -> Self:
        groups = (self.rephrases, self.held_out_rephrases, self.locality, self.portability)
        count = sum(map(len, groups))
        if count > PROBES_MAX:
            raise ValueError(
                f"has {count} rephrases and probes, more than the {PROBES_MAX} allowed"
            )
        return self

    def model_copy(self, *, update: Mapping[str, object] | None = None, deep: bool = False) -> Self:
        """A copy; its ``id`` is that of its own content."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("id", "key", "prompt_key", "named_subject"):
            copied.__dict__.pop(name, None)  # what ``cached_property`` kept
        return copied

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt and the rephrases that may be learned from."""
        return (self.prompt, *self.rephrases)

    @cached_property
    def named_subject(self) -> str:
        """The subject as texts are compared; empty where the prompt does not name it."""
        subject = normalised(self.subject or "")
        return subject if subject and names(self.prompt_key, subject) else ""

    @cached_property
    def id(self) -> str:
        """The name of this content: hexadecimal digits of the hash of its canonical JSON."""
        return hashlib.sha256(_canonical(self.content())).hexdigest()[:ID_HEX_DIGITS]

    @cached_property
    def prompt_key(self) -> str:
        """The normalised prompt."""
        return normalised(self.prompt)

    @cached_property
    def key(self) -> str:
        """What makes two requests compete: subject and relation where both are known."""
        if self.subject is None or self.relation is None:
            return self.prompt_key
        fact = ("subject", normalised(self.subject), normalised(self.relation))
        return KEY_SEPARATOR.join(fact)

    def to_json(self) -> dict[str, object]:
        """The non-empty fields, ready for ``json.dumps``; ``from_json`` gives the same request."""
        return _non_empty(self.model_dump(mode="json"))

    def content(self) -> dict[str, object]:
        """What the request says, without the source's own name for it: what ``id`` stands for."""
        return {key: value for key, value in self.to_json().items() if key != "case"}

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> Self:
        """The request that a record in cedit's own keys describes.

        Raises ``RequestError``, naming the key and what is wrong with it.
        """
        try:
            return cls.model_validate(dict(record))
        except ValidationError as error:
            raise RequestError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """What is wrong with a record, in words that name its keys."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    sentences = [_sentence(problem["loc"], problem["type"], problem["msg"]) for problem in problems]
    unlisted = len(sentences) - _PROBLEMS_MAX
    return "; ".join(sentences[:_PROBLEMS_MAX]) + (f"; and {unlisted} more" if unlisted > 0 else "")


def named(name: object) -> str:
    """A foreign name as a message may repeat it: short, quoted, and printable everywhere."""
    text = str(name)
    return ascii(text if len(text) <= _NAMED_MAX else text[:_NAMED_MAX] + "...")


def _sentence(place: tuple[int | str, ...], kind: str, message: str) -> str:
    if not place:
        return f"the request {message.removeprefix('Value error, ')}"
    where = named(place[0]) + "".join(
        f"[{step}]" if isinstance(step, int) else f".{ascii(step[:_NAMED_MAX])[1:-1]}"
        for step in place[1:]
    )
    if kind == "missing":
        return f"{where} is missing"
    if kind == "extra_forbidden":
        return f"{where} is not a key of cedit's own format"
    if kind == "value_error":
        return f"{where} {message.removeprefix('Value error, ')}"
    return f"{where}: {message[:1].lower()}{message[1:]}"


def _non_empty(fields: Mapping[str, object]) -> dict[str, object]:
    """The fields that say something, with the same done to the probes inside."""
    return {key: _bare(value) for key, value in fields.items() if value not in (None, "", [])}


def _bare(value: object) -> object:
    if isinstance(value, list):
        return [_non_empty(item) if isinstance(item, dict) else item for item in value]
    return value


def _canonical(content: Mapping[str, object]) -> bytes:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8")
