"""The base model: a directory that transformers wrote, loaded, and the fingerprint of its files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from continual.anatomy import Anatomy, find_anatomy
from continual.embedded import MODELS, embedded
from continual.errors import CeditError, ModelError
from continual.shortage import is_shortage

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

    @cached_property
    def context_tokens_max(self) -> int | None:
        """How many tokens the model reads at once; None where its config does not say.

        RoBERTa and its kin count positions from behind the one that padding has.
        """
        config = self.model.config.get_text_config()
        most = getattr(config, "max_position_embeddings", None)
        return None if most is None else int(most) - _first_position(self.model)

    @cached_property
    def pad(self) -> int:
        """The token behind a shorter sequence of a batch: the tokenizer's own, if the model knows
        it, as one that was added later may be unknown to it."""
        pad = self.tokenizer.pad_token_id
        return 0 if pad is None or self.unknown_token([pad]) is not None else int(pad)

    def unknown_token(self, ids: Sequence[int]) -> str | None:
        """Among these tokens one that the tokenizer names and the model has no embedding for."""
        last = max(ids, default=0)
        if last < self._token_count:
            return None
        return str(self.tokenizer.convert_ids_to_tokens(last))

    @cached_property
    def _token_count(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[0])


def _first_position(model: Any) -> int:
    """Where a model with learned positions begins to count them."""
    tables = (
        module
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding)
    )
    return max(
        (table.padding_idx + 1 for table in tables if table.padding_idx is not None), default=0
    )


def model_directory(name: str | Path) -> Path:
    """The directory that a model's name stands for. Raises ModelError where there is none."""
    if (known := embedded(name)) is not None:
        return known.directory
    path = Path(name).expanduser().absolute()
    if not (path / "config.json").is_file():
        names = ", ".join(map(repr, MODELS))
        raise ModelError(
            f"{path} is not a model directory (it has no config.json): give a directory that "
            f"transformers' save_pretrained wrote, or {names}, the embedded model."
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
    architecture: str = "AutoModelForCausalLM",
    *,
    device: str = "cpu",
    dtype: str = "float32",
    overrides: Mapping[str, str] | None = None,
) -> BaseModel:
    """A model directory, loaded for editing by a class of transformers: a task's `architecture`.
    Raises ModelError, with what is missing."""
    import transformers

    directory = model_directory(name)
    place = usable_device(device)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        model = getattr(transformers, architecture).from_pretrained(
            directory, dtype=getattr(torch, dtype), use_safetensors=True
        )
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise cannot_load(directory, error) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # made up where there was none
        raise ModelError(
            f"The model in {directory} has no tokenizer: put its own there, with the tokenizer's "
            "save_pretrained."
        )
    model = model.to(place).eval().requires_grad_(False)
    return BaseModel(
        model, tokenizer, find_anatomy(model, overrides), directory_fingerprint(directory)
    )


def usable_device(name: str) -> torch.device:
    """A device that tensors can be on here. Raises ModelError for any other."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" holds nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        if is_shortage(error):
            raise
        raise ModelError(
            f"Device {name!r} cannot be used here ({_first_line(error)}): choose cpu, or cuda "
            "with a CUDA build of torch and a GPU; an existing store has it in cedit.toml, under "
            "[model]."
        ) from error
    return device


def cannot_load(directory: Path, error: Exception) -> ModelError:
    """What transformers says of a directory, without its lists of everything that there is."""
    return ModelError(f"The model in {directory} cannot be loaded: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    """Of what it says; the error's name, where it says nothing."""
    return (str(error).replace("\\n", "\n").splitlines() or [type(error).__name__])[0]
