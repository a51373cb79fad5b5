"""Patches: what a step adds to the model, as tensors with a meaning. One file per kind.

A step's patch may have several parts (one per editor that had a hand in it); in its file the
tensors of part i are named "i.name". Going back is exact because a patch is never subtracted: what
it touched is rebuilt from what came before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor

from continual.effects import Reach
from continual.errors import CeditError
from continual.patches.codebook import CodebookPatch
from continual.patches.dense import DensePatch
from continual.patches.low_rank import FfnLowRankPatch, LowRankPatch
from continual.patches.memory import MemoryPatch
from continual.patches.neuron import GatePatch, NeuronPatch
from continual.patches.weight_sums import MatrixSums, ParameterSums, WeightSums


class Patch(Protocol):
    """What every kind of patch can do."""

    kind: ClassVar[str]

    @property
    def rows(self) -> int:
        """How many rows it has that a request may own: neurons, columns, records."""

    @property
    def owners(self) -> tuple[str, ...]:
        """The request that each of its rows is for, in their order; empty where it is not known."""

    @property
    def reach(self) -> Reach:
        """What it may change."""

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""

    def meta(self) -> dict[str, Any]:
        """What else is needed to make it again: a JSON object."""

    def put_on(self, model: Any) -> Sequence[Tensor]:
        """Put it on an `EditedModel`; returns the tensors that it touched, as they now stand."""

    def norm(self) -> float:
        """How large it is, in the measure of its editor's norm budget."""

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Sequence[Patch]:
        """Fewer patches of this kind that, put on in order, leave the model as these do, bit for
        bit. Whose their rows are is not kept."""

    def without(self, request_id: str) -> Patch | None:
        """The patch without what is a request's own, the rest in the same order with the same
        bytes; None where nothing is left. Raises SharedPatch where it cannot be told apart."""

    def owned_by(self, owners: tuple[str, ...]) -> Self:
        """The same patch, told whose its rows are. Raises EditError where they do not fit."""

    def check(self) -> None:
        """Raises EditError where it is not finite or its shapes do not fit each other."""

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """The patch that `tensors` and `meta` describe. Raises EditError where they do not."""


KINDS: Mapping[
    str,
    type[NeuronPatch]
    | type[GatePatch]
    | type[CodebookPatch]
    | type[FfnLowRankPatch]
    | type[LowRankPatch]
    | type[DensePatch]
    | type[WeightSums]
    | type[MatrixSums]
    | type[ParameterSums]
    | type[MemoryPatch],
] = {
    NeuronPatch.kind: NeuronPatch,
    GatePatch.kind: GatePatch,
    CodebookPatch.kind: CodebookPatch,
    FfnLowRankPatch.kind: FfnLowRankPatch,
    LowRankPatch.kind: LowRankPatch,
    DensePatch.kind: DensePatch,
    WeightSums.kind: WeightSums,
    MatrixSums.kind: MatrixSums,
    ParameterSums.kind: ParameterSums,
    MemoryPatch.kind: MemoryPatch,
}


def pack(parts: Sequence[Patch]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A step's patch as one file's tensors and meta."""
    tensors = {
        f"{index}.{name}": tensor
        for index, part in enumerate(parts)
        for name, tensor in part.tensors().items()
    }
    return tensors, {"parts": [_entry(part) for part in parts]}


def unpack(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> tuple[Patch, ...]:
    """The parts of a step's patch, read back. Raises CeditError for what is no patch of ours."""
    try:
        return tuple(_part(index, entry, tensors) for index, entry in enumerate(meta["parts"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CeditError(
            f"A patch is not as cedit writes them ({type(error).__name__}: {error}): another "
            "program wrote it; go back to a revision before it with `cedit rollback`."
        ) from error


def _entry(part: Patch) -> dict[str, Any]:
    """What a file says of a part. Whose it is is no part of what it does, and not of its `meta`."""
    owners = {"owners": list(part.owners)} if part.owners else {}
    return {"kind": part.kind, **part.meta(), **owners}


def _part(index: int, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Patch:
    kind = entry["kind"]
    if kind not in KINDS:
        raise CeditError(
            f"The patch has a part of kind {kind!r}, which this version of cedit does not know "
            f"(it knows {', '.join(KINDS)}): a newer version wrote it, upgrade cedit."
        )
    prefix = f"{index}."
    own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    patch: Patch = KINDS[kind].from_tensors(own, entry)
    if "owners" in entry:  # older files do not say it
        patch = patch.owned_by(tuple(entry["owners"]))
    patch.check()
    return patch
