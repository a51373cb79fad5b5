"""The settings that the editors of the memory offer for trying: the words a fact is told in.

Whether a base model can answer by a fact in front of the question, and in which words, is a matter
of its training: a model that was never taught to may read one of these forms, or none.
"""

from __future__ import annotations

from continual.errors import RequestError
from continual.grids import Axis, Grid, Settings
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
    """Forms: what they change is how facts and their rewordings are read."""
    forms: list[Settings] = [{"form": form} for form in dict.fromkeys([*PLAIN, *_in_chat(site)])]
    axis = Axis("form", ("form",), lambda _: forms)
    return Grid((axis,), together=True, measured=("arrives", "generalises"))


def _in_chat(site: Site) -> list[str]:
    """The fact as an earlier exchange of a chat, by the tokenizer's template; none without one."""
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
    """The beginning of a text up to its first special mark and the blanks behind that."""
    marks = [mark for mark in site.edited.tokenizer.all_special_tokens if mark in behind]
    if not marks:
        return "\n"
    end_mark = min(marks, key=behind.find)
    rest = behind[behind.find(end_mark) + len(end_mark) :]
    return behind[: len(behind) - len(rest.lstrip())]


_PROMPT, _TARGET, _NEXT = "first words", "second words", "third words"  # stand for a user's
