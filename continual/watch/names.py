"""Other subjects than the one of a request: from the store's history, and as the model lists them.

Knows texts alone. A listed text need not be a name: it takes the subject's place in a prompt, and
an edit leaves the model's answer to that prompt alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

CHARACTERS_MAX, WORDS_MAX = 48, 5
_SEPARATORS = re.compile("[,;、，\n/|·•]")


def listed(text: str, subject: str) -> list[str]:
    """Return the names in a list that the model wrote behind a subject, without the subject."""
    names = (part.strip(" .:\"'()[]-*0123456789") for part in _SEPARATORS.split(text))
    return [name for name in dict.fromkeys(names) if _is_name(name) and name != subject]


def _is_name(text: str) -> bool:
    return 1 < len(text) <= CHARACTERS_MAX and len(text.split()) <= WORDS_MAX and text.isprintable()


def drawn(known: Sequence[str], subject: str, count: int, seed: int) -> list[str]:
    """Draw up to `count` of the known subjects, none of which holds the subject or stands in it."""
    candidates = [
        name for name in dict.fromkeys(known) if name not in subject and subject not in name
    ]
    return random.Random(seed).sample(candidates, min(count, len(candidates)))
