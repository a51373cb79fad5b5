"""Which edit spoke at which token: the neurons that fired, or the record that was read.

An edit in the weights has a part in every token, and in none alone: such edits are counted. Reads
the owners of a state's patches once, layer by layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from continual.effects import CONTEXTS, GATES, MEMORY, NEURONS, SUBJECTS
from continual.effects.gated import Firing
from continual.effects.places import GatePlace
from continual.memory.routing import Route
from continual.open_store import OpenStore
from continual.patches import Patch
from continual.serving.asks import Spoke, SpokenToken
from store import BlobRef, Revision

NEURON = "neuron"
_NEURONS = frozenset({NEURONS, SUBJECTS, CONTEXTS, GATES})
Heard = Mapping[GatePlace, Sequence[Firing]]


@dataclass(frozen=True)
class PatchVoices:
    """The requests whose neurons a patch brings, by place, and of its edits in the weights."""

    neurons: Mapping[GatePlace, tuple[str, ...]]
    in_weights: frozenset[str]


class Voices:
    """Names the requests behind the neurons of an open store's model."""

    def __init__(self, opened: OpenStore) -> None:
        self._opened = opened
        self._patches: dict[BlobRef, PatchVoices] = {}

    @contextmanager
    def heard(self) -> Iterator[Heard]:
        """Collect the neurons that fire at each pass within `with`."""
        with self._opened.edited.neurons_heard() as heard:
            yield heard

    def at(self, revision: Revision) -> tuple[Mapping[GatePlace, Sequence[str]], int]:
        """Return the request of each neuron by place, in their order, and the number of requests in
        the weights."""
        owners: dict[GatePlace, list[str]] = defaultdict(list)
        in_weights: set[str] = set()
        for layer in self._opened.store.layers(revision):
            if layer.patch is not None:
                voices = self._of(layer.patch)
                in_weights |= voices.in_weights
                for place, requests in voices.neurons.items():
                    owners[place] += requests
        return owners, len(in_weights)

    def _of(self, ref: BlobRef) -> PatchVoices:
        if ref not in self._patches:
            self._patches[ref] = self._read(self._opened.patches(ref))
        return self._patches[ref]

    def _read(self, parts: Sequence[Patch]) -> PatchVoices:
        neurons: dict[GatePlace, tuple[str, ...]] = {}
        in_weights: set[str] = set()
        for part in parts:
            owners = part.owners or ("",) * part.rows
            if part.beside().keys() & _NEURONS:
                (place,) = part.reach.gates
                row_owners = ("",) * part.rows if part.is_shared else owners
                neurons[place] = (*neurons.get(place, ()), *row_owners)
            if part.in_parameters(self._opened.edited.anatomy):
                in_weights |= set(owners)
        return PatchVoices(neurons, frozenset(in_weights))


def spoken_tokens(
    words: Sequence[str],
    heard: Heard,
    owners: Mapping[GatePlace, Sequence[str]],
    route: Route | None,
) -> tuple[SpokenToken, ...]:
    """Return the tokens of an answer at which edits spoke, given the tokens' texts."""
    if route is not None:
        edit = Spoke(route.record.id, MEMORY, float(route.score))
        return tuple(SpokenToken(place, word, (edit,)) for place, word in enumerate(words))
    tokens = (
        SpokenToken(place, word, tuple(_firing_at(place, heard, owners)))
        for place, word in enumerate(words)
    )
    return tuple(token for token in tokens if token.edits)


def _firing_at(
    step: int, heard: Heard, owners: Mapping[GatePlace, Sequence[str]]
) -> Iterator[Spoke]:
    """Yield the edits whose neurons fired when a token was chosen."""
    for place, firings in heard.items():
        if step < len(firings):
            firing, names = firings[step], owners.get(place, ())
            activations = firing.activations[0].tolist() if len(firing) else []
            for neuron, activation in zip(firing.places.tolist(), activations, strict=True):
                yield Spoke(names[neuron] if neuron < len(names) else "", NEURON, activation)
