"""What is read in front of an input that is about an edit: the new fact, and demonstrations.

Knows texts alone. The forms are those of IKE (Zheng et al. 2023, section 3); a form can be any text
with the places that it needs, and ends where the input comes.
"""

from __future__ import annotations

from collections.abc import Sequence

from continual.errors import CeditError
from continual.requests import Request

FORM = "New Fact: {prompt} {target}\nPrompt: {input}"
"""`prompt` and `target` are the record's; `input` is what is asked now."""

INPUT = "{input}"


def require_form(form: str, table: str) -> str:
    """A form that can be filled in. Raises CeditError, naming the table that it stands in."""
    try:
        whole = form.format(prompt="", target="", input="<input>")
    except (KeyError, IndexError, ValueError) as error:
        raise CeditError(
            f"[{table}] form = {form!r} cannot be filled in ({error}): it has the places "
            "{prompt}, {target} and {input}."
        ) from None
    if not form.endswith(INPUT) or whole.count("<input>") != 1:
        raise CeditError(f"[{table}] form = {form!r} does not end with {INPUT}, where one goes on.")
    return form


def context(form: str, prompt: str, target: str) -> str:
    """What stands in front of an input that is about a record."""
    return form.removesuffix(INPUT).format(prompt=prompt, target=target)


def demonstrations(form: str, request: Request) -> dict[str, list[str]]:
    """What a request shows of using a new fact, by kind: `copy` asks its own prompt, `update` a
    rephrase of it, `retain` something else, which stays as it is."""
    before = context(form, str(request.prompt), request.target_new)
    retained = [f"{probe.prompt} {probe.answer}" for probe in request.locality]
    return {
        "copy": [f"{before}{request.prompt} {request.target_new}"],
        "update": [f"{before}{prompt} {request.target_new}" for prompt in request.rephrases],
        "retain": [before + asked for asked in retained],
    }


def joined(shown: Sequence[str], last: str) -> str:
    """Demonstrations and what comes behind them."""
    return "".join(f"{one}\n\n" for one in shown) + last
