"""The edited model as a PEFT adapter (LoRA): all low-rank edits, with one rank for all matrices.

Updates of one matrix by many batches are joined, and reduced to their rank: with L·R = Q₁(R₁R₂ᵀ)Q₂ᵀ
by two QR decompositions, the SVD of the small core gives it. Factors of a lower rank than others
are filled up with zeros, as servers read one rank; alpha equals the rank, so that nothing is
scaled. Knows the fields of peft's files; peft itself loads them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from continual.effects import BESIDE, FACTORS
from continual.errors import CeditError
from continual.model_files import is_gguf
from continual.saving.job import DENSE, CannotSave
from continual.storage import has_packed

if TYPE_CHECKING:
    from continual.patches.low_rank import Factors
    from continual.saving.job import SaveJob

RANK_MAX = 512  # servers load no larger adapter
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
TASK_TYPES = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}
"""peft's names of tasks; a classifier has none, as its head is not trained anew."""


class PeftForm:
    """See `SavedForm`."""

    name = "peft"
    library = "peft"
    relation = "adapter"
    kinds: Collection[str] = (*(kind for kind in BESIDE if kind != FACTORS), DENSE)
    sees = False

    def staying(self, job: SaveJob) -> Mapping[str, str]:
        """See `SavedForm.staying`: everything but products of factors."""
        _require_peft()
        return dict.fromkeys(self.kinds, "an adapter has only products of factors")

    def write(self, job: SaveJob, folder: Path) -> Mapping[str, Any]:
        """See `SavedForm.write`."""
        if is_gguf(job.base_directory):
            raise CannotSave(
                f"An adapter names a model directory as its base, and {job.base_directory} is a "
                "GGUF file: save --as transformers."
            )
        updates = {path: reduced(parts) for path, parts in _updates(job).items()}
        if not updates:
            raise CannotSave(
                "At this revision there is no low-rank edit that an adapter could have: save --as "
                "transformers, or correct with memit, emmet, alphaedit or rome."
            )
        rank = max(1, *(len(down) for down, _ in updates.values()))
        if rank > RANK_MAX:
            raise CannotSave(
                f"The edits of a matrix are of rank {rank}, and an adapter is of {RANK_MAX} at "
                "most: save --as transformers."
            )
        tensors = {
            f"{PREFIX}{path.removesuffix('.weight')}.lora_{side}.weight": matrix
            for path, (down, up) in updates.items()
            for side, matrix in (("A", _rows_to(down, rank)), ("B", _rows_to(up.T, rank).T))
        }
        save_file(
            {name: tensor.contiguous().cpu() for name, tensor in tensors.items()},
            folder / WEIGHTS,
            metadata={"format": "pt"},
        )
        config = _config(job, list(updates), rank)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        return {"architecture": type(job.edited.model).__name__, "rank": rank}

    def load(self, job: SaveJob, folder: Path) -> Any:
        """See `SavedForm.load`: loaded by peft, and merged where the matrices can be."""
        peft = _require_peft()
        base = job.load_base(job.dtype).to(job.edited.device)
        model = peft.PeftModel.from_pretrained(base, str(folder))
        if has_packed(base):
            return model.eval().get_base_model()
        return model.merge_and_unload(safe_merge=True).eval()


def _require_peft() -> Any:
    """Return the package peft. Raises CeditError if it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise CeditError(
            f"An adapter is loaded and asked by peft, which is not installed ({error}): pip "
            "install 'cedit[peft]', or save --as transformers."
        ) from error
    return peft


def reduced(parts: Sequence[Factors]) -> tuple[Tensor, Tensor]:
    """Return A [r, inputs] and B [outputs, r], float32, with (B·A)ᵀ the sum of these products; r is
    its rank in float64."""
    left = torch.cat([part.left.double() for part in parts], 1)
    right = torch.cat([part.right.double() for part in parts])
    inputs, core_left = torch.linalg.qr(left)
    outputs, core_right = torch.linalg.qr(right.T)
    u, sizes, v = torch.linalg.svd(core_left @ core_right.T, full_matrices=False)
    least = sizes.max() * max(len(left), right.shape[1]) * torch.finfo(torch.float64).eps
    rank = int((sizes > least).sum())
    roots = sizes[:rank].sqrt()
    down = (inputs @ (u[:, :rank] * roots)).T
    up = outputs @ (v[:rank].T * roots)
    return down.float(), up.float()


def _rows_to(matrix: Tensor, rank: int) -> Tensor:
    """Return a matrix [r, n] with rows of zeros up to `rank`."""
    return torch.cat([matrix, matrix.new_zeros(rank - len(matrix), matrix.shape[1])])


def _updates(job: SaveJob) -> dict[str, list[Factors]]:
    """Return the factors of each matrix, in the order of their edits. Raises CannotSave for a
    matrix that an adapter cannot have."""
    updates: dict[str, list[Factors]] = {}
    for part in job.parts:
        for path, factors in part.in_parameters(job.edited.anatomy).items():
            if factors is not None:
                updates.setdefault(path, []).append(factors)
    for path in updates:
        module = job.edited.model.get_submodule(path.removesuffix(".weight"))
        if not isinstance(module, nn.Linear | Conv1D):
            raise CannotSave(
                f"{path} is the weight of a {type(module).__name__}, and this adapter is of linear "
                "layers alone: save --as transformers."
            )
    return updates


def _config(job: SaveJob, paths: Sequence[str], rank: int) -> dict[str, Any]:
    """Return peft's config. Raises CannotSave for matrices that are stored in two ways."""
    modules = [path.removesuffix(".weight") for path in paths]
    are_turned = {isinstance(job.edited.model.get_submodule(m), Conv1D) for m in modules}
    if len(are_turned) > 1:
        raise CannotSave(
            "Edited matrices are stored in two ways (Linear and Conv1D), and an adapter names one: "
            "save --as transformers."
        )
    return {
        "peft_type": "LORA",
        "task_type": TASK_TYPES.get(job.opened.task.name),
        "base_model_name_or_path": str(job.base_directory),
        "r": rank,
        "lora_alpha": rank,
        "target_modules": modules,
        "fan_in_fan_out": are_turned == {True},
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
