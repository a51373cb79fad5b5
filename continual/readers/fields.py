"""Typed access to the fields of a foreign record.

Its errors name the wrong key and the kind of value that was expected. Leaves the keys and their
meaning to each format, and the checks of prompts and targets to ``Request``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from continual.errors import RequestError
from continual.naming import names
from continual.prompts import normalised
from continual.requests import Probe, named

SLOT = "{}"  # where a template takes its subject


def text(record: Mapping[str, object], key: str) -> str:
    """Return the text under ``key``. Raises RequestError if it is missing or blank."""
    value = optional_text(record, key)
    if value is None:
        raise RequestError(f"{named(key)} is {'empty' if key in record else 'missing'}")
    return value


def optional_text(record: Mapping[str, object], key: str) -> str | None:
    """Return the text under ``key``; ``None`` if it is absent, null or blank."""
    value = record.get(key)
    if value is not None and not isinstance(value, str):
        raise _expected("text", key, value)
    return value if value and value.strip() else None


def texts(record: Mapping[str, object], key: str) -> tuple[str, ...]:
    """Return the list of texts under ``key``; empty if it is absent or null."""
    return tuple(_text_item(item, key) for item in items(record, key))


def one_or_more_texts(record: Mapping[str, object], key: str) -> tuple[str, ...]:
    """Return one text, or a list of them, as a tuple; empty if it is absent, null or blank."""
    if isinstance(record.get(key), list):
        return texts(record, key)
    value = optional_text(record, key)
    return () if value is None else (value,)


def items(record: Mapping[str, object], key: str) -> Sequence[object]:
    """Return the list under ``key``; empty if it is absent or null."""
    value = record.get(key)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _expected("a list", key, value)
    return value


def mapping(value: object, key: str) -> Mapping[str, object]:
    """Return the value under ``key`` as an object. Raises RequestError for any other value."""
    if not isinstance(value, dict):
        raise _expected("an object", key, value)
    return value


def identifier(record: Mapping[str, object], key: str) -> str | None:
    """Return the source's own identifier, a number or a text, as text; None if it is absent."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str | None):
        raise _expected("a whole number or text", key, value)
    return None if value is None else str(value)


def first_answer(record: Mapping[str, object], key: str) -> str | None:
    """Return the answer under ``key``: a text, or the first of a list of equally good ones; None if
    there is none."""
    value = record.get(key)
    while isinstance(value, list):
        value = value[0] if value else None
    return optional_text({key: value}, key)


def filled(template: str, subject: str, key: str) -> str:
    """Return the template with the subject in its one slot. Raises RequestError for another number
    of slots."""
    if template.count(SLOT) != 1:
        slots = template.count(SLOT)
        raise RequestError(f"{named(key)} has {slots} slots {SLOT} for the subject, expected one")
    return template.replace(SLOT, subject)


def slotted(text: str, subject: str, key: str) -> str:
    """Return the text with the subject in its slot, if it has one and does not name the subject."""
    if SLOT not in text or names(normalised(text), normalised(subject)):
        return text
    return filled(text, subject, key)


def slotted_text(record: Mapping[str, object], key: str) -> str:
    """Return the text under ``key``, with the record's ``subject`` in its slot, if it has one."""
    subject = optional_text(record, "subject")
    prompt = text(record, key)
    return prompt if subject is None else slotted(prompt, subject, key)


def probe(prompt: str | None, answer: str | None, name: str, key: str) -> tuple[Probe, ...]:
    """Return the probe, if there is an answer to measure against. Raises RequestError for an answer
    without a prompt."""
    if answer is None:
        return ()
    if prompt is None:
        raise RequestError(f"{named(key)} has an answer without a prompt")
    return (Probe(prompt=prompt, answer=answer, name=name),)


def probe_pair(
    record: Mapping[str, object], prompt_key: str, answer_key: str, name: str
) -> tuple[Probe, ...]:
    """Return the probe whose prompt and answer stand under two keys of a flat record."""
    prompt, answer = optional_text(record, prompt_key), first_answer(record, answer_key)
    return probe(prompt, answer, name, prompt_key)


def probe_groups(record: Mapping[str, object], key: str) -> tuple[Probe, ...]:
    """Return the probes under ``key``: ``{name: {prompt, ground_truth}}``, or a list of such
    objects.

    The two inner values may also be lists of one length, one probe each.
    """
    if record.get(key) is None:
        return ()
    groups = mapping(record[key], key)
    return tuple(
        probe
        for name, group in groups.items()
        for entry in (group if isinstance(group, list) else [group])
        for probe in _group(mapping(entry, f"{key}.{name}"), name, f"{key}.{name}")
    )


def _group(entry: Mapping[str, object], name: str, key: str) -> tuple[Probe, ...]:
    prompts, answers = entry.get("prompt"), entry.get("ground_truth")
    if not isinstance(prompts, list):
        prompts, answers = [prompts], [answers]
    if not isinstance(answers, list) or len(answers) != len(prompts):
        raise RequestError(f"{named(key)}: expected one ground_truth for each prompt")
    pairs = ({"prompt": p, "ground_truth": a} for p, a in zip(prompts, answers, strict=True))
    return tuple(
        probe for pair in pairs for probe in probe_pair(pair, "prompt", "ground_truth", name)
    )


def _text_item(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise _expected("a list of texts", key, [value])
    return value


_KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}


def _expected(what: str, key: str, value: object) -> RequestError:
    if isinstance(value, list) and value:
        kind = f"a list with {_KINDS.get(type(value[0]), 'a number')} in it"
    else:
        kind = _KINDS.get(type(value), "a number")
    return RequestError(f"{named(key)}: expected {what}, found {kind}")
