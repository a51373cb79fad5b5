"""The grid of the memory's editors: the forms of words in which a fact is put to the model.

It depends on a base model's training whether it can answer by a fact in front of the question, and
in which words: a model that was never taught to may read one of these forms, or none.
"""

from __future__ import annotations

from continual.errors import RequestError
from continual.grids import Grid, GridAxis, TriedSettings
from continual.memory.contexts import FORM, INPUT
from continual.prompts import Chat, Message
from continual.site import Site

PLAIN = (
    FORM,
    "{prompt} {target}.\n{input}",
    "{prompt} {target}. {input}",
    "{prompt} {target}\n{prompt} {target}\n{input}",
)
"""`contexts.FORM`, and forms for models that have read statements alone."""
TOLD = "Remember this: {prompt} {target}."
UNDERSTOOD = "I will answer by that."


def grid(site: Site) -> Grid:
    """Return one axis of forms. They change the answers to facts and their rewordings alone, so
    nothing else is measured."""
    forms: list[TriedSettings] = [
        {"form": form} for form in dict.fromkeys([*PLAIN, *_in_chat(site)])
    ]
    axis = GridAxis("form", ("form",), lambda _: forms)
    return Grid((axis,), together=True, measured=("arrives", "generalises"))


def _in_chat(site: Site) -> list[str]:
    """Return a form with the fact as an earlier exchange of a chat, by the tokenizer's template;
    none without a template."""
    statement = TOLD.format(prompt=_PROMPT, target=_TARGET)
    turns = (Message("user", statement), Message("assistant", UNDERSTOOD), Message("user", _NEXT))
    try:
        text = site.task.asked(Chat(turns)).text
    except RequestError:
        return []
    opening, _, remainder = text.partition(statement)
    exchange, _, rest = remainder.partition(UNDERSTOOD)
    form = f"{opening}{statement}{exchange}{UNDERSTOOD}{_end(site, rest)}"
    form = form.replace("{", "{{").replace("}", "}}")
    return [form.replace(_PROMPT, "{prompt}").replace(_TARGET, "{target}") + INPUT]


def _end(site: Site, behind: str) -> str:
    """Return the beginning of a text up to its first special token and the blanks behind that; a
    line break without such a token."""
    marks = [mark for mark in site.edited.tokenizer.all_special_tokens if mark in behind]
    if not marks:
        return "\n"
    end_mark = min(marks, key=behind.find)
    rest = behind[behind.find(end_mark) + len(end_mark) :]
    return behind[: len(behind) - len(rest.lstrip())]


_PROMPT, _TARGET, _NEXT = "first words", "second words", "third words"  # stand for a user's
