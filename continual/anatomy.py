"""Finds a transformers model's blocks, its FFN matrices and the way to its logits.

Finds them by structure, never by the name of an architecture. One forward pass over a single token
shows the order in which the modules run, which the order of their declaration does not: the blocks
are the longest list of equal modules with an FFN in each, the FFN is the widest pair of matrices
d → d_ff → d outside attention, and the tail is every module that runs behind the last FFN. An
override by name corrects a wrong finding.

The *FFN site* of a block: the query is the input of its first ``up`` matrix; a patch is added to
the output of ``down``. A model whose blocks have no such FFN (mixtures of experts, state-space
blocks, blocks of several kinds) has the *block site* alone: the query is the block's output, and a
patch is added to it. Leaves running a model in parts to ``passes``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.utils.generic import ModelOutput

from continual import hooks
from continual.errors import ModelError
from continual.out_of_memory import is_out_of_memory

MESSAGE_MAX = 200  # characters of another package's message in one of ours

OVERRIDES: Mapping[str, str] = {
    "blocks": "path of the list of blocks",
    "up": "path or paths, with commas, inside a block: the FFN's input matrices",
    "down": "path inside a block: the FFN's output matrix",
    "norm_after": "path inside a block: the norm behind the FFN's residual sum, or none",
    "final_norm": "path of the norm behind the last block, or none",
    "head": "path of the matrix that gives the logits",
}
"""The keys that ``[anatomy]`` in ``cedit.toml`` may set."""


class _WrongOverride(ModelError):
    """An override names a module that the model does not have."""


NONE = "none"
"""The value of an override that says: this model has no such module."""


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
    no_rows: str = ""  # the reason why rows at the site do not give the logits; empty: they do

    @property
    def is_at_ffn(self) -> bool:
        """True if the last block has an FFN site: what is added to its FFN's output is added to the
        residual sum."""
        return not self.no_ffn_site

    def at_blocks(self, reason: str) -> Anatomy:
        """Return the anatomy with the block site alone, for a reason to tell a person."""
        tail = self.tail[1:] if self.norm_after is not None else self.tail
        return replace(self, norm_after=None, tail=tail, is_rowwise=False, no_ffn_site=reason)

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
        """Return the weight of ``down`` as [d_ff, d], however it is stored: a view, not a copy."""
        weight = self.down_module(model, index).weight
        assert isinstance(weight, Tensor)
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
        if _is_inside(path, self.blocks) and not self.is_one:
            return int(path.removeprefix(f"{self.blocks}.").split(".")[0])
        return self.last if _is_inside(path, *self.tail) else 0

    def norm_after_module(self, model: nn.Module, index: int) -> nn.Module | None:
        """Return the norm behind the FFN's residual sum; None in blocks without one."""
        if self.norm_after is None:
            return None
        return model.get_submodule(self.path(index, self.norm_after))

    def tail_modules(self, model: nn.Module) -> tuple[nn.Module, ...]:
        """Return the modules from the last block's residual sum to the logits."""
        return tuple(model.get_submodule(path) for path in self.tail)


def is_turned(model: nn.Module, path: str) -> bool | None:
    """Tell whether the matrix at a path is stored as [outputs, inputs], as a linear layer's is; a
    `Conv1D` and an embedding store [inputs, outputs]. None for a parameter that is no matrix of
    such a layer."""
    parent, _, name = path.rpartition(".")
    module = model.get_submodule(parent)
    if name != "weight":
        return None
    if isinstance(module, nn.Embedding):
        return False
    matrix = _matrix(parent, module)
    return None if matrix is None else not matrix.transposed


