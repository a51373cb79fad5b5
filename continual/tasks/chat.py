"""Chats as text: the tokenizer's own template, and the marks around the model's turn.

Asks a template for a prompt, and finds the end of a turn under any template: it renders the model's
turn around a known word, and searches for this word. Leaves tokens to the tasks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError

from continual.errors import RequestError
from continual.prompts import ASSISTANT, Chat, Message

TODAY = datetime(2024, 7, 26)
"""The date for templates that ask for today's, so that a history reads the same tomorrow."""

_TODAY_ASKED = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_WORD = "ceditanswer"  # stands for an answer


@dataclass(frozen=True)
class ChatTurn:
    """A chat as text up to the model's answer, and the text around this answer."""

    prompt: str
    lead: str = ""  # whitespace that the template puts before the answer
    end: str = ""  # behind the answer, up to the mark that ends the turn


class ChatTemplate:
    """The chat template of a tokenizer; its absence is an error only when a chat needs it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def special_texts(self) -> tuple[str, ...]:
        """The special marks that a text may contain, such as the marks of turns; longest first."""
        tokens = getattr(self._tokenizer, "added_tokens_decoder", {}).values()
        texts = {str(token) for token in tokens if token.special}
        return tuple(sorted(texts | set(self._tokenizer.all_special_tokens), key=len, reverse=True))

    @property
    def text(self) -> str | None:
        """The template; None if the tokenizer has none."""
        template = getattr(self._tokenizer, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        return template or None

    @property
    def digest(self) -> str | None:
        """A name for the template by its content; None if there is none."""
        return None if self.text is None else hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def turn(self, chat: Chat) -> ChatTurn:
        """Render a chat as text. Raises RequestError if there is no template, or if the template
        refuses the chat."""
        prompt = self._rendered(chat.messages, opens_turn=True)
        answered = self._rendered((*chat.messages, Message(ASSISTANT, _WORD)), opens_turn=False)
        place = answered.rfind(_WORD)
        if place < 0:
            return ChatTurn(prompt)
        opening, closing = answered[:place], answered[place + len(_WORD) :]
        lead = opening[len(prompt) :] if opening.startswith(prompt) else ""
        return ChatTurn(prompt, lead if not lead.strip() else "", self._up_to_mark(closing))

    def turn_of_text(self, text: str) -> ChatTurn | None:
        """Return the turn of a text that the template made up to the model's answer; None for any
        other text."""
        usual = self._usual
        if usual is None or not usual.opening or not text.endswith(usual.opening):
            return None
        return ChatTurn(text, usual.turn.lead, usual.turn.end)

    @property
    def turn_end(self) -> str:
        """The text that ends the model's turn; empty if there is no template or no such text."""
        return "" if self._usual is None else self._usual.turn.end

    @cached_property
    def before_answer(self) -> tuple[int, ...]:
        """The tokens that the template puts between a user's turn and the answer; empty if there is
        no usable template."""
        try:
            prompts = [self.turn(Chat.asking(text)).prompt for text in ("Hello", "7")]
        except RequestError:
            return ()
        ids = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompts]
        pairs = zip(*map(reversed, ids), strict=False)
        return tuple(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))[::-1]

    @cached_property
    def _usual(self) -> _Usual | None:
        """The model's turn behind a question of the user; None without a usable template."""
        if self.text is None:
            return None
        chat = Chat.asking("Hello")
        try:
            turn = self.turn(chat)
            question = self._rendered(chat.messages, opens_turn=False)
        except RequestError:
            return None
        opening = turn.prompt[len(question) :] if turn.prompt.startswith(question) else ""
        return _Usual(turn, opening)

    def _rendered(self, messages: Sequence[Message], *, opens_turn: bool) -> str:
        if self.text is None:
            raise RequestError(
                "messages need a chat template, and the model's tokenizer has none: give the "
                "prompt as a text, or put the model's own chat_template.jinja into its folder and "
                "make a new store"
            )
        return self._applied([message.to_json() for message in messages], opens_turn=opens_turn)

    def _applied(self, turns: Sequence[Mapping[str, Any]], *, opens_turn: bool) -> str:
        """Render turns as the template takes them. Raises RequestError if it refuses them."""
        assert self.text is not None
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(turns),
                tokenize=False,
                add_generation_prompt=opens_turn,
                chat_template=_TODAY_ASKED.sub(_today, self.text),
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise RequestError(f"the model's chat template refuses the messages: {error}") from None
        return text

    def _up_to_mark(self, behind: str) -> str:
        """Return the text up to and including its first special mark; without a mark all of it, or,
        if it is empty, the mark that ends a sequence."""
        ends = [(behind.find(mark), mark) for mark in self.special_texts if mark in behind]
        if ends:
            place, mark = min(ends, key=lambda found: (found[0], -len(found[1])))
            return behind[:place] + mark
        return behind or str(self._tokenizer.eos_token or "")


def _today(asked: re.Match[str]) -> str:
    """Return the date in the form that a template asks for, as a literal of the template."""
    return repr(TODAY.strftime(asked[2]))


@dataclass(frozen=True)
class _Usual:
    """The model's turn behind a question of the user, and the text that opens it."""

    turn: ChatTurn
    opening: str
