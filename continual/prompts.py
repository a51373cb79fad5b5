"""Prompts: a text that goes on, or a chat whose next turn is the model's.

Knows how both are read from JSON and written to it, how a person reads them, and how they are
compared. Leaves their tokens, and the template of a chat, to the tasks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from continual.picture_marks import shown

TEXT_CHARACTERS_MAX = 65_536  # of one text, whatever a store's settings say
MESSAGES_MAX = 64  # of one chat
ROLE_CHARACTERS_MAX = 64
KEY_SEPARATOR = "\x1f"  # counts as whitespace, so no normalised text can hold it
USER, ASSISTANT = "user", "assistant"

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str

    def to_json(self) -> dict[str, str]:
        """The turn as chat templates take it."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Chat:
    """The turns of a chat so far; the model's answer comes next."""

    messages: tuple[Message, ...]

    @classmethod
    def asking(cls, text: str) -> Chat:
        """A chat that a user begins with this text."""
        return cls((Message(USER, text),))

    @classmethod
    def from_json(cls, messages: object) -> Chat:
        """The chat that a list of {"role", "content"} spells. Raises ValueError."""
        if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
            raise ValueError('needs a list of messages, each {"role": text, "content": text}')
        if len(messages) > MESSAGES_MAX:
            raise ValueError(f"has {len(messages)} messages, more than the {MESSAGES_MAX} allowed")
        turns = tuple(_message(number, turn) for number, turn in enumerate(messages))
        if not turns[-1].content.strip():
            raise ValueError("asks nothing: its last message is empty")
        if turns[-1].role == ASSISTANT:
            raise ValueError(
                "ends with the assistant's own turn: leave it out, and give its content as the "
                "target or answer"
            )
        return cls(turns)

    def to_json(self) -> list[dict[str, str]]:
        """The list of messages; `from_json` gives the same chat."""
        return [message.to_json() for message in self.messages]

    def __str__(self) -> str:
        """The chat as a person reads it: a line for each turn."""
        return "\n".join(f"{message.role}: {message.content}" for message in self.messages)


Prompt = str | Chat


def read_prompt(value: object) -> Prompt:
    """The prompt in a JSON value: a text, or a list of messages. Raises ValueError."""
    if isinstance(value, Chat):
        return value
    if isinstance(value, str):
        return filled_text(value)
    if isinstance(value, Mapping) and value.keys() == {"messages"}:
        return Chat.from_json(value["messages"])
    if isinstance(value, Sequence):
        return Chat.from_json(value)
    raise ValueError("needs a text, or a list of messages")


def prompt_json(prompt: Prompt) -> str | list[dict[str, str]]:
    """The prompt as a JSON value; `read_prompt` gives the same prompt."""
    return prompt.to_json() if isinstance(prompt, Chat) else prompt


def shown_prompt(record: Mapping[str, object]) -> str:
    """The prompt of a stored request or probe, as a person reads it."""
    if "messages" in record:
        return shown(str(Chat.from_json(record["messages"])))
    return shown(str(record.get("prompt", "")))


def compared(prompt: Prompt) -> str:
    """The prompt as it is compared with others: see `normalised`."""
    if isinstance(prompt, str):
        return normalised(prompt)
    turns = [(normalised(turn.role), normalised(turn.content)) for turn in prompt.messages]
    return KEY_SEPARATOR.join(["chat", *(part for turn in turns for part in turn)])


def normalised(text: str) -> str:
    """The text as it is compared: compatibility forms, case and whitespace make no difference.

    This is Unicode's compatibility caseless matching (definition D146), then single spaces.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFD", text).casefold())
    return " ".join(unicodedata.normalize("NFKC", folded.casefold()).split())


def storable_text(value: str, characters_max: int = TEXT_CHARACTERS_MAX) -> str:
    """The text, to the letter. Raises ValueError for one that cannot be stored, or is too long."""
    if "\0" in value:
        raise ValueError("holds a NUL character")
    if _SURROGATE.search(value):
        raise ValueError("holds an unpaired surrogate, which has no UTF-8 form")
    if len(value) > characters_max:
        raise ValueError(f"has {len(value)} characters, more than the {characters_max} allowed")
    return value


def filled_text(value: str) -> str:
    """The text, to the letter. Raises ValueError where it is whitespace alone."""
    text = storable_text(value)
    if not text.strip():
        raise ValueError("is empty")
    return text


def _message(number: int, turn: object) -> Message:
    if isinstance(turn, Message):
        return turn
    parts = turn if isinstance(turn, Mapping) else {}
    role, content = parts.get("role"), parts.get("content")
    if len(parts) != 2 or not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(f'has message {number} that is not {{"role": text, "content": text}}')
    if not role.strip():
        raise ValueError(f"has message {number} without a role")
    return Message(storable_text(role, ROLE_CHARACTERS_MAX), storable_text(content))