def find_anatomy(
    model: Any,
    overrides: Mapping[str, str] | None = None,
    inputs: Mapping[str, Tensor] | None = None,
) -> Anatomy:
    """Find the anatomy of a transformers model in eval mode.

    ``overrides``: see ``OVERRIDES``. ``inputs``: the inputs of the one call of the model; a single
    token unless given. Raises ``ModelError``, which names the findings and the override that
    settles them.
    """
    chosen = dict(overrides or {})
    _check_overrides(chosen)
    calls = observe(model, inputs or sample_inputs(model, 1))
    try:
        return _with_ffn(model, calls, chosen)
    except _WrongOverride:
        raise
    except ModelError as refusal:
        if {"up", "down", "norm_after"} & chosen.keys():
            raise
        return _without_ffn(model, calls, chosen, refusal)


def _with_ffn(model: Any, calls: ModuleCalls, chosen: Mapping[str, str]) -> Anatomy:
    """Find the anatomy of a model with an FFN in each block. Raises ModelError for any other."""
    blocks = _find_blocks(model, calls, chosen)
    ffn = _find_ffn(model, blocks, calls, chosen)
    block = f"{blocks}.{len(_children(model, blocks)) - 1}"
    way = _find_way(model, block, ffn.down, calls, chosen)
    anatomy = Anatomy(
        blocks=blocks,
        block_count=len(_children(model, blocks)),
        width=ffn.width,
        ffn_width=ffn.ffn_width,
        up=ffn.up,
        down=ffn.down,
        transposed=ffn.transposed,
        norm_after=way.norm_after,
        final_norm=way.final_norm,
        head=way.head,
        tail=way.tail,
        encoder=_encoder(model),
    )
    return replace(anatomy, is_rowwise=_is_rowwise(model, anatomy))


def _without_ffn(
    model: Any, calls: ModuleCalls, chosen: Mapping[str, str], refusal: ModelError
) -> Anatomy:
    """Find the anatomy of a model by its blocks alone. Raises the `refusal` of an FFN if there are
    no blocks."""
    blocks = _find_running_blocks(model, calls, chosen)
    holders = [] if blocks or "blocks" in chosen else _outermost(_holders(model, calls))
    one = holders[-1] if holders else None
    path = blocks or one
    if path is None:
        raise refusal
    count = len(_children(model, blocks)) if blocks else 1
    last = f"{blocks}.{count - 1}" if blocks else path
    way = _find_way(model, last, None, calls, chosen)
    return Anatomy(
        blocks=path,
        block_count=count,
        width=_width(last, calls),
        ffn_width=0,
        up=(),
        down=None,
        transposed=False,
        norm_after=None,
        final_norm=way.final_norm,
        head=way.head,
        tail=way.tail,
        encoder=_encoder(model),
        is_rowwise=False,
        no_ffn_site=str(refusal),
        is_one=blocks is None,
    )


def enclosing_modules(model: Any, anatomy: Anatomy) -> Iterator[Anatomy]:
    """Yield the anatomies of single modules that hold the blocks, the outermost first: the output
    of such a module is the place to edit."""
    calls = observe(model, sample_inputs(model, 1))
    for path in reversed(_holders(model, calls)):
        way = _find_way(model, path, None, calls, {})
        yield replace(
            anatomy,
            blocks=path,
            block_count=1,
            width=_width(path, calls),
            ffn_width=0,
            up=(),
            down=None,
            final_norm=way.final_norm,
            head=way.head,
            tail=way.tail,
            is_one=True,
        )


def _holders(model: Any, calls: ModuleCalls) -> list[str]:
    """Return the modules that run once, give a state of each token, and have blocks inside; those
    that return later come later."""
    paths = [path for path, _ in calls]
    return [
        path
        for path, call in calls
        if path
        and paths.count(path) == 1
        and _state_width(call)
        and any(_is_filled_list(part) for part in model.get_submodule(path).modules())
    ]


def _is_filled_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and len(module) > 0


def _encoder(model: Any) -> str | None:
    """Return the path of the encoder that the decoder attends to; None if there is none."""
    return _path_of(model, model.get_encoder()) if _is_seq2seq(model) else None


