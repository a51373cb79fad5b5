"""Σ k kᵀ of a model's keys, pass by pass, in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from continual import hooks
from continual.errors import ModelError
from continual.model import EditedModel
from continual.passes.partial import logits_of
from continual.statistics.windows import Piece
from continual.storage import device_of

_TILE = 512  # rows of a moment summed at once


class Moments:
    """Σ k kᵀ over the even and over the odd pieces, for some blocks of one model.

    Only the upper triangle of a sum counts; below it lie leftovers of the tiles.
    """

    def __init__(self, edited: EditedModel, blocks: Sequence[int]) -> None:
        anatomy, width = edited.anatomy, edited.anatomy.ffn_width
        downs = {block: anatomy.down_module(edited.model, block) for block in blocks}
        self._sums = {  # [2, d_ff, d_ff]
            block: torch.zeros(2, width, width, dtype=torch.float64, device=_summing_device(down))
            for block, down in downs.items()
        }
        self._counts = [0, 0]

    @torch.inference_mode()
    def add(self, half: int, keys: Mapping[int, Tensor]) -> None:
        """Add the keys of one pass. The sums' bits depend on the order of the passes."""
        for block, of_block in keys.items():
            _add_squares(self._sums[block][half], of_block)
        self._counts[half] += len(next(iter(keys.values())))

    def require_finite(self) -> None:
        """Raise ModelError if a key with NaN or infinity has gone into the sums."""
        for block, sums in self._sums.items():
            if not bool(sums.diagonal(dim1=-2, dim2=-1).isfinite().all()):
                raise ModelError(
                    f"The keys of block {block} hold NaN or infinity: the model's numbers "
                    "overflow in this text. Make the store with --dtype float32 or bfloat16."
                )

    def mean(self, block: int) -> tuple[Tensor, float]:
        """Return the second moment of a block, and its convergence; see ``KeyStatistics``."""
        even, odd = (_symmetric(half) for half in self._sums[block].cpu())
        moment = (even + odd).div_(sum(self._counts))
        distance = even.div_(max(1, self._counts[0])).sub_(odd.div_(max(1, self._counts[1])))
        norm = moment.norm().item()
        return moment, distance.norm().item() / norm if norm else 0.0

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole state."""
        sums = {_tensor_name(block): sums for block, sums in self._sums.items()}
        return {**sums, "counts": torch.tensor(self._counts)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to a state that `tensors` gave."""
        for block, sums in self._sums.items():
            sums.copy_(tensors[_tensor_name(block)])
        self._counts = tensors["counts"].tolist()


@torch.inference_mode()
def read_keys(
    edited: EditedModel, blocks: Sequence[int], pieces: Sequence[Piece]
) -> dict[int, Tensor]:
    """Return the keys [n, d_ff] of each of these blocks, by one pass of the bare model over some
    pieces, which ends behind the last of the blocks."""
    inputs, real = _inputs(edited, pieces)
    keys: dict[int, Tensor] = {}
    downs = {block: edited.anatomy.down_module(edited.model, block) for block in blocks}

    def see(block: int, call: hooks.Call) -> None:
        keys[block] = call.input.flatten(0, -2)[real.to(call.input.device)]

    with edited.bare(), hooks.watched(downs, see), hooks.cut_short(downs[max(downs)]):
        hooks.run_until_cut(lambda: logits_of(edited.model, inputs))
    return keys


def _inputs(edited: EditedModel, pieces: Sequence[Piece]) -> tuple[dict[str, Tensor], Tensor]:
    """Return a batch padded on the right, and a mask [B·T] of its real positions."""
    rows = [torch.tensor(piece) for piece in pieces]
    ids = pad_sequence(rows, batch_first=True, padding_value=edited.base.pad)
    lengths = torch.tensor([len(piece) for piece in pieces])
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    inputs = {"input_ids": ids, "attention_mask": real.long()}
    return {name: tensor.to(edited.device) for name, tensor in inputs.items()}, real.flatten()


def _summing_device(down: torch.nn.Module) -> torch.device:
    """Return the device of the keys, or the CPU where float64 is missing there."""
    device = device_of(down)
    return torch.device("cpu") if device.type == "mps" else device


def _add_squares(total: Tensor, keys: Tensor) -> None:
    """Add k kᵀ of keys [n, d_ff] to the upper triangle of a sum, in float64."""
    doubles = keys.to(total.device).double()
    for start in range(0, len(total), _TILE):
        rows = doubles[:, start : start + _TILE]
        total[start : start + _TILE, start:].addmm_(rows.T, doubles[:, start:])


def _symmetric(total: Tensor) -> Tensor:
    """Return the whole of a symmetric sum from its upper triangle."""
    return total.triu() + total.triu(1).T


def _tensor_name(block: int) -> str:
    return f"block-{block}"
