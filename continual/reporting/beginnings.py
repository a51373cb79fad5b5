"""The beginnings of the base's answers: tokens that a history has, in words.

A history with a watch set keeps the first token of the model's answer before each edit. The base's
tokenizer.json has the words; no model is read, and a directory without that file tells nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from continual.embedded import embedded
from continual.recheck.retention import Retained

Spelling = Callable[[int], str]


def spelling(model: str) -> Spelling | None:
    """Return a function from a token of a base model to its text. `model` is a directory or the
    name of an embedded model. None if its tokenizer.json is not there or cannot be read."""
    embedded_model = embedded(model)
    directory = embedded_model.directory if embedded_model is not None else Path(model).expanduser()
    tokenizer = _tokenizer(directory / "tokenizer.json")
    return None if tokenizer is None else lambda token: str(tokenizer.decode([token]))


def beginning(retained: Retained, spell: Spelling | None) -> str | None:
    """Return the first token of the model's answer before an edit; None where it is not recorded.

    A request with an old target has that one's token among its own, so that its tokens do not tell
    the answer; nor does a token that is a part of a letter.
    """
    tokens = retained.neighbours.get("answers", ())
    if spell is None or len(tokens) != 1 or retained.request.target_old is not None:
        return None
    text = spell(tokens[0]).strip()
    return text if text and "\N{REPLACEMENT CHARACTER}" not in text else None


def _tokenizer(file: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception:  # the library's own class of errors has no other name
        return None
