"""Requests and probes: the corrections to make, and the answers that have to stay right.

Checks the form of a request, and gives it its name (``id``) and the key by which requests compete
(``key``). Leaves the formats of the datasets to ``readers``, the lines of their files to
``streams``, and everything about tokens to the tasks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from continual.errors import CeditError, RequestError
from continual.naming import names
from continual.prompts import (
    KEY_SEPARATOR,
    Chat,
    Prompt,
    compared,
    filled_text,
    normalised,
    prompt_json,
    read_prompt,
    storable_text,
)

SUBJECT_CHARACTERS_MAX = 8192
LABEL_CHARACTERS_MAX = 512  # relations, names of probe groups, identifiers of the source

ID_HEX_DIGITS = 32

PLAIN, CHAT = "plain", "chat"
FORMS = (PLAIN, CHAT)
"""The forms in which a request's prompt may be asked: as a text to continue, and as the turn of a
user."""

_NAMED_MAX = 40  # characters of a foreign name that a message repeats
_OF_STREAMS = ("line_bytes_max", "array_bytes_max")
_PROBLEMS_MAX = 3  # problems that one message lists


@dataclass(frozen=True)
class Limits:
    """The limits on the sizes of a request. The tasks hold the limits of prompts and targets, which
    a store's `[task]` table sets by the same names; streams hold the limits of lines and arrays,
    which its `[stream]` table sets."""

    line_bytes_max: int = 1_000_000
    array_bytes_max: int = 256_000_000
    prompt_characters_max: int = 8192
    target_characters_max: int = 4096
    prompt_tokens_max: int = 512
    target_tokens_max: int = 512
    probes_max: int = 256  # rephrases, locality and portability of one request, together

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Return the limits that a `[task]` table names, with the defaults for the others. Raises
        CeditError for a value that is no whole number from 1 on."""
        names = [field.name for field in fields(cls) if field.name not in _OF_STREAMS]
        named_limits = {name: settings[name] for name in names if name in settings}
        for name, limit in named_limits.items():
            if type(limit) is not int or limit < 1:
                raise CeditError(f"[task] {name} = {limit!r}: it is a whole number from 1 on.")
        return cls(**named_limits)


def _clean(value: str, characters_max: int) -> str:
    """Return the text without its surrounding whitespace, checked as `storable_text` does."""
    return storable_text(value.strip(), characters_max)


def _absent_if_blank(value: str | None, characters_max: int) -> str | None:
    return None if value is None else _clean(value, characters_max) or None


def _filled_or_absent(value: str | None) -> str | None:
    return value if value is not None and storable_text(value).strip() else None


AnyPrompt = Annotated[Prompt, PlainValidator(read_prompt), PlainSerializer(prompt_json)]
Target = Annotated[str, AfterValidator(filled_text)]
Label = Annotated[str, AfterValidator(partial(_clean, characters_max=LABEL_CHARACTERS_MAX))]
OptionalSubject = Annotated[
    str | None, AfterValidator(partial(_absent_if_blank, characters_max=SUBJECT_CHARACTERS_MAX))
]
OptionalTarget = Annotated[str | None, AfterValidator(_filled_or_absent)]
OptionalLabel = Annotated[
    str | None, AfterValidator(partial(_absent_if_blank, characters_max=LABEL_CHARACTERS_MAX))
]


class Extra(dict[str, Any]):
    """The fields of a record beside a request's own keys: JSON values by key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True))


def _extra(value: object) -> Extra:
    if not isinstance(value, Mapping):
        raise ValueError("needs an object")
    return Extra(value)


class Probe(BaseModel):
    """An input with its expected output; ``name`` is its group in the source, if it had one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: AnyPrompt
    answer: Target
    name: Label = ""

    @model_validator(mode="before")
    @classmethod
    def _from_messages(cls, record: object) -> object:
        return _with_prompt(record)

    def to_json(self) -> dict[str, object]:
        """Return the non-empty fields, ready for ``json.dumps``."""
        return _non_empty(self.model_dump(mode="json"))


