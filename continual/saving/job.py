"""A request to save: which revision, in which form, and the model as it stands there.

Knows the patches of a revision and the edits that may stay behind. Leaves the forms to their own
modules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from continual.effects import BESIDE, FACTORS
from continual.embedded import embedded
from continual.errors import CeditError
from continual.loading import load_pretrained
from continual.model import EditedModel
from continual.model_files import model_directory
from continual.open_store import OpenStore
from continual.patches import Patch
from continual.recheck.run_state import RunState
from store import Revision

DENSE = "dense"
KINDS: Mapping[str, str] = {**BESIDE, DENSE: "parameters changed as a whole (fine-tuning)"}
"""The kinds of edits that `--without` names, each in words."""


class CannotSave(CeditError):
    """Edits that a form cannot say, and that nobody said to leave behind."""


@dataclass(frozen=True)
class SaveSettings:
    """The choices of a person for a saved model."""

    form: str = "transformers"
    without: frozenset[str] = frozenset()  # of KINDS
    dtype: str | None = None  # the saved number format; None: the one of the base's files
    force: bool = False  # replace a folder that is not ours


@dataclass(frozen=True)
class LeftOut:
    """Edits of one kind that do not go along."""

    pieces: int  # neurons, rows, records, or patches
    owners: tuple[str, ...]  # the corrections that they are for, as far as known
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return its facts by name."""
        return {"pieces": self.pieces, "corrections": list(self.owners), "reason": self.reason}


@dataclass(frozen=True)
class SaveJob:
    """A revision to save; the model stands at it."""

    opened: OpenStore
    revision: Revision
    parts: Sequence[Patch]  # of the revision, in the order of their edits
    run: RunState  # at the revision
    settings: SaveSettings
    dtype: torch.dtype

    @property
    def edited(self) -> EditedModel:
        """The model."""
        return self.opened.edited

    @staticmethod
    def directory_of(opened: OpenStore) -> Path:
        """Return the folder of a store's base model."""
        return model_directory(opened.store.settings["model"]["path"])

    @property
    def base_directory(self) -> Path:
        """The folder of the base model."""
        return self.directory_of(self.opened)

    @property
    def base_name(self) -> str:
        """The name of the base model for people."""
        path = str(self.opened.store.settings["model"]["path"])
        return path if embedded(path) else self.base_directory.name

    def load_base(self, dtype: torch.dtype) -> Any:
        """Load the base model anew."""
        architecture = self.opened.task.architecture
        return load_pretrained(self.base_directory, architecture, dtype).model

    def left_out(self, staying: Mapping[str, str]) -> dict[str, LeftOut]:
        """Return the edits of these kinds, each kind with its reason, and of the kinds that a
        person names. Raises CannotSave for a kind that nobody names."""
        counts = self._counts()
        kinds = {k: staying.get(k, "left out by --without") for k in counts}
        left = {
            kind: LeftOut(counts[kind], self._owners(kind), reason)
            for kind, reason in kinds.items()
            if kind in staying or kind in self.settings.without
        }
        unnamed = left.keys() - self.settings.without
        if unnamed:
            raise CannotSave(_refusal(self.settings.form, left, unnamed))
        return left

    def _counts(self) -> Mapping[str, int]:
        dense = sum(_is_dense(part, self.edited) for part in self.parts)
        return Counter({**self.edited.beside, **({DENSE: dense} if dense else {})})

    def _owners(self, kind: str) -> tuple[str, ...]:
        """Return the corrections in force that own pieces of a kind."""
        requests = self.run.retention.requests
        owners: dict[str, None] = {}
        for part in self.parts:
            if kind == DENSE:
                of_part: Collection[str] = part.owners if _is_dense(part, self.edited) else ()
            elif kind == FACTORS:
                of_part = part.owners if _is_kept_beside(part, self.edited) else ()
            else:
                of_part = part.beside().get(kind, ())
            owners |= dict.fromkeys(of_part)
        return tuple(o for o in owners if o in requests and requests[o].applied)


class SavedForm(Protocol):
    """A form in which a model is saved. One module for each."""

    name: str
    library: str  # the one that loads it
    relation: str  # to the base, as model cards name it
    kinds: Collection[str]  # of KINDS: the edits that can be left out
    sees: bool  # models that see are saved in it, too

    def staying(self, job: SaveJob) -> Mapping[str, str]:
        """Return the kinds of edits that cannot go along, each with the reason."""

    def write(self, job: SaveJob, folder: Path) -> Mapping[str, Any]:
        """Write the model's files to an empty folder; return facts about them. Raises CannotSave,
        ModelError."""

    def load(self, job: SaveJob, folder: Path) -> Any:
        """Load the model from the folder by its library alone, as a plain transformers model.
        Raises ModelError."""


def _is_dense(part: Patch, edited: EditedModel) -> bool:
    return None in part.in_parameters(edited.anatomy).values()


def _is_kept_beside(part: Patch, edited: EditedModel) -> bool:
    """Tell whether a patch has factors beside a matrix that nothing is written into."""
    return any(map(edited.is_beside, part.in_parameters(edited.anatomy)))


def _refusal(form: str, left: Mapping[str, LeftOut], unnamed: Collection[str]) -> str:
    """Return the message for kinds that nobody said to leave behind."""
    lines = [
        f"{entry.pieces} {KINDS[kind]}"
        + (f" [corrections: {len(entry.owners)}]" if entry.owners else "")
        + f" ({entry.reason})"
        for kind, entry in left.items()
        if kind in unnamed
    ]
    options = " ".join(f"--without {kind}" for kind in left if kind in unnamed)
    other = "; or --as transformers, which can say more" if form == "peft" else ""
    return (
        f"Not everything goes along as {form}: {'; '.join(lines)}. Leave these behind with "
        f"{options}, and the command says which corrections are lost{other}. `cedit save --forms` "
        "lists what each architecture can say."
    )