def sample_inputs(model: Any, length: int) -> dict[str, Tensor]:
    """Make one sequence [1, length] of token ids from the middle of the vocabulary."""
    embedding = _embedding(model)
    vocabulary = len(embedding)
    spread = torch.linspace(vocabulary // 4, vocabulary // 2, length, device=embedding.device)
    inputs = {"input_ids": spread.long().unsqueeze(0)}
    if _is_seq2seq(model):
        inputs["decoder_input_ids"] = inputs["input_ids"]
    return inputs


@torch.no_grad()
def reads_ahead(model: Any, anatomy: Anatomy) -> bool:
    """Tell whether the blocks' state at a token depends on later ones, as in an encoder."""
    inputs = sample_inputs(model, 3)
    name = "decoder_input_ids" if _is_seq2seq(model) else "input_ids"
    changed = {**inputs, name: inputs[name].clone()}
    changed[name][0, -1] = inputs[name][0, 0]
    first, second = (_first_state(model, anatomy, given) for given in (inputs, changed))
    return not torch.allclose(first, second)


def _first_state(model: Any, anatomy: Anatomy, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return [d] the last block's output at the first token."""
    with hooks.captured(anatomy.block(model, anatomy.last)) as calls:
        model(**inputs, use_cache=False, return_dict=True)
    return calls[0].hidden[0, 0]


def _embedding(model: Any) -> Tensor:
    """Return the table of token embeddings [vocab, .]. Raises ModelError if there is none."""
    try:
        weight = model.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):
        weight = None
    if not isinstance(weight, Tensor):
        raise ModelError(
            f"{_name(model)} has no table of token embeddings: it reads something else than the "
            "tokens of a text, or hashes them. Models of this kind cannot be corrected."
        )
    return weight


def _is_seq2seq(model: Any) -> bool:
    """Tell whether a decoder attends to an encoder of token ids."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


WANTS_OTHER_INPUTS = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    AssertionError,
    ImportError,
)
"""The errors of a model that is called with other inputs than it takes, or in other shapes."""

ROWWISE_LENGTHS = (9, 5)  # of the sequences on which an FFN is run for some positions alone


@torch.no_grad()
def _is_rowwise(model: Any, anatomy: Anatomy) -> bool:
    """Tell whether the last FFN has the same output for some positions alone as for all: a module
    that looks like an FFN may read along the sequence, or need its shape, and then raises some
    error."""
    inputs, rows = _rowwise_sample(model)
    last = anatomy.block(model, anatomy.last)
    norm = anatomy.norm_after_module(model, anatomy.last)
    ends = anatomy.up_modules(model, anatomy.last), anatomy.down_module(model, anatomy.last)
    sums = []
    for hook in (nullcontext(), hooks.narrowed(*ends, rows)):
        with hooks.captured(last if norm is None else norm) as calls, hook, hooks.cut_short(last):
            try:
                hooks.run_until_cut(lambda: model(**inputs, use_cache=False, return_dict=True))
                seen = calls[0].hidden if norm is None else calls[0].input
                sums.append(seen.reshape(-1, anatomy.width).index_select(0, rows))
            except WANTS_OTHER_INPUTS as error:
                if is_out_of_memory(error):
                    raise
                return False
    whole, some = sums
    digits = math.sqrt(torch.finfo(whole.dtype).eps)
    return bool((some - whole).abs().max() <= digits * whole.abs().max())


def _rowwise_sample(model: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Make two sequences of unlike lengths, and choose some of their positions, counted through the
    batch."""
    longest, shortest = ROWWISE_LENGTHS
    inputs = {name: ids.repeat(2, 1) for name, ids in sample_inputs(model, longest).items()}
    mask = torch.ones_like(inputs["input_ids"])
    mask[1, shortest:] = 0
    rows = torch.arange(1, longest + shortest, 3, device=mask.device)
    return {**inputs, "attention_mask": mask}, rows


ModuleCalls = list[tuple[str, hooks.Call]]
"""Paths of modules with their calls, in the order in which they returned."""


def observe(model: Any, inputs: Mapping[str, Tensor]) -> ModuleCalls:
    """Record every module's calls in one forward pass; the model itself, whose path is "", comes
    last. Raises ModelError for a model that cannot be run on `inputs`."""
    if model.training:
        raise ModelError("The model is in training mode; call model.eval() before editing it.")
    calls: ModuleCalls = []
    every = dict(model.named_modules())
    with torch.no_grad(), hooks.watched(every, lambda path, call: calls.append((path, call))):
        try:
            model(**inputs, use_cache=False, return_dict=True)
        except WANTS_OTHER_INPUTS as error:
            if is_out_of_memory(error):
                raise
            raise _not_run(model, inputs, error) from error
    return calls


def _not_run(model: Any, inputs: Mapping[str, Tensor], error: Exception) -> ModelError:
    told = (str(error).splitlines() or [""])[0][:MESSAGE_MAX] or _name(error)
    shape = list(inputs["input_ids"].shape)
    return ModelError(
        f"{_name(model)} could not be run on {', '.join(inputs)} of the shape {shape} ({told}): it "
        "needs other inputs than the tokens of a text. Models of this kind cannot be corrected; "
        "if it holds a text model, save that one alone, with its tokenizer."
    )


# --- blocks ---------------------------------------------------------------------------------------


def _find_blocks(model: Any, calls: ModuleCalls, chosen: Mapping[str, str]) -> str:
    """Return the path of the longest list of blocks with an FFN, in the decoder if there is one."""
    if "blocks" in chosen:
        return _check_list(model, chosen["blocks"])
    root = _path_of(model, model.get_decoder()) if _is_seq2seq(model) else ""
    lists = [path for path in _block_lists(model) if _is_inside(path, root)]
    with_ffn = [p for p in lists if _ffns(_matrices(_children(model, p)[0], f"{p}.0", calls))]
    if not with_ffn:
        raise ModelError(
            f"No list of blocks with an FFN was found in {_name(model)}. "
            + _no_blocks(model, lists)
        )
    return max(with_ffn, key=lambda path: len(_children(model, path)))


def _no_blocks(model: nn.Module, lists: list[str]) -> str:
    """Return the reason and the remedy: a mixture's experts are one parameter each, and cannot be
    named."""
    described = _describe_lists(model, lists)
    if not lists:
        return described
    if any(_experts(_children(model, path)[0]) for path in lists):
        return f"Mixtures of experts have many matrices in the place of one. {described}"
    return f"{described} {_remedy('blocks', 'up', 'down')}"


def _block_lists(model: nn.Module) -> list[str]:
    """Return the paths of the lists of equal modules that are in no other such list."""
    lists = [path for path, module in model.named_modules() if _is_block_list(module)]
    return _outermost(lists)


def _is_block_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1


def _find_running_blocks(model: Any, calls: ModuleCalls, chosen: Mapping[str, str]) -> str | None:
    """Return the path of the longest list of modules that each run once and hand on a state of one
    width; of two, the one that runs later. None if there is no such list."""
    root = _path_of(model, model.get_decoder()) if _is_seq2seq(model) else ""
    ends = {path: place for place, (path, _) in enumerate(calls)}
    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and _is_inside(path, root)
        and _runs(path, module, calls)
    ]
    if "blocks" in chosen:
        return chosen["blocks"] if chosen["blocks"] in paths else None
    sizes = {path: len(_children(model, path)) for path in _outermost(paths)}
    return max(sizes, key=lambda p: (sizes[p], ends[f"{p}.{sizes[p] - 1}"]), default=None)


