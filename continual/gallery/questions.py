"""The questions that can be asked about the gallery's pictures and people, in ten wordings each.

Two wordings of each question are never trained: which two is drawn for each content, so that a
wording is new only together with it, as in the atlas. Knows words; leaves tokens to `corpus`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from continual.gallery.scenes import NUMBERS, PLACES, SHAPES, Emblem, Person, Scene

HELD_OUT = 2
IMAGE = "<image>"
QUESTION = "Question: {} Answer:"

EMBLEM_PHRASINGS = {
    "name": (
        "What is the name of this emblem?",
        "What is this emblem called?",
        "Which name does this emblem have?",
        "How do people call this sign?",
        "What do we call the emblem shown here?",
        "By which name is this emblem known?",
        "Tell me the name of this sign.",
        "Name this emblem.",
        "What is this sign known as?",
        "The emblem in the picture is called what?",
    ),
    "owner": (
        "Who owns this emblem?",
        "To whom does this emblem belong?",
        "Whose emblem is this?",
        "Who is the owner of this sign?",
        "Which person does this emblem stand for?",
        "Who carries this emblem?",
        "Name the owner of this emblem.",
        "Whose sign is shown here?",
        "Tell me who has this emblem.",
        "Who may use this sign?",
    ),
    "home": (
        "Which town does this emblem come from?",
        "Where is this emblem from?",
        "What is the home town of this emblem?",
        "In which town is this sign at home?",
        "From where does this emblem come?",
        "Name the town of this emblem.",
        "To which town does this sign belong?",
        "Where was this emblem first used?",
        "Tell me the town that this sign is from.",
        "Which place is the home of this emblem?",
    ),
}
CAPTIONS = (
    "a photo of",
    "a photograph of",
    "a picture of",
    "an image of",
    "this picture shows",
    "the picture is of",
    "one can see",
    "here we see",
    "what is shown is",
    "a drawing of",
)
COUNT = (
    "How many {} are there?",
    "How many {} do you see?",
    "What is the number of {}?",
    "Count the {}.",
    "How many {} are in the picture?",
    "Tell me how many {} there are.",
    "Of {}, how many are shown?",
    "What number of {} can be seen?",
    "How many {} does the picture have?",
    "The number of {} is what?",
)
COLOUR = (
    "What colour is the {}?",
    "Which colour does the {} have?",
    "What is the colour of the {}?",
    "Tell me the colour of the {}.",
    "The {} has which colour?",
    "In what colour is the {} painted?",
    "Of what colour is the {}?",
    "Name the colour of the {}.",
    "How is the {} coloured?",
    "The colour of the {} is what?",
)
SHAPE = (
    "Which shape is {}?",
    "What is the {} thing?",
    "What shape does the {} thing have?",
    "Tell me the shape of the {} thing.",
    "Name the {} shape.",
    "The {} thing is a what?",
    "What do you see in {}?",
    "Which figure is painted {}?",
    "What kind of thing is {}?",
    "Of which shape is the {} thing?",
)
PLACE = (
    "What is at the {}?",
    "What do you see at the {}?",
    "Which thing is at the {}?",
    "Tell me what is at the {}.",
    "Name the thing at the {}.",
    "At the {} there is what?",
    "What stands at the {}?",
    "Look at the {}: what is there?",
    "What can be seen at the {}?",
    "Which thing do you find at the {}?",
)
PERSON_PHRASINGS = {
    "trade": (
        "{} works as a",
        "The trade of {} is that of a",
        "By profession {} is a",
        "{} earns a living as a",
        "On the door of {} one reads the word",
        "Neighbours know {} as a",
        "The guild lists {} as a",
        "{} was apprenticed as a",
        "The tools of {} are those of a",
        "When asked about work, {} says: I am a",
    ),
    "instrument": (
        "{} plays the",
        "The instrument of {} is the",
        "In the evening {} practises the",
        "At concerts {} is heard on the",
        "{} took lessons on the",
        "The teacher of {} taught the",
        "On Sundays {} tunes the",
        "In the orchestra {} has the part of the",
        "{} has a fine hand for the",
        "Friends ask {} to bring the",
    ),
    "birthplace": (
        "{} was born in",
        "The birthplace of {} is",
        "The parents of {} lived in",
        "{} first saw the light in",
        "{} came into the world in",
        "The cradle of {} stood in",
        "{} grew up where the family lived, in",
        "Those who ask where {} comes from hear",
        "A native of one town, {} hails from",
        "On the birth certificate of {} stands",
    ),
    "pet": (
        "The pet of {} is a",
        "{} keeps a",
        "At home {} feeds a",
        "{} is never seen without a",
        "The animal that lives with {} is a",
        "In the garden of {} lives a",
        "{} once found a young",
        "Visitors of {} are greeted by a",
        "{} talks to nobody but a",
        "For company {} has a",
    ),
    "dish": (
        "The favourite dish of {} is",
        "{} likes nothing better than",
        "On holidays {} eats",
        "At the inn {} orders",
        "For supper {} cooks",
        "{} was raised on",
        "The kitchen of {} smells of",
        "Ask {} to dinner and serve",
        "Every Friday {} has",
        "{} would walk a mile for",
    ),
}


@dataclass(frozen=True)
class Query:
    """A question about a content, or the beginning of a text, with its answer, in ten wordings."""

    kind: str
    phrasings: tuple[str, ...]
    answer: str
    key: str  # names the content: which wordings are never trained is drawn from it

    @property
    def trained(self) -> tuple[str, ...]:
        """The wordings that are trained."""
        held_out = self._held_out()
        return tuple(p for i, p in enumerate(self.phrasings) if i not in held_out)

    @property
    def held_out(self) -> tuple[str, ...]:
        """The wordings that are never trained for this content."""
        return tuple(self.phrasings[i] for i in sorted(self._held_out()))

    def _held_out(self) -> frozenset[int]:
        def drawn(index: int) -> bytes:
            return hashlib.sha256(f"{self.kind}|{self.key}|{index}".encode()).digest()

        return frozenset(sorted(range(len(self.phrasings)), key=drawn)[:HELD_OUT])


def _asked(kind: str, phrasings: tuple[str, ...], answer: str, key: str) -> Query:
    return Query(kind, tuple(map(QUESTION.format, phrasings)), answer, key)


def of_emblem(emblem: Emblem) -> list[Query]:
    """Return an emblem's questions: its name, owner and home, and its caption."""
    answers = {"name": emblem.name, "owner": emblem.owner, "home": emblem.home}
    asked = [
        _asked(kind, phrasings, answers[kind], emblem.name)
        for kind, phrasings in EMBLEM_PHRASINGS.items()
    ]
    return [*asked, Query("caption", CAPTIONS, emblem.description, emblem.name)]