class Request(BaseModel):
    """One correction: a prompt, the new target, and the known facts around it.

    A prompt is a text, or a chat, which JSON has under ``messages``. ``forms`` says how a text is
    asked: as it is, as the turn of a user, or both, and then the correction holds for both.
    ``rephrases`` are other ways to ask that an editor may learn from; ``held_out_rephrases`` are
    measured and never learned from. Answers under ``locality`` must stay, answers under
    ``portability`` must follow from the new target. ``case`` is the source's own identifier, and
    ``extra`` has the other fields of its record: both take no part in the request's identity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: AnyPrompt
    target_new: Target
    subject: OptionalSubject = None
    relation: OptionalLabel = None
    target_old: OptionalTarget = None
    forms: tuple[Literal["plain", "chat"], ...] = ()  # empty: plain
    rephrases: tuple[AnyPrompt, ...] = ()
    held_out_rephrases: tuple[AnyPrompt, ...] = ()
    locality: tuple[Probe, ...] = ()
    portability: tuple[Probe, ...] = ()
    case: OptionalLabel = None
    extra: Annotated[Mapping[str, Any], PlainValidator(_extra)] = Extra()

    @model_validator(mode="before")
    @classmethod
    def _from_messages(cls, record: object) -> object:
        return _with_form(_with_prompt(record))

    @field_validator("forms")
    @classmethod
    def _each_form_once(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        """Return the forms in the order of ``FORMS``; empty for plain alone."""
        forms = tuple(form for form in FORMS if form in given)
        return () if forms == (PLAIN,) else forms

    @field_validator("rephrases", "held_out_rephrases")
    @classmethod
    def _only_other_wordings(
        cls, given: tuple[Prompt, ...], info: ValidationInfo
    ) -> tuple[Prompt, ...]:
        """Return each wording once, in order, without the prompt and the wordings to learn from."""
        wordings = {info.data.get("prompt"), *info.data.get("rephrases", ())}
        return tuple(dict.fromkeys(wording for wording in given if wording not in wordings))

    def model_copy(self, *, update: Mapping[str, object] | None = None, deep: bool = False) -> Self:
        """Return a copy with the ``id`` of its own content."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("id", "key", "prompt_key", "asked", "named_subject"):
            copied.__dict__.pop(name, None)  # cached values of the original
        return copied

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompt in its forms, and the rephrases that may be learned from."""
        return (*self.asked, *self.rephrases)

    @cached_property
    def named_subject(self) -> str:
        """The normalised subject; empty if the prompt does not name it."""
        subject = normalised(self.subject or "")
        return subject if subject and names(self.prompt_key, subject) else ""

    @cached_property
    def id(self) -> str:
        """The name of this content: hexadecimal digits of the hash of its canonical JSON."""
        return hashlib.sha256(_canonical(self.content())).hexdigest()[:ID_HEX_DIGITS]

    @cached_property
    def asked(self) -> tuple[Prompt, ...]:
        """The prompt in each form that the correction holds for."""
        if CHAT not in self.forms or isinstance(self.prompt, Chat):
            return (self.prompt,)
        return (self.prompt, Chat.asking(self.prompt))

    @cached_property
    def prompt_key(self) -> str:
        """The normalised prompt."""
        return compared(self.prompt)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the request: two requests compete if they share one."""
        return tuple(dict.fromkeys((self.key, *map(compared, self.asked))))

    @cached_property
    def key(self) -> str:
        """The first key: subject and relation if both are known, else the normalised prompt."""
        if self.subject is None or self.relation is None:
            return self.prompt_key
        fact = ("subject", normalised(self.subject), normalised(self.relation))
        return KEY_SEPARATOR.join(fact)

    def disagrees_with(self, other: Request) -> bool:
        """Tell whether two requests that share a key have different targets, apart from outer
        whitespace."""
        return self.target_new.strip() != other.target_new.strip()

    def to_json(self) -> dict[str, object]:
        """Return the non-empty fields, ready for ``json.dumps``; ``from_json`` gives the same
        request."""
        return _non_empty(self.model_dump(mode="json"))

    def content(self) -> dict[str, object]:
        """Return the fields that ``id`` stands for: all but the source's own ``case`` and
        ``extra``."""
        return {key: value for key, value in self.to_json().items() if key not in NOT_CONTENT}

    def beside(self) -> dict[str, object]:
        """Return the source's own fields beside the content."""
        return {key: value for key, value in self.to_json().items() if key in NOT_CONTENT}

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> Self:
        """Read the request that a record in cedit's own keys describes.

        Raises ``RequestError``, which names the key and the fault.
        """
        try:
            return cls.model_validate(dict(record))
        except ValidationError as error:
            raise RequestError(explain(error)) from None


NOT_CONTENT = ("case", "extra")
OWN_KEYS = ("messages", *(name for name in Request.model_fields if name != "extra"))
"""The keys of cedit's own format."""


def explain(error: ValidationError) -> str:
    """Return the faults of a record as a sentence that names its keys."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    sentences = [_sentence(problem["loc"], problem["type"], problem["msg"]) for problem in problems]
    unlisted = len(sentences) - _PROBLEMS_MAX
    return "; ".join(sentences[:_PROBLEMS_MAX]) + (f"; and {unlisted} more" if unlisted > 0 else "")


def named(name: object) -> str:
    """Return a foreign name in a form for messages: short, quoted, and printable everywhere."""
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


def _with_prompt(record: object) -> object:
    """Return the record with its ``messages``, if it has any, as the prompt. Raises ValueError."""
    if not isinstance(record, Mapping) or "messages" not in record:
        return record
    if "prompt" in record:
        raise ValueError("has a 'prompt' and 'messages': give one of them")
    try:
        chat = Chat.from_json(record["messages"])
    except ValueError as error:
        raise ValueError(f"has 'messages' that cannot be read: it {error}") from None
    return {"prompt": chat, **{key: value for key, value in record.items() if key != "messages"}}


def _with_form(record: object) -> object:
    """Return the record with its prompt as a chat, if it is to be asked in a chat alone. Raises
    ValueError."""
    if not isinstance(record, Mapping) or not record.get("forms"):
        return record
    prompt, forms = record.get("prompt"), record["forms"]
    if isinstance(prompt, Chat):
        raise ValueError("has 'forms' and 'messages': forms are of a prompt that is a text")
    if not isinstance(prompt, str) or list(forms) != [CHAT]:
        return record
    return {**record, "prompt": Chat.asking(filled_text(prompt)), "forms": ()}


def _non_empty(fields: Mapping[str, object]) -> dict[str, object]:
    """Return the fields that are not empty, with those of the probes inside; a prompt that is a
    chat moves to ``messages``."""
    return {
        "messages" if key == "prompt" and isinstance(value, list) else key: _bare(value)
        for key, value in fields.items()
        if value not in (None, "", [], {})
    }


def _bare(value: object) -> object:
    if isinstance(value, list):
        return [_non_empty(item) if isinstance(item, dict) else item for item in value]
    return value


def _canonical(content: Mapping[str, object]) -> bytes:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8")