def _runs(path: str, blocks: nn.ModuleList, calls: ModuleCalls) -> bool:
    """Tell whether each module of a list runs once, and gives a state of the same width."""
    own = [(name, call) for name, call in calls if name.rpartition(".")[0] == path]
    if [name for name, _ in own] != [f"{path}.{i}" for i in range(len(blocks))] or not own:
        return False
    widths = {_state_width(call) for _, call in own}
    return len(widths) == 1 and None not in widths


def _state_width(call: hooks.Call) -> int | None:
    """Return the width of the state of one token in an output; None if there is no such state."""
    output = call.output
    if not isinstance(output, Tensor):
        has_parts = isinstance(output, tuple | list | ModelOutput) and len(output)
        output = output[0] if has_parts else None
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    return int(output.shape[-1]) if output.shape[:-1].numel() == 1 and output.ndim > 1 else None


def _width(block: str, calls: ModuleCalls) -> int:
    """Return the width of the state that a block hands on."""
    width = next(_state_width(call) for path, call in calls if path == block)
    assert width is not None
    return width


def _check_list(model: nn.Module, path: str) -> str:
    if not _is_block_list(_get(model, path, "blocks")):
        raise ModelError(
            f"anatomy.blocks: {path} in {_name(model)} is not a list of equal blocks. "
            + _describe_lists(model, _block_lists(model))
        )
    return path


