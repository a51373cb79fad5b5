"""The anatomy of a transformers model: the paths and the sizes of its parts.

The *FFN site* of a block: the query is the input of its first ``up`` matrix; a patch is added to
the output of ``down``. With a *context block* the query has the mean of that block's queries beside
it; see `effects.context`. A model whose blocks have no such FFN (mixtures of experts, state-space
blocks, blocks of several kinds) has the *block site* alone: the query is the block's output, and a
patch is added to it. Leaves the finding of the parts to ``finding``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from continual.anatomy.module_paths import is_inside
from continual.errors import ModelError
from continual.storage import BESIDE_PACKED, obstacle


@dataclass(frozen=True)
class Anatomy:
    """Paths and sizes of a model's parts; the methods take the model as an argument.

    ``up``, ``down`` and ``norm_after`` are paths inside a block, the others inside the model.
    ``tail`` are the modules that turn the last block's residual sum into logits, in the order in
    which they run: its ``norm_after``, if any, then everything behind the blocks.
    """

    blocks: str
    block_count: int
    width: int  # d
    ffn_width: int  # d_ff; 0 without an FFN
    up: tuple[str, ...]
    down: str | None  # None: the blocks have no FFN that all of them share
    transposed: bool  # the weight of ``down`` is stored as [d_ff, d]
    norm_after: str | None
    final_norm: str | None
    head: str | None  # None: no matrix runs behind the blocks
    tail: tuple[str, ...]
    encoder: str | None  # the encoder that the decoder attends to, if any
    is_rowwise: bool = True  # the FFN can be run for some positions of a batch alone
    no_ffn_site: str = ""  # the reason why the last block has the block site alone; empty: FFN site
    is_one: bool = False  # ``blocks`` is the one module behind which the model is edited
    context_block: int | None = None  # the block that gives queries at the FFN site a context
    turn: tuple[int, ...] | None = None  # tokens that a topic leaves out; None: no topic
    no_rows: str = ""  # the reason why rows at the site do not give the logits; empty: they do

    @property
    def is_at_ffn(self) -> bool:
        """True if the last block has an FFN site: what is added to its FFN's output is added to the
        residual sum."""
        return not self.no_ffn_site

    def at_blocks(self, reason: str) -> Anatomy:
        """Return the anatomy with the block site alone, for a reason to tell a person."""
        tail = self.tail[1:] if self.norm_after is not None else self.tail
        return replace(
            self,
            norm_after=None,
            tail=tail,
            is_rowwise=False,
            no_ffn_site=reason,
            context_block=None,
            turn=None,
        )

    def require_ffn(self) -> None:
        """Raise ModelError for a model without an output matrix in each block that adds to the
        residual sum."""
        if self.no_ffn_site:
            raise ModelError(
                "This model has no FFN in each block whose output matrix adds to the residual sum, "
                f"as editors of that matrix need. {self.no_ffn_site} Editors that need none: "
                "tpatcher, serac and ike, and fine-tuning by ft-last, ft-all and their KL forms."
            )

    @property
    def last(self) -> int:
        """The index of the last block."""
        return self.block_count - 1

    def path(self, index: int, inside: str) -> str:
        """Return the path in the model of a module inside block ``index``."""
        return f"{self.block_path(index)}.{inside}"

    def block_path(self, index: int) -> str:
        """Return the path in the model of block ``index``."""
        return self.blocks if self.is_one else f"{self.blocks}.{index}"

    def block(self, model: nn.Module, index: int) -> nn.Module:
        """Return block ``index``."""
        return model.get_submodule(self.block_path(index))

    def up_modules(self, model: nn.Module, index: int) -> tuple[nn.Module, ...]:
        """Return the matrices d → d_ff: one, or a gate and its partner, or one that is both."""
        return tuple(model.get_submodule(self.path(index, up)) for up in self.up)

    def query_module(self, model: nn.Module, index: int) -> nn.Module:
        """Return the module whose input is the query [.., d] of the block's FFN site. Raises
        ModelError for a model without FFNs."""
        if not self.up:
            self.require_ffn()
        return self.up_modules(model, index)[0]

    def down_module(self, model: nn.Module, index: int) -> nn.Module:
        """Return the matrix d_ff → d: its input is the key activation, patches are added to its
        output. Raises ModelError for a model without FFNs."""
        if self.down is None:
            self.require_ffn()
        assert self.down is not None
        return model.get_submodule(self.path(index, self.down))

    def down_weight(self, model: nn.Module, index: int) -> Tensor:
        """Return the weight of ``down`` as [d_ff, d], however it is stored: a view, not a copy.
        Raises ModelError for a matrix that is no plain numbers in memory."""
        weight = self.down_module(model, index).weight
        assert isinstance(weight, Tensor)
        if reason := obstacle(weight):
            raise ModelError(
                f"The FFN output matrix of block {index} {reason}, and knowledge neurons (kn, "
                "`cedit neurons`) are rows of it that are read one by one. Editors that need no "
                f"rows: {BESIDE_PACKED}."
            )
        return weight if self.transposed else weight.T

    def down_path(self, index: int) -> str:
        """Return the path in the model of the parameter that ``down_weight`` is a view of. Raises
        ModelError for a model without FFNs that add to the residual sum."""
        self.require_ffn()
        return f"{self.path(index, str(self.down))}.weight"

    def lowest_block(self, paths: Iterable[str]) -> int:
        """Return the first block whose output depends on the parameters at these paths: their own
        block, the last one for parameters behind all blocks, block 0 for all others (embeddings,
        encoder)."""
        return min(self._block_of(path) for path in paths)

    def _block_of(self, path: str) -> int:
        if is_inside(path, self.blocks) and not self.is_one:
            return int(path.removeprefix(f"{self.blocks}.").split(".")[0])
        return self.last if is_inside(path, *self.tail) else 0

    def norm_after_module(self, model: nn.Module, index: int) -> nn.Module | None:
        """Return the norm behind the FFN's residual sum; None in blocks without one."""
        if self.norm_after is None:
            return None
        return model.get_submodule(self.path(index, self.norm_after))

    def tail_modules(self, model: nn.Module) -> tuple[nn.Module, ...]:
        """Return the modules from the last block's residual sum to the logits."""
        return tuple(model.get_submodule(path) for path in self.tail)
