"""The texts read in front of an input that is about an edit: the new fact, and demonstrations.

Knows texts alone. The forms are those of IKE (Zheng et al. 2023, section 3); a form can be any text
with the places that it needs, and ends where the input comes.
"""

from __future__ import annotations

from collections.abc import Sequence

from continual.errors import CeditError
from continual.picture_marks import without_marks
from continual.requests import Request

FORM = "New Fact: {prompt} {target}\nPrompt: {input}"
"""`prompt` and `target` are the record's; `input` is the present input."""

INPUT = "{input}"


def require_form(form: str, table: str) -> str:
    """Return a form that can be filled in. Raises CeditError, naming the form's table."""
    try:
        filled_form = form.format(prompt="", target="", input="<input>")
    except (KeyError, IndexError, ValueError) as error:
        raise CeditError(
            f"[{table}] form = {form!r} cannot be filled in ({error}): it has the places "
            "{prompt}, {target} and {input}."
        ) from None
    if not form.endswith(INPUT) or filled_form.count("<input>") != 1:
        raise CeditError(f"[{table}] form = {form!r} does not end with {INPUT}, where one goes on.")
    return form


def context(form: str, prompt: str, target: str) -> str:
    """Return the text in front of an input that is about a record; its pictures are left out, as
    the input shows them."""
    return form.removesuffix(INPUT).format(prompt=without_marks(prompt), target=target)


def demonstrations(form: str, request: Request) -> dict[str, list[str]]:
    """Return a request's demonstrations of using a new fact, by kind: `copy` asks its own prompt,
    `update` a rephrase of it, `retain` another fact, which stays as it is."""
    prefix = context(form, str(request.prompt), request.target_new)
    probes = [(without_marks(str(probe.prompt)), probe.answer) for probe in request.locality]
    facts = [f"{prompt} {answer}" for prompt, answer in probes]
    wordings = [without_marks(str(prompt)) for prompt in (request.prompt, *request.rephrases)]
    own, *others = [f"{prefix}{wording} {request.target_new}" for wording in wordings]
    return {
        "copy": [own],
        "update": others,
        "retain": [prefix + fact for fact in facts],
    }


def joined(shown: Sequence[str], last: str) -> str:
    """Join demonstrations and the `last` text behind them."""
    return "".join(f"{text}\n\n" for text in shown) + last