# --- the FFN --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _FfnMatrix:
    path: str  # inside the block
    inputs: int
    outputs: int
    transposed: bool

    def __str__(self) -> str:
        return f"{self.path} ({self.inputs} → {self.outputs})"


@dataclass(frozen=True)
class _Ffn:
    width: int
    ffn_width: int
    up: tuple[str, ...]
    down: str
    transposed: bool


def _find_ffn(model: nn.Module, blocks: str, calls: ModuleCalls, chosen: Mapping[str, str]) -> _Ffn:
    """Return the FFN of the first block. Raises ModelError if another block does not have it."""
    children = _children(model, blocks)
    ffn = _choose_ffn(children[0], f"{blocks}.0", calls, chosen)
    for index, block in enumerate(children):
        path = f"{blocks}.{index}"
        if ffn not in _named(
            _ffns(_matrices(block, path, calls, attention=True)), ffn.up, ffn.down
        ):
            raise ModelError(
                f"{path} has not the FFN of the first block, {', '.join(ffn.up)} → {ffn.down} of "
                f"width {ffn.ffn_width}: blocks must be equal and run once in a forward pass. "
                + _describe_block(block, path, calls)
            )
    return ffn


def _choose_ffn(block: nn.Module, path: str, calls: ModuleCalls, chosen: Mapping[str, str]) -> _Ffn:
    up, down = _split(chosen.get("up")), chosen.get("down")
    for key, part in [*(("up", part) for part in up), *([("down", down)] if down else [])]:
        _get(block, part, key)
    overridden = bool(up or down)
    found = _named(_ffns(_matrices(block, path, calls, attention=overridden)), up, down)
    widest = [ffn for ffn in found if ffn.ffn_width == max(ffn.ffn_width for ffn in found)]
    square = any(ffn.width == ffn.ffn_width for ffn in widest)
    if not widest or (len(widest) > 1 and not square) or (_experts(block) and not overridden):
        raise ModelError(
            f"{path} should have one FFN d → d_ff → d, and has {len(widest)} that fit. "
            f"{_describe_block(block, path, calls)} {_remedy('up', 'down')}"
        )
    return widest[-1]


def _ffns(matrices: list[_FfnMatrix]) -> list[_Ffn]:
    """Return every matrix d_ff → d behind one or more of d → d_ff, in the order in which they
    run."""
    found = []
    for position, down in enumerate(matrices):
        shapes = (
            (down.outputs, down.inputs),
            (down.outputs, 2 * down.inputs),
        )  # gate and up in one
        up = [m.path for m in matrices[:position] if (m.inputs, m.outputs) in shapes]
        if up:
            found.append(_Ffn(down.outputs, down.inputs, tuple(up), down.path, down.transposed))
    return found


def _named(found: list[_Ffn], up: tuple[str, ...], down: str | None) -> list[_Ffn]:
    """Return the FFNs that have the named matrices, with only these as ``up``."""
    return [
        _Ffn(ffn.width, ffn.ffn_width, up or ffn.up, ffn.down, ffn.transposed)
        for ffn in found
        if down in (None, ffn.down) and set(up) <= set(ffn.up)
    ]


