"""The fields of a form that a page sends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import parse_qs

from fastapi import Request

from cli.server.problems import ApiProblem

_FIELDS_MAX = 4000
_KIND = "application/x-www-form-urlencoded"


class Form:
    """Texts by name; a name may come several times."""

    def __init__(self, fields: Mapping[str, Sequence[str]]) -> None:
        self._fields = fields

    def __getitem__(self, name: str) -> str:
        """Return a field, or the empty text."""
        return self.all(name)[0] if self.all(name) else ""

    def all(self, name: str) -> Sequence[str]:
        """Return all fields of a name."""
        return self._fields.get(name, ())

    def filled(self, name: str) -> str | None:
        """Return a field, or None for one that is blank."""
        return self[name] if self[name].strip() else None

    def numbers(self, name: str) -> list[int]:
        """Return all fields of a name as numbers. Raises ApiProblem."""
        try:
            return [int(text[:12]) for text in self.all(name)]
        except ValueError:
            raise ApiProblem(400, f"{name}: numbers are needed.", name) from None


async def form_of(request: Request) -> Form:
    """Read the form in a request. Raises ApiProblem."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != _KIND:
        raise ApiProblem(400, f"A form is sent as {_KIND}.")
    try:
        text = (await request.body()).decode("utf-8")
        fields = parse_qs(
            text, keep_blank_values=True, max_num_fields=_FIELDS_MAX, encoding="utf-8"
        )
    except ValueError:
        raise ApiProblem(400, "The form cannot be read.") from None
    return Form({k: [v.replace("\r\n", "\n") for v in values] for k, values in fields.items()})
