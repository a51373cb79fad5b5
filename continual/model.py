"""The edited model: a base, and the patches of one revision, put on in order.

`EditedModel` behaves as the transformers model that it wraps: within its `with` block `generate`
and pipelines run with the patches. Taking patches off rebuilds what they touched, so that going
back gives the same bytes as never having gone forward. What a model remembers beside its weights is
put on and taken off alike; `generate` then answers every input by the record that it is about, if
there is one. Knows nothing of requests or of the store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from continual import hooks
from continual.anatomy import Anatomy, find_anatomy
from continual.errors import CeditError, ModelError
from continual.patches import Patch
from continual.patches.low_rank import EditedWeight
from continual.patches.memory import MemoryBank
from continual.patches.neuron import NeuronBank

if TYPE_CHECKING:
    from continual.memory.recall import Recall

ATLAS = "atlas"
PASSED_MAX = 8  # states that are looked at
_IDENTITY = ("*.safetensors", "config.json", "tokenizer*.json", "vocab*", "merges.txt", "*.model")


class WrongBaseModel(CeditError):
    """The base model is not the one that the history was made on."""

    exit_code = 21


@dataclass(frozen=True)
class BaseModel:
    """A pretrained model as it lies in its directory."""

    model: Any  # a transformers model in eval mode
    tokenizer: Any
    anatomy: Anatomy
    fingerprint: str

    @property
    def context_tokens_max(self) -> int | None:
        """How many tokens the model reads at once; None where its config does not say."""
        config = self.model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None)


@dataclass(frozen=True)
class _Mark:
    """The state after one patch: enough to come back to it by cutting off what came later."""

    sizes: Mapping[int, int]  # neurons by block
    weights: Mapping[int, int]  # patches by block whose matrix they edit
    memory: int  # patches of the memory
    fingerprint: str
    weights_state: str  # the fingerprint at which a matrix was last edited


class EditedModel:
    """A base model with patches on it. A context manager: outside of it the base is bare.

    `fingerprint` names the state: a chain of SHA-256 over the base's fingerprint and, patch by
    patch, its kind and place and the tensors that it touched as they stand in the model.
    """

    def __init__(self, base: BaseModel) -> None:
        self.base = base
        self.model = base.model
        self.tokenizer = base.tokenizer
        self.anatomy = base.anatomy
        self._banks: dict[int, NeuronBank] = {}
        self._weights: dict[int, EditedWeight] = {}
        self.memory = MemoryBank()
        self.recall: Recall | None = None  # how records are found and read
        self._marks = [_Mark({}, {}, 0, base.fingerprint, base.fingerprint)]
        self._hooks: ExitStack | None = None
        self._is_bare = False
        self._entered = 0  # the `with` blocks that are open

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward, which knows of no memory."""
        return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """What transformers' `generate` returns; where the model remembers anything, each input of
        the batch that a record is about goes on as the record's reader answers it.

        Raises ModelError for what a routed answer cannot give.
        """
        if self._is_bare or not len(self.memory):
            return type(self.model).generate(self.model, *args, **kwargs)
        from continual.memory.generation import generate

        return generate(self, *args, **kwargs)

    def __enter__(self) -> Self:
        self._entered += 1
        if self._hooks is not None:
            return self
        self._hooks = ExitStack()
        self._hooks.enter_context(hooks.standing_in(self.model, "generate", self.generate))
        for block, bank in self._banks.items():
            self._attach(block, bank)
        for weight in self._weights.values():
            self._show(weight)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._entered -= 1
        if self._entered:
            return
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.close()

    @property
    def device(self) -> torch.device:
        """Where the inputs go."""
        device = self.model.get_input_embeddings().weight.device
        assert isinstance(device, torch.device)
        return device

    @property
    def fingerprint(self) -> str:
        """The name of the state that the model is in."""
        return self._marks[-1].fingerprint

    @property
    def weights_state(self) -> str:
        """The name of the state that the matrices are in: neurons put on later leave it as it is.

        Queries and residual sums at the last FFN hold as long as it does.
        """
        return self._marks[-1].weights_state

    @property
    def edited_blocks(self) -> list[int]:
        """The blocks whose matrices are edited, as the model stands."""
        return sorted(self._marks[-1].weights)

    def has_passed(self, state: str, block: int, neurons: int) -> bool:
        """Whether a state with so many neurons at a block was one of the last on the way to this
        one: those neurons are then the first that are on."""
        return self._banks[block].size >= neurons and any(
            mark.fingerprint == state and mark.sizes.get(block, 0) == neurons
            for mark in self._marks[-PASSED_MAX:]
        )

    @property
    def depth(self) -> int:
        """How many steps' patches are on."""
        return len(self._marks) - 1

    def put(self, parts: Sequence[Patch]) -> None:
        """Put one step's patch on."""
        chain = hashlib.sha256(self.fingerprint.encode())
        for part in parts:
            chain.update(json.dumps({"kind": part.kind, **part.meta()}, sort_keys=True).encode())
            for tensor in part.put_on(self):
                chain.update(tensor_bytes(tensor))
        self._mark(chain.hexdigest() if parts else self.fingerprint)

    def put_many(self, parts: Sequence[Patch], fingerprint: str, weights_state: str) -> None:
        """Put on what the patches of many steps come to, as one; the names are those of the state
        that they lead to, by steps."""
        for part in parts:
            part.put_on(self)
        self._mark(fingerprint, weights_state)

    def _mark(self, fingerprint: str, weights_state: str | None = None) -> None:
        """Keep the way back to here."""
        weights = {block: weight.size for block, weight in self._weights.items() if weight.size}
        is_same = weights == self._marks[-1].weights
        sizes = {block: bank.size for block, bank in self._banks.items()}
        state = weights_state or (self.weights_state if is_same else fingerprint)
        self._marks.append(_Mark(sizes, weights, self.memory.size, fingerprint, state))

    def take_off(self, depth: int) -> None:
        """Go back to the state in which the first `depth` steps' patches were on."""
        if not 0 <= depth <= self.depth:
            raise ValueError(f"{depth} patches cannot be kept of {self.depth}")
        del self._marks[depth + 1 :]
        for block, bank in self._banks.items():
            bank.truncate(self._marks[-1].sizes.get(block, 0))
        for block, weight in self._weights.items():
            weight.truncate(self._marks[-1].weights.get(block, 0))
        self.memory.truncate(self._marks[-1].memory)

    def bank(self, block: int) -> NeuronBank:
        """The neurons at a block: made, and attached, when first asked for."""
        if block not in self._banks:
            self._require_block(block)
            bank = NeuronBank(
                self.anatomy.width, self.anatomy.down_weight(self.model, block).device
            )
            self._banks[block] = bank
            if self._hooks is not None:
                self._attach(block, bank)
        return self._banks[block]

    def weight(self, block: int) -> EditedWeight:
        """The FFN's output matrix of a block, with what was added to it."""
        if block not in self._weights:
            self._require_block(block)
            weight = EditedWeight(self.anatomy.down_weight(self.model, block))
            self._weights[block] = weight
            if self._hooks is not None:
                self._show(weight)
        return self._weights[block]

    def _require_block(self, block: int) -> None:
        if not 0 <= block <= self.anatomy.last:
            raise ModelError(
                f"A patch is for block {block}; the model ends at block "
                f"{self.anatomy.last}: it was made on another model."
            )

    def _show(self, weight: EditedWeight) -> None:
        assert self._hooks is not None
        weight.show()
        self._hooks.callback(weight.hide)

    def _attach(self, block: int, bank: NeuronBank) -> None:
        assert self._hooks is not None
        query = self.anatomy.query_module(self.model, block)
        down = self.anatomy.down_module(self.model, block)
        self._hooks.enter_context(bank.attached(query, down))

    @contextmanager
    def without_neurons(self) -> Iterator[None]:
        """The model with its neurons silenced, for as long as this lasts."""
        sizes = {block: bank.size for block, bank in self._banks.items()}
        try:
            for bank in self._banks.values():
                bank.truncate(0)
            yield
        finally:
            for block, size in sizes.items():
                self._banks[block].truncate(size)

    @contextmanager
    def bare(self) -> Iterator[None]:
        """The base model, without memory too, for as long as this lasts."""
        shown = list(self._weights.values()) if self._hooks is not None else []
        was_bare, self._is_bare = self._is_bare, True
        try:
            for weight in shown:
                weight.hide()
            with self.without_neurons():
                yield
        finally:
            self._is_bare = was_bare
            for weight in shown:
                weight.show()