def _matrices(
    block: nn.Module, path: str, calls: ModuleCalls, attention: bool = False
) -> list[_FfnMatrix]:
    """Return the matrices of a block that run once, in order; attention's only if asked for."""
    hidden = [] if attention else [p for p, m in block.named_modules() if p and _is_attention(m)]
    ran = [name.removeprefix(f"{path}.") for name, _ in calls if name.startswith(f"{path}.")]
    once = [name for name in ran if ran.count(name) == 1 and not _is_inside(name, *hidden)]
    return [m for name in once if (m := _matrix(name, block.get_submodule(name)))]


def _matrix(path: str, module: nn.Module) -> _FfnMatrix | None:
    if isinstance(module, nn.Linear):
        return _FfnMatrix(path, module.in_features, module.out_features, transposed=False)
    if isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
        return _FfnMatrix(path, int(inputs), int(outputs), transposed=True)
    return None


# --- the way from the last FFN to the logits ------------------------------------------------------


@dataclass(frozen=True)
class _LogitPath:
    norm_after: str | None
    final_norm: str | None
    head: str | None
    tail: tuple[str, ...]


def _find_way(
    model: nn.Module, block: str, down: str | None, calls: ModuleCalls, chosen: Mapping[str, str]
) -> _LogitPath:
    """Return the way from the output matrix of the FFN in the last block; from the block's end
    without one."""
    after = _calls_after(calls, block if down is None else f"{block}.{down}")
    norm_after = None if down is None else _norm_after(model, block, after, chosen)
    blocks = block.rpartition(".")[0] or block
    behind = [(path, call) for path, call in after[1:] if not _is_inside(path, blocks)]
    tail = _tail(model, behind)
    norm = next((path for path in tail if _is_norm(model.get_submodule(path))), None)
    final_norm = _optional(model, "final_norm", chosen, norm)
    last = _last_matrix(model, behind)
    head = chosen.get("head") or last
    if head is not None:
        _get(model, head, "head")
    if head is not None and (final_norm, head) != (norm, last):
        tail = (*([final_norm] if final_norm else []), head)
    first = (f"{block}.{norm_after}",) if norm_after else ()
    return _LogitPath(norm_after, final_norm, head, first + tail)


def _calls_after(calls: ModuleCalls, path: str) -> ModuleCalls:
    """Return the call of ``path`` and all calls that began after it, so none of a module that
    contains it."""
    start = next(position for position, (name, _) in enumerate(calls) if name == path)
    later = [(name, call) for name, call in calls[start + 1 :] if not _is_inside(path, name)]
    return [calls[start], *later]


def _norm_after(
    model: nn.Module, block: str, after: ModuleCalls, chosen: Mapping[str, str]
) -> str | None:
    """Return the first norm of the block whose input is more than the FFN's output alone."""
    (_, down), *rest = after
    norms = [
        path.removeprefix(f"{block}.")
        for path, call in rest
        if path.startswith(f"{block}.")
        and _is_norm(model.get_submodule(path))
        and not torch.equal(call.input, down.hidden)
    ]
    return _optional(model.get_submodule(block), "norm_after", chosen, next(iter(norms), None))


def _tail(model: nn.Module, behind: ModuleCalls) -> tuple[str, ...]:
    """Return the outermost modules that changed their input."""
    outermost = _outermost(path for path, _ in behind)
    working = {path for path, call in behind if not _is_idle(model.get_submodule(path), call)}
    return tuple(path for path, _ in behind if path in outermost and path in working)


def _is_idle(module: nn.Module, call: hooks.Call) -> bool:
    """Tell whether a module passed its input on, as dropout does in eval mode."""
    bare = isinstance(call.output, Tensor) and not list(module.parameters())
    return bare and torch.equal(call.output, call.input)


def _last_matrix(model: nn.Module, behind: ModuleCalls) -> str | None:
    matrices = [path for path, _ in behind if _matrix(path, model.get_submodule(path))]
    return matrices[-1] if matrices else None


