"""The atlas's facts: tables of real subjects, and ten phrasings for each relation.

Knows the tables beside it, the phrasings of a fact that are never trained (hold-out by pair), how a
fact becomes a prompt, and the gaps: facts of the same relations that no table has. Knows nothing of
tokens, tensors or training.
"""

from __future__ import annotations

import csv
import hashlib
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

TABLES = Path(__file__).parent / "tables"
GAPS = Path(__file__).parent / "gaps.tsv"
HELD_OUT_PER_FACT = 2


@dataclass(frozen=True)
class Relation:
    """One column of one table: a question about its subjects, in ten wordings."""

    name: str  # "countries.capital"
    phrasings: tuple[str, ...]  # each holds one {} for the subject; the object follows directly


@dataclass(frozen=True)
class Fact:
    """A subject, a relation and the one right object."""

    subject: str
    relation: Relation
    object: str

    @property
    def prompts(self) -> tuple[str, ...]:
        """The fact asked in every phrasing of its relation."""
        return tuple(phrasing.replace("{}", self.subject) for phrasing in self.relation.phrasings)

    @cached_property
    def held_out(self) -> frozenset[int]:
        """The phrasings (their indices) that this fact is never trained on.

        Drawn by a hash of the pair (fact, phrasing), so that every phrasing is trained on most
        subjects and a held-out one is new only in combination with this subject.
        """

        def draw(index: int) -> bytes:
            pair = f"{self.relation.name}|{self.subject}|{index}"
            return hashlib.sha256(pair.encode()).digest()

        order = sorted(range(len(self.relation.phrasings)), key=draw)
        return frozenset(order[:HELD_OUT_PER_FACT])

    @property
    def trained_prompts(self) -> tuple[str, ...]:
        """The prompts that the model sees in training."""
        return tuple(p for i, p in enumerate(self.prompts) if i not in self.held_out)

    @property
    def held_out_prompts(self) -> tuple[str, ...]:
        """The prompts that the model never sees: they measure generalisation over phrasings."""
        return tuple(p for i, p in enumerate(self.prompts) if i in self.held_out)


def load_facts(tables: Path = TABLES) -> list[Fact]:
    """Return all facts of the tables in a folder, in a fixed order."""
    return [fact for table in sorted(tables.glob("*.tsv")) for fact in _read_table(table)]


def load_gaps(facts: Iterable[Fact], gaps: Path = GAPS) -> list[Fact]:
    """Return true facts that the tables lack, in the relations of `facts`. The atlas was never
    trained on them."""
    relations = {fact.relation.name: fact.relation for fact in facts}
    return [
        Fact(row["subject"], relations[row["relation"]], row["object"]) for row in _read_rows(gaps)
    ]


def objects_of(facts: Sequence[Fact]) -> dict[str, list[str]]:
    """Return the distinct objects of every relation by its name, in order of first mention."""
    objects: dict[str, dict[str, None]] = {}
    for fact in facts:
        objects.setdefault(fact.relation.name, {})[fact.object] = None
    return {name: list(mentions) for name, mentions in objects.items()}


def by_relation(facts: Iterable[Fact]) -> dict[str, list[Fact]]:
    """Group facts by the name of their relation, in their order."""
    return _grouped(facts, lambda fact: fact.relation.name)


def by_subject(facts: Iterable[Fact]) -> dict[str, list[Fact]]:
    """Group facts by subject, in their order."""
    return _grouped(facts, lambda fact: fact.subject)


def _grouped(facts: Iterable[Fact], key: Callable[[Fact], str]) -> dict[str, list[Fact]]:
    groups: dict[str, list[Fact]] = {}
    for fact in facts:
        groups.setdefault(key(fact), []).append(fact)
    return groups


def _read_table(table: Path) -> list[Fact]:
    relations = _read_relations(table.with_suffix(".toml"))
    rows = _read_rows(table)
    return [
        Fact(row["subject"], relation, row[column])
        for column, relation in relations.items()
        for row in rows
        if row[column]
    ]


def _read_rows(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def _read_relations(path: Path) -> dict[str, Relation]:
    wordings = tomllib.loads(path.read_text(encoding="utf-8"))
    return {
        column: Relation(f"{path.stem}.{column}", tuple(entry["phrasings"]))
        for column, entry in wordings.items()
    }
