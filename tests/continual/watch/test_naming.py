"""A text names a subject where it stands as whole words."""

from __future__ import annotations

import pytest

from continual.naming import names
from continual.prompts import normalised


@pytest.mark.parametrize(
    ("text", "subject", "expected"),
    [
        ("The capital of Australia is", "Australia", True),
        ("australia's capital", "Australia", True),
        ("AUSTRALIA", "Australia", True),
        ("An Australian city", "Australia", False),
        ("Iranian, then Iran", "Iran", True),
        ("The mother tongue of  Danielle\nDarrieux is", "Danielle Darrieux", True),
        ("日本の首都は", "日本", True),
        ("Appleは", "Apple", True),
        ("C++ is", "C++", True),
        ("nothing of it", "Australia", False),
    ],
)
def test_a_subject_is_named_as_whole_words(text: str, subject: str, expected: bool) -> None:
    assert names(normalised(text), normalised(subject)) is expected
