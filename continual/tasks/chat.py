"""Chats as text: the tokenizer's own template, and the marks around the model's turn.

Knows how a template is asked for a prompt and where a turn ends, whatever the template is: the
model's turn is rendered around a word that is then looked for. Leaves tokens to the tasks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from continual.errors import RequestError
from continual.prompts import ASSISTANT, Chat, Message

TODAY = datetime(2024, 7, 26)
"""The date that a template gets which asks for the day's: a history reads the same tomorrow."""

_TODAY_ASKED = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_WORD = "ceditanswer"  # stands for an answer


@dataclass(frozen=True)
class Turn:
    """A chat as text, up to where the model answers, and the text around its answer."""

    prompt: str
    lead: str = ""  # whitespace that the template puts before the answer
    end: str = ""  # behind the answer, up to the mark that ends the turn


class ChatTemplate:
    """The chat template of a tokenizer; one that is missing is an error where it is needed."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def special_texts(self) -> tuple[str, ...]:
        """The marks that stand for themselves in a text, such as those of turns; longest first."""
        added = getattr(self._tokenizer, "added_tokens_decoder", {}).values()
        texts = {str(token) for token in added if token.special}
        return tuple(sorted(texts | set(self._tokenizer.all_special_tokens), key=len, reverse=True))

    @property
    def text(self) -> str | None:
        """The template; None where the tokenizer has none."""
        template = getattr(self._tokenizer, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        return template or None

    @property
    def digest(self) -> str | None:
        """The name of its content; None where there is none."""
        return None if self.text is None else hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def turn(self, chat: Chat) -> Turn:
        """A chat as text. Raises RequestError without a template, or where it refuses the chat."""
        prompt = self._rendered(chat.messages, opens_turn=True)
        answered = self._rendered((*chat.messages, Message(ASSISTANT, _WORD)), opens_turn=False)
        place = answered.rfind(_WORD)
        if place < 0:
            return Turn(prompt)
        before, behind = answered[:place], answered[place + len(_WORD) :]
        lead = before[len(prompt) :] if before.startswith(prompt) else ""
        return Turn(prompt, lead if not lead.strip() else "", self._up_to_mark(behind))

    def turn_of_text(self, text: str) -> Turn | None:
        """A text that the template made, up to where the model answers; None for any other."""
        usual = self._usual
        if usual is None or not usual.opening or not text.endswith(usual.opening):
            return None
        return Turn(text, usual.turn.lead, usual.turn.end)

    @property
    def turn_end(self) -> str:
        """The text that ends the model's turn; empty without a template, or where there is none."""
        return "" if self._usual is None else self._usual.turn.end

    @cached_property
    def _usual(self) -> _Usual | None:
        """The model's turn behind a question of the user; None where there is no template."""
        if self.text is None:
            return None
        chat = Chat.asking("Hello")
        try:
            turn = self.turn(chat)
            asked = self._rendered(chat.messages, opens_turn=False)
        except RequestError:
            return None
        opening = turn.prompt[len(asked) :] if turn.prompt.startswith(asked) else ""
        return _Usual(turn, opening)

    def _rendered(self, messages: Sequence[Message], *, opens_turn: bool) -> str:
        if self.text is None:
            raise RequestError(
                "messages need a chat template, and the model's tokenizer has none: give the "
                "prompt as a text, or put the model's own chat_template.jinja into its folder and "
                "make a new store"
            )
        try:
            text: str = self._tokenizer.apply_chat_template(
                [message.to_json() for message in messages],
                tokenize=False,
                add_generation_prompt=opens_turn,
                chat_template=_TODAY_ASKED.sub(_today, self.text),
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise RequestError(f"the model's chat template refuses the messages: {error}") from None
        return text

    def _up_to_mark(self, behind: str) -> str:
        """The beginning of a text up to its first special mark, that included; where it has none,
        the end of the sequence behind all of it."""
        ends = [(behind.find(mark), mark) for mark in self.special_texts if mark in behind]
        if ends:
            place, mark = min(ends, key=lambda found: (found[0], -len(found[1])))
            return behind[:place] + mark
        return behind or str(self._tokenizer.eos_token or "")


def _today(asked: re.Match[str]) -> str:
    """The date in the form that a template asks for, as a literal of its own."""
    return repr(TODAY.strftime(asked[2]))


@dataclass(frozen=True)
class _Usual:
    """The model's turn behind a question of the user, and the text that opens it."""

    turn: Turn
    opening: str
