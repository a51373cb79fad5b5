"""The edited model as a directory that transformers loads: all edits in its parameters.

Files of the base that shape its answers beside the weights are copied to the letter. Leaves the
model itself to `merged`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from continual.effects import BESIDE
from continual.errors import ModelError
from continual.loading import load_pretrained
from continual.model_files import files_beside_weights, is_gguf, read_json, shard_bytes
from continual.saving.job import CannotSave, SaveJob
from continual.saving.merged import plain_model, staying
from continual.saving.proof import activation_ranges, require_same_tokens
from continual.storage import has_packed

TOKENIZER_CONFIG = "tokenizer_config.json"
ANY_TOKENIZER = "TokenizersBackend"
"""The class of transformers' for a tokenizer.json of any kind."""


class TransformersForm:
    """See `SavedForm`."""

    name = "transformers"
    library = "transformers"
    relation = "finetune"
    kinds: Collection[str] = tuple(BESIDE)
    sees = True

    def staying(self, job: SaveJob) -> Mapping[str, str]:
        """See `SavedForm.staying`."""
        return staying(job.edited)

    def write(self, job: SaveJob, folder: Path) -> Mapping[str, Any]:
        """See `SavedForm.write`. Raises CannotSave for a packed base."""
        if has_packed(job.edited.model):
            raise CannotSave(
                f"The base in {job.base_directory} is packed, and a copy of it would have the same "
                "matrices without their edits: save --as peft, an adapter for that base."
            )
        plain = plain_model(
            job.edited,
            without=job.settings.without,
            dtype=job.dtype,
            load_base=job.load_base,
            ranges=activation_ranges(job.opened.site, job.run.ledger),
        )
        largest = shard_bytes(job.base_directory)
        sharding = {} if largest is None else {"max_shard_size": largest}
        plain.model.save_pretrained(folder, **sharding)
        _copy_beside(job, folder)
        return {
            "architecture": type(plain.model).__name__,
            "widening": None if plain.widening is None else plain.widening.to_json(),
        }

    def load(self, job: SaveJob, folder: Path) -> Any:
        """See `SavedForm.load`; the tokenizer has to read as the base's does."""
        loaded = load_pretrained(folder, job.opened.task.architecture, job.dtype)
        require_same_tokens(job.opened.site, job.run.ledger, loaded.tokenizer)
        return loaded.model.to(job.edited.device)


def _copy_beside(job: SaveJob, folder: Path) -> None:
    """Copy the base's tokenizer, templates, generation config and licence."""
    base = job.base_directory
    if is_gguf(base):  # its tokenizer stands in the file
        job.edited.tokenizer.save_pretrained(folder)
        _name_tokenizer(job, folder)
        return
    for file in files_beside_weights(base):
        target = folder / file.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    written, own = (read_json(place, "config.json")["model_type"] for place in (folder, base))
    if written != own:
        _name_tokenizer(job, folder)


def _name_tokenizer(job: SaveJob, folder: Path) -> None:
    """Name the tokenizer's class in a folder if transformers would choose another one for the type
    of model that is written there, or none of the named ones reads as the base's does."""
    settings = read_json(folder, TOKENIZER_CONFIG)
    for name in (None, type(job.edited.tokenizer).__name__, ANY_TOKENIZER):
        if name is not None:
            text = json.dumps({**settings, "tokenizer_class": name}, indent=2, ensure_ascii=False)
            (folder / TOKENIZER_CONFIG).write_text(text + "\n", encoding="utf-8")
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        with suppress(ModelError):
            require_same_tokens(job.opened.site, job.run.ledger, tokenizer)
            return
