"""The base model: loads a directory that transformers wrote, with its anatomy and the fingerprint
of its files. Leaves the loading itself to `loading`, and the files to `model_files`."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from continual import decoding
from continual.anatomy import Anatomy, find_anatomy, sample_inputs
from continual.anatomy.overrides import NONE
from continual.anatomy.text_side import run_on_tokens
from continual.embedded import embedded
from continual.errors import CeditError, ModelError
from continual.loading import load_pretrained
from continual.model_files import companion_files, directory_fingerprint, model_directory
from continual.passes.edit_site import settled
from continual.placement import Placement, usable_device

DECODED_TOKENS = 5  # of the prompt on which `generate` is compared with the model's forward


class WrongBaseModel(CeditError):
    """The base model differs from the one that the history was made on."""

    exit_code = 21


@dataclass(frozen=True)
class BaseSource:
    """The arguments of `load_base` by which another process loads the same base."""

    name: str  # an embedded model's, or the directory's absolute path
    architecture: str
    device: str
    dtype: str
    overrides: Mapping[str, str]
    device_map: tuple[str, ...] = ()
    offload: Path | None = None

    def load(self) -> PretrainedBase:
        """Load the base. Raises ModelError."""
        return load_base(
            self.name,
            self.architecture,
            device=self.device,
            dtype=self.dtype,
            overrides=self.overrides,
            device_map=self.device_map,
            offload=self.offload,
        )


@dataclass(frozen=True)
class PretrainedBase:
    """A pretrained model, unchanged from its directory."""

    model: Any  # a transformers model in eval mode
    tokenizer: Any
    anatomy: Anatomy
    fingerprint: str
    companions: Mapping[str, str] = field(default_factory=dict)  # see `companion_files`
    notes: tuple[str, ...] = ()  # remarks for a person to read
    source: BaseSource | None = None  # None: it was not loaded, and stays in this process
    image_processor: Any = None  # makes pictures into inputs; None for a model of texts
    pictures_lead: bool = False  # a first picture stands before the tokens that begin a text

    @cached_property
    def decoding(self) -> Mapping[str, Any]:
        """The options that make `generate` agree with the model's forward."""
        ids = sample_inputs(self.model, length=DECODED_TOKENS)["input_ids"]
        return decoding.options(self.model, ids, self.pad)

    @cached_property
    def context_tokens_max(self) -> int | None:
        """The number of tokens that the model reads at once; None if its config does not say.

        RoBERTa and its kin count positions from the one after the padding's.
        """
        config = self.model.config.get_text_config()
        most = getattr(config, "max_position_embeddings", None)
        if most is None or most < 1:  # XLNet's says -1
            return None
        return int(most) - _first_position(self.model)

    @cached_property
    def pad(self) -> int:
        """The token behind a shorter sequence of a batch: the tokenizer's own, or 0 if there is
        none or the model does not know it, as one that was added later."""
        pad = self.tokenizer.pad_token_id
        return 0 if pad is None or self.unknown_token([pad]) is not None else int(pad)

    def unknown_token(self, ids: Sequence[int]) -> str | None:
        """Return one of these tokens that the model has no embedding for; None if it has all."""
        highest = max(ids, default=0)
        if highest < self._token_count:
            return None
        return str(self.tokenizer.convert_ids_to_tokens(highest))

    @cached_property
    def _token_count(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[0])


def _first_position(model: Any) -> int:
    """Return the first position of a model with learned positions, after the padding's; else 0."""
    tables = (
        module
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding)
    )
    return max(
        (table.padding_idx + 1 for table in tables if table.padding_idx is not None), default=0
    )


def load_base(
    name: str | Path,
    architecture: str = "AutoModelForCausalLM",
    *,
    device: str = "cpu",
    dtype: str = "float32",
    overrides: Mapping[str, str] | None = None,
    device_map: Sequence[str] = (),
    offload: Path | None = None,
) -> PretrainedBase:
    """Load a model directory for editing by a class of transformers: a task's `architecture`.

    With a `device_map` (see `Placement.of`) accelerate puts its modules on several devices, and
    parameters on the disk into a folder of this process in `offload`, which goes with the model.
    Raises ModelError, which names the missing part.
    """
    directory = model_directory(name)
    place = usable_device(device)
    placement = Placement.of(device_map, offload)
    loaded = load_pretrained(directory, architecture, number_format(dtype), placement)
    model = loaded.model if device_map else loaded.model.to(place)
    if placement.offload_folder is not None:
        weakref.finalize(model, shutil.rmtree, placement.offload_folder, ignore_errors=True)
    run_on_tokens(model)
    anatomy = settled(model, find_anatomy(model, overrides))
    if (overrides or {}).get("context", NONE) != NONE and anatomy.context_block is None:
        raise ModelError(
            f"anatomy.context names a block, and {type(model).__name__} has no FFN at its end "
            f"whose queries could have a context: {anatomy.no_ffn_site}"
        )
    return PretrainedBase(
        model,
        loaded.tokenizer,
        anatomy,
        directory_fingerprint(directory),
        companion_files(directory),
        loaded.notes,
        BaseSource(
            _source_name(name),
            architecture,
            device,
            dtype,
            dict(overrides or {}),
            tuple(device_map),
            offload,
        ),
        loaded.image_processor,
        loaded.pictures_lead,
    )


def _source_name(name: str | Path) -> str:
    """Return a name that means the same model in another folder."""
    return str(name) if embedded(str(name)) else str(model_directory(name).absolute())


def number_format(name: str) -> torch.dtype:
    """Return a floating-point format of torch by its name. Raises ModelError for any other."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ModelError(
            f"{name!r} is no number format: a model runs in float32, bfloat16 or float16."
        )
    return dtype
