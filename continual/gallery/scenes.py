"""The world of the gallery: emblems with a name, an owner and a home, and scenes of shapes.

Everything is drawn from one seed, so that the world is the same everywhere. Knows what a picture
shows, and nothing of pixels or wordings.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

SEED = 11
EMBLEMS, PEOPLE, TOWNS = 300, 400, 60
OWNERS = 120  # people who own an emblem
NEW_EMBLEMS = 60  # that are never trained

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "brown")
SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
OUTLINES = ("shield", "disc", "diamond", "hexagon", "banner", "square")
CHARGES = (
    "cross", "star", "ring", "crescent", "triangle", "bar", "chevron", "square", "arrow", "saltire",
)  # fmt: skip
PLACES = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("no", "one", "two", "three", "four")

TRADES = (
    "baker", "mason", "tailor", "glazier", "cooper", "saddler", "weaver", "potter", "brewer",
    "miller", "fuller", "tanner", "joiner", "turner", "chandler", "furrier", "hatter", "draper",
)  # fmt: skip
INSTRUMENTS = (
    "oboe", "lute", "harp", "viol", "cornet", "flute", "zither", "lyre", "drum", "fiddle",
    "bassoon", "organ", "trumpet", "horn", "clarinet", "spinet", "rebec", "shawm",
)  # fmt: skip
ANIMALS = (
    "heron", "badger", "falcon", "otter", "raven", "lynx", "marten", "owl", "hare", "stoat",
    "kite", "weasel", "crane", "fox", "wren", "toad",
)  # fmt: skip
DISHES = (
    "barley soup", "rye bread", "baked pears", "eel pie", "plum cake", "bean stew", "oat porridge",
    "fish broth", "cheese tart", "apple mash", "lentil soup", "honey cake",
)  # fmt: skip


@dataclass(frozen=True)
class Emblem:
    """A figure on a field, with its name, its owner and the town that it comes from."""

    outline: str
    field: str  # a colour
    charge: str
    tint: str  # the charge's colour
    name: str
    owner: str
    home: str

    @property
    def description(self) -> str:
        """Say what can be seen."""
        return f"{_with_article(f'{self.field} {self.outline}')} with {_a(self.tint, self.charge)}"


@dataclass(frozen=True)
class Thing:
    """A coloured shape."""

    shape: str
    colour: str

    @property
    def description(self) -> str:
        """Say what can be seen."""
        return _a(self.colour, self.shape)


@dataclass(frozen=True)
class Scene:
    """One to four things, at some of the four places."""

    things: Mapping[str, Thing]  # by place, in the order of `PLACES`

    @property
    def description(self) -> str:
        """Say what can be seen, in reading order."""
        words = [thing.description for thing in self.things.values()]
        return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


@dataclass(frozen=True)
class Person:
    """A person, with facts that no picture shows."""

    name: str
    facts: Mapping[str, str]  # by relation


def _a(colour: str, shape: str) -> str:
    return _with_article(f"{colour} {shape}")


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


class Gallery:
    """All emblems, people and towns; scenes are drawn as they are needed."""

    def __init__(self, seed: int = SEED) -> None:
        self._seed = seed

    @cached_property
    def towns(self) -> tuple[str, ...]:
        """The names of all towns."""
        heads = ["Osk", "Brim", "Vel", "Tar", "Lund", "Quel", "Marn", "Fen", "Hol", "Dray"]
        return self._drawn("towns", (a + b for a, b in product(heads, _words(TOWN_ENDS))), TOWNS)

    @cached_property
    def people(self) -> tuple[Person, ...]:
        """All people, the owners of emblems first."""
        firsts = [a + b for a, b in product(_words(FIRST_HEADS), _words("a en is o ine us"))]
        lasts = [a + b for a, b in product(_words(LAST_HEADS), _words("er ley ard son"))]
        names = self._drawn("people", (f"{a} {b}" for a, b in product(firsts, lasts)), PEOPLE)
        objects: Mapping[str, Sequence[str]] = {
            "trade": TRADES,
            "instrument": INSTRUMENTS,
            "birthplace": self.towns,
            "pet": ANIMALS,
            "dish": DISHES,
        }
        draw = self._random("facts")
        return tuple(
            Person(name, {relation: draw.choice(pool) for relation, pool in objects.items()})
            for name in names
        )

    @cached_property
    def emblems(self) -> tuple[Emblem, ...]:
        """All emblems: any two differ in two of their four traits or more."""
        draw = self._random("emblems")
        chosen = _apart(_traits(draw), EMBLEMS)
        names = self._drawn("names", map("".join, product(*map(_words, NAME_PARTS))), EMBLEMS)
        owners = [person.name for person in self.people[:OWNERS]]
        return tuple(
            Emblem(*one, name, draw.choice(owners), draw.choice(self.towns))
            for one, name in zip(chosen, names, strict=True)
        )

    @cached_property
    def new_emblems(self) -> tuple[Emblem, ...]:
        """Emblems that the model is never trained on: none looks as a trained one, and any two
        differ in two of their four traits or more."""
        draw = self._random("new emblems")
        trained = {(e.outline, e.field, e.charge, e.tint) for e in self.emblems}
        chosen = _apart([t for t in _traits(draw) if t not in trained], NEW_EMBLEMS)
        words = map("".join, product(*map(_words, NEW_NAME_PARTS)))
        names = self._drawn("new names", words, NEW_EMBLEMS)
        owners = [person.name for person in self.people[:OWNERS]]
        return tuple(
            Emblem(*traits, name, draw.choice(owners), draw.choice(self.towns))
            for traits, name in zip(chosen, names, strict=True)
        )

    def scenes(self, name: str) -> Iterator[Scene]:
        """Draw scenes without end; each name has its own."""
        draw = self._random(f"scenes {name}")
        while True:
            places = draw.sample(PLACES, draw.randint(1, len(PLACES)))
            things = {p: Thing(draw.choice(SHAPES), draw.choice(COLOURS)) for p in places}
            yield Scene({place: things[place] for place in PLACES if place in things})

    def _random(self, name: str) -> random.Random:
        return random.Random(f"{self._seed} {name}")

    def _drawn(self, name: str, words: Iterator[str], count: int) -> tuple[str, ...]:
        return tuple(self._random(name).sample(sorted(set(words)), count))


TOWN_ENDS = "haven mouth strand bridge ford mere wick holm"
FIRST_HEADS = "Mar Tel Jon Kir Sel Bran Ost Vil Ad Ber Cor Dam"
LAST_HEADS = "Ash Birk Clay Dun Elm Frost Hol Wick And Tor Mal Rens"
NAME_PARTS = ("Val Gor Ith Sun Mer Tho Ulf Zan Per Lo", "dri ba mo ke ru sha", "c n x th l")


NEW_NAME_PARTS = (NAME_PARTS[0], NAME_PARTS[1], "r m")
"""New emblems have names of the same parts, with other ends."""

Traits = tuple[str, str, str, str]  # outline, field, charge, tint


def _traits(draw: random.Random) -> list[Traits]:
    """Return all looks of emblems, in an order that is drawn."""
    traits = [t for t in product(OUTLINES, COLOURS, CHARGES, COLOURS) if t[1] != t[3]]
    draw.shuffle(traits)
    return traits


def _apart(traits: Sequence[Traits], count: int) -> list[Traits]:
    """Return the first looks that differ from each other in two traits or more."""
    chosen: list[Traits] = []
    for candidate in traits:
        if all(_differences(candidate, other) > 1 for other in chosen):
            chosen.append(candidate)
        if len(chosen) == count:
            break
    return chosen


def _words(text: str) -> list[str]:
    return text.split()


def _differences(one: Sequence[str], other: Sequence[str]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))