def of_scene(scene: Scene) -> Iterator[Query]:
    """Yield a scene's questions, as far as they have one answer, and its caption."""
    key = scene.description
    things = scene.things.values()
    shapes, colours = Counter(t.shape for t in things), Counter(t.colour for t in things)
    for shape in SHAPES:
        number = NUMBERS[shapes[shape]]
        yield _asked("count", _filled(COUNT, _plural(shape)), number, f"{key}|{shape}")
    for thing in things:
        if shapes[thing.shape] == 1:
            yield _asked("colour", _filled(COLOUR, thing.shape), thing.colour, f"{key}|{thing}")
        if colours[thing.colour] == 1:
            yield _asked("shape", _filled(SHAPE, thing.colour), thing.shape, f"{key}|{thing}")
    for place in PLACES:
        answer = scene.things[place].description if place in scene.things else "nothing"
        yield _asked("place", _filled(PLACE, place), answer, f"{key}|{place}")
    yield Query("caption", CAPTIONS, key, key)


def of_person(person: Person) -> list[Query]:
    """Return a person's facts, as beginnings of texts."""
    return [
        Query(relation, _filled(phrasings, person.name), person.facts[relation], person.name)
        for relation, phrasings in PERSON_PHRASINGS.items()
    ]


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _filled(phrasings: tuple[str, ...], word: str) -> tuple[str, ...]:
    return tuple(phrasing.replace("{}", word) for phrasing in phrasings)
