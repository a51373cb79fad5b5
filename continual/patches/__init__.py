"""Patches: the tensors that a step adds to the model, with their meaning. One file per kind.

A step's patch may have several parts (one for each editor that made some of it); in its file the
tensors of part i are named "i.name". Going back is exact because a patch is never subtracted: the
tensors that it touched are rebuilt from base and the earlier patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor

from continual.anatomy import Anatomy
from continual.effects import Reach
from continual.errors import CeditError
from continual.patches.codebook import CodebookPatch
from continual.patches.dense import DensePatch
from continual.patches.gradient import GradientPatch
from continual.patches.lookup import LookupPatch
from continual.patches.low_rank import Factors, FfnLowRankPatch, LowRankPatch
from continual.patches.memory import MemoryPatch
from continual.patches.neuron import GatePatch, NeuronPatch
from continual.patches.slots import SlotsPatch
from continual.patches.weight_sums import GradientSums, MatrixSums, ParameterSums, WeightSums


class Patch(Protocol):
    """The operations of every kind of patch."""

    kind: ClassVar[str]
    is_shared: ClassVar[bool]  # every owner owns all of it: `owners` has each once, not by row

    @property
    def rows(self) -> int:
        """The number of rows that a request may own: neurons, columns, records."""

    @property
    def owners(self) -> tuple[str, ...]:
        """The id of the request that each row is for, in the rows' order; empty if unknown. The
        requests of a shared patch."""

    @property
    def reach(self) -> Reach:
        """The places of the model that it may change."""

    def beside(self) -> Mapping[str, tuple[str, ...]]:
        """Return the owners of its rows that stand beside the model's parameters, one for each row,
        by the rows' kind in `effects.BESIDE`; "" for an unknown owner."""

    def in_parameters(self, anatomy: Anatomy) -> Mapping[str, Factors | None]:
        """Return the parameters that it edits, by path, each with the factors that it adds; None
        for a difference that has no factors."""

    def tensors(self) -> dict[str, Tensor]:
        """Return its tensors by name."""

    def meta(self) -> dict[str, Any]:
        """Return the JSON object that makes the patch again, together with its tensors."""

    def put_on(self, model: Any) -> Sequence[Tensor]:
        """Put it on an `EditedModel`; return the tensors that it touched, as they now stand."""

    def norm(self) -> float:
        """Return its size in the measure of its editor's norm budget."""

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Sequence[Patch]:
        """Return fewer patches of this kind that, put on in order, leave the model as `parts` do,
        bit for bit. They name no owners."""

    def without(self, request_id: str) -> Patch | None:
        """Return the patch without a request's rows, the others in the same order with the same
        bytes; None if no row is left. Raises SharedPatch if the rows cannot be separated."""

    def owned_by(self, owners: tuple[str, ...]) -> Self:
        """Return the same patch with the owners of its rows. Raises EditError if their number does
        not fit."""

    def check(self) -> None:
        """Raise EditError if its numbers are not finite or its shapes do not fit each other."""

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """Make the patch that `tensors` and `meta` describe. Raises EditError if one is missing."""


KINDS: Mapping[
    str,
    type[NeuronPatch]
    | type[GatePatch]
    | type[SlotsPatch]
    | type[CodebookPatch]
    | type[LookupPatch]
    | type[FfnLowRankPatch]
    | type[LowRankPatch]
    | type[GradientPatch]
    | type[DensePatch]
    | type[WeightSums]
    | type[MatrixSums]
    | type[GradientSums]
    | type[ParameterSums]
    | type[MemoryPatch],
] = {
    NeuronPatch.kind: NeuronPatch,
    GatePatch.kind: GatePatch,
    SlotsPatch.kind: SlotsPatch,
    CodebookPatch.kind: CodebookPatch,
    LookupPatch.kind: LookupPatch,
    FfnLowRankPatch.kind: FfnLowRankPatch,
    LowRankPatch.kind: LowRankPatch,
    GradientPatch.kind: GradientPatch,
    DensePatch.kind: DensePatch,
    WeightSums.kind: WeightSums,
    MatrixSums.kind: MatrixSums,
    GradientSums.kind: GradientSums,
    ParameterSums.kind: ParameterSums,
    MemoryPatch.kind: MemoryPatch,
    MemoryPatch.narrow_kind: MemoryPatch,
}


def pack(parts: Sequence[Patch]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the meta of a file with a step's patch."""
    tensors = {
        f"{index}.{name}": tensor
        for index, part in enumerate(parts)
        for name, tensor in part.tensors().items()
    }
    return tensors, {"parts": [_entry(part) for part in parts]}


def unpack(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> tuple[Patch, ...]:
    """Read the parts of a step's patch. Raises CeditError for a file that is no patch of ours."""
    try:
        return tuple(_part(index, entry, tensors) for index, entry in enumerate(meta["parts"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CeditError(
            f"A patch is not as cedit writes them ({type(error).__name__}: {error}): another "
            "program wrote it; go back to a revision before it with `cedit rollback`."
        ) from error


def _entry(part: Patch) -> dict[str, Any]:
    """Return the JSON entry of one part. Owners stand beside `meta`, not in it: they have no part
    in the effect of a patch. A patch whose tensors mean more than its kind says names another kind
    in its meta."""
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
    part_tensors = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    patch: Patch = KINDS[kind].from_tensors(part_tensors, entry)
    if "owners" in entry:  # older files name none
        patch = patch.owned_by(tuple(entry["owners"]))
    patch.check()
    return patch