def tensor_bytes(tensor: Tensor) -> bytes:
    """A tensor's own bytes, row by row."""
    contiguous = tensor.detach().cpu().contiguous()
    return contiguous.flatten().view(torch.uint8).numpy().tobytes() if contiguous.numel() else b""


def model_directory(name: str | Path) -> Path:
    """The directory that a model's name stands for. Raises ModelError where there is none."""
    if str(name) == ATLAS:
        return Path(__file__).parent / "atlas" / "model"
    path = Path(name).expanduser().absolute()
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{path} is not a model directory (it has no config.json): give a directory that "
            f"transformers' save_pretrained wrote, or {ATLAS!r}, the embedded model."
        )
    return path


def directory_fingerprint(directory: Path) -> str:
    """SHA-256 over the names and bytes of a model directory's weights, config and tokenizer."""
    digest = hashlib.sha256()
    files = sorted({file for pattern in _IDENTITY for file in directory.glob(pattern)})
    for file in files:
        with file.open("rb") as opened:
            digest.update(f"{file.name}\n".encode())
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def load_base(
    name: str | Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    overrides: Mapping[str, str] | None = None,
) -> BaseModel:
    """A model directory, loaded for editing. Raises ModelError, with what is missing."""
    import transformers

    directory = model_directory(name)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=getattr(torch, dtype), use_safetensors=True
        )
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"The model in {directory} cannot be loaded: {error}") from error
    model = model.to(device).eval().requires_grad_(False)
    return BaseModel(
        model, tokenizer, find_anatomy(model, overrides), directory_fingerprint(directory)
    )


def stand_at(edited: EditedModel, steps: Iterable[Sequence[Patch]]) -> None:
    """Take everything off and put these steps' patches on."""
    edited.take_off(0)
    for parts in steps:
        edited.put(parts)