# --- overrides and messages -----------------------------------------------------------------------


def _check_overrides(chosen: Mapping[str, str]) -> None:
    for key in chosen:
        if key not in OVERRIDES:
            raise ModelError(f"anatomy.{key} is not a setting; there are {', '.join(OVERRIDES)}.")


def _optional(
    root: nn.Module, key: str, chosen: Mapping[str, str], found: str | None
) -> str | None:
    path = chosen.get(key, found)
    if path is None or path == NONE:
        return None
    _get(root, path, key)
    return path


def _get(root: nn.Module, path: str, key: str) -> nn.Module:
    try:
        return root.get_submodule(path)
    except AttributeError:
        known = ", ".join(name for name, _ in root.named_modules() if name.count(".") <= 2 and name)
        raise _WrongOverride(
            f"anatomy.{key}: {_name(root)} has no {path!r}. It has {known}."
        ) from None


def _split(paths: str | None) -> tuple[str, ...]:
    return tuple(path.strip() for path in paths.split(",")) if paths else ()


def _remedy(*keys: str) -> str:
    """Return the last sentence of a message: the lines to write into ``cedit.toml``."""
    settings = "; ".join(f"{key} = {OVERRIDES[key]}" for key in keys)
    where = "with `cedit init --anatomy KEY=NAME`, or in cedit.toml under [anatomy]"
    return f"Name it {where}: {settings}."


def _describe_lists(model: nn.Module, lists: list[str]) -> str:
    if not lists:
        return _describe_mixed(model)
    lines = []
    for path in lists:
        blocks = _children(model, path)
        experts = f", with {', '.join(_experts(blocks[0]))}" if _experts(blocks[0]) else ""
        lines.append(f"{path} ({len(blocks)} × {_name(blocks[0])}{experts})")
    return f"Its lists of equal modules: {'; '.join(lines)}."


def _describe_mixed(model: nn.Module) -> str:
    """Describe the lists of a model whose blocks are of several classes: none can be edited."""
    lists = [path for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        return "It has no list of equal modules at all."
    lines = []
    for path in _outermost(lists):
        kinds = dict.fromkeys(_name(block) for block in _children(model, path))
        lines.append(f"{path} ({len(_children(model, path))} of {', '.join(kinds)})")
    return f"Its lists have blocks of several kinds: {'; '.join(lines)}."


def _describe_block(block: nn.Module, path: str, calls: ModuleCalls) -> str:
    matrices = ", ".join(map(str, _matrices(block, path, calls))) or "none"
    experts = _experts(block)
    mixture = f" Its {', '.join(experts)} are a mixture." if experts else ""
    return f"Its matrices outside attention that run once: {matrices}.{mixture}"


# --- paths and modules ----------------------------------------------------------------------------


def _name(module: object) -> str:
    return type(module).__name__


def _children(model: nn.Module, path: str) -> list[nn.Module]:
    return list(model.get_submodule(path).children())


def _path_of(model: nn.Module, module: nn.Module) -> str:
    path: str = next(path for path, found in model.named_modules() if found is module)
    return path


def _is_inside(path: str, *roots: str) -> bool:
    """Tell whether a path is one of the roots or below it; everything is below ""."""
    return any(root in ("", path) or path.startswith(f"{root}.") for root in roots)


def _outermost(paths: Iterable[str]) -> list[str]:
    """Return the paths that are below no other."""
    every = list(paths)
    return [path for path in every if not any(path.startswith(f"{other}.") for other in every)]


def _is_norm(module: nn.Module) -> bool:
    return "norm" in _name(module).lower()


def _is_attention(module: nn.Module) -> bool:
    return any(word in _name(module).lower() for word in ("attention", "attn"))


def _experts(block: nn.Module) -> list[str]:
    """Return the paths of the collections of experts in a block."""
    names = [path for path, _ in block.named_modules() if "experts" in path.split(".")[-1]]
    return _outermost(names)
