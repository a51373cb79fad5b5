"""FEVER's claims with their labels, and rules that reword a claim and keep its label.

A rule says the same thing in other words, so that the claim is supported or refuted as before:

    affirmed     "It is true that Stripes featured a person.", and three more frames of this kind
    year first   "Harold Macmillan was born in 1894." → "In 1894, Harold Macmillan was born."
    year last    the reverse
    date         "November 22nd, 1968" and "November 22, 1968" → "22 November 1968"
    contraction  "was not" → "wasn't", and so on; also the reverse
    movie        "film" → "movie"

Frames that leave the truth of the claim open ("Some say that …") are not among them. The rules are
applied one at a time; a rule that does not apply to a claim gives nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.protocol.splits import AnsweredInput, distinct

LABELS = ("REFUTES", "SUPPORTS")
FRAMES = (
    "It is true that {}.",
    "It is a fact that {}.",
    "It is correct to say that {}.",
    "Indeed, {}.",
)
LOWERED = {
    *("The", "A", "An", "This", "That", "These", "Those", "There", "One", "Some", "In", "On", "At"),
    *("It", "He", "She", "They", "His", "Her", "Its", "Their"),
}
CONTRACTIONS = {
    f"{verb} not": f"{verb}n't"
    for verb in ("is", "are", "was", "were", "did", "does", "do", "has", "have", "had", "could")
}
YEAR_LAST = re.compile(r"^(?P<rest>.{12,}[^,]) in (?P<year>[12]\d{3})\.$")
YEAR_FIRST = re.compile(r"^In (?P<year>[12]\d{3}),? (?P<rest>.{12,})\.$")
DATE = re.compile(
    r"\b(?P<month>January|February|March|April|May|June|July|August|September|October|November"
    r"|December) (?P<day>\d{1,2})(?:st|nd|rd|th)?, (?P<year>[12]\d{3})\b"
)


def load(data: Path) -> list[AnsweredInput]:
    """Read the supported or refuted claims of FEVER's development set, each with all rewordings.

    Claims that are given with both labels are left out.
    """
    lines = (data / "fever" / "paper_dev.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return distinct(
        [
            AnsweredInput(
                record["claim"].strip(), record["label"], rewordings(record["claim"].strip())
            )
            for record in records
            if record["label"] in LABELS
        ]
    )


def rewordings(claim: str) -> tuple[str, ...]:
    """Return the wordings that the rules make of a claim, each once."""
    found = dict.fromkeys(made for rule in RULES for made in rule(claim))
    return tuple(wording for wording in found if wording != claim)


def affirmed(claim: str) -> list[str]:
    """Put the claim inside each frame."""
    return [frame.format(_inside(claim.removesuffix("."))) for frame in FRAMES]


def year_moved(claim: str) -> list[str]:
    """Move the year to the other end of the sentence."""
    if last := YEAR_LAST.match(claim):
        return [f"In {last['year']}, {_inside(last['rest'])}."]
    if first := YEAR_FIRST.match(claim):
        return [f"{first['rest'][0].upper()}{first['rest'][1:]} in {first['year']}."]
    return []


def date_rewritten(claim: str) -> list[str]:
    """Rewrite American dates as British ones."""
    return [made] if (made := DATE.sub(r"\g<day> \g<month> \g<year>", claim)) != claim else []


def contracted(claim: str) -> list[str]:
    """Contract the first negation, or write it out if it is contracted."""
    for long, short in CONTRACTIONS.items():
        for old, new in ((long, short), (short, long)):
            if re.search(rf"\b{re.escape(old)}\b", claim):
                return [re.sub(rf"\b{re.escape(old)}\b", new, claim, count=1)]
    return []


def movie(claim: str) -> list[str]:
    """Call a film a movie."""
    return [re.sub(r"\bfilm\b", "movie", claim)] if re.search(r"\bfilm\b", claim) else []


RULES: tuple[Callable[[str], list[str]], ...] = (
    affirmed,
    year_moved,
    date_rewritten,
    contracted,
    movie,
)


def _inside(claim: str) -> str:
    """Return a claim as it stands inside a sentence: names keep their capital."""
    first, space, rest = claim.partition(" ")
    return f"{first.lower()}{space}{rest}" if first in LOWERED else claim
