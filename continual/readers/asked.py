"""The question and the answer in records of feedback tools, which each name them as they like.

A question is a text, a list of messages, or an object with one of these under a usual name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from continual.errors import RequestError
from continual.prompts import Prompt, read_prompt
from continual.requests import named

QUESTIONS = ("messages", "prompt", "question", "instruction", "query", "input", "text")
ANSWERS = ("correction", "corrected", "answer", "response", "output", "target", "completion")
_DEPTH_MAX = 4


def prompt_in(value: object, key: str, depth: int = 0) -> Prompt:
    """Return the question in a value. Raises RequestError, which names the key."""
    if isinstance(value, Mapping) and depth < _DEPTH_MAX:
        name = _usual(value, QUESTIONS)
        if name is None:
            raise RequestError(f"{named(key)} has no question: none of {', '.join(QUESTIONS)}")
        return prompt_in(value[name], name, depth + 1)
    try:
        return read_prompt(_messages(value))
    except ValueError as error:
        raise RequestError(f"{named(key)} {error}") from None


def answer_in(value: object, key: str, depth: int = 0) -> str:
    """Return the answer in a value: a text, a message's content, or the first of a list."""
    if isinstance(value, list) and value and depth < _DEPTH_MAX:
        return answer_in(value[0], key, depth + 1)
    if isinstance(value, Mapping) and depth < _DEPTH_MAX:
        name = "content" if "content" in value else _usual(value, ANSWERS)
        if name is not None:
            return answer_in(value[name], name, depth + 1)
    if not isinstance(value, str) or not value.strip():
        raise RequestError(f"{named(key)} has no answer that is a text")
    return value


def _messages(value: object) -> object:
    """Return messages with their roles and contents alone; any other value as it is."""
    if not isinstance(value, list):
        return value
    return [
        {"role": turn.get("role"), "content": turn.get("content")}
        if isinstance(turn, Mapping)
        else turn
        for turn in value
    ]


def _usual(record: Mapping[str, object], names: Sequence[str]) -> str | None:
    """Return the key that is called by one of the names; else the only key there is."""
    found = next((name for name in names if record.get(name)), None)
    return next(iter(record)) if found is None and len(record) == 1 else found
