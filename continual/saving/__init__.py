"""Saves the edited model for other tools, which load it without cedit.

``save`` writes a folder in one of ``FORMS``, loads it by that form's own library, asks it every
probe of the ledger again, and only then puts the folder at its place. One module for each form.

``architectures``  which models can say neurons, in a table
``widening``  ``rounding``  an FFN with more units; their keys in half precision
``llama``  two architectures written as a third
``merged``  a plain model of an edited one
``job``  what is saved, and what stays behind
``transformers_form``  ``peft_form``  the forms
``proof``  the probes, asked again
``card``  ``folders``  what a folder says about itself; the folder, whole or not at all
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from continual.base import number_format
from continual.history.corrections import in_force
from continual.history.inspection import rates_at
from continual.model_files import weights_format
from continual.open_store import OpenStore
from continual.pictures.album import album_of
from continual.recheck.run_state import Past, RunState
from continual.saving.card import card_text, manifest_text
from continual.saving.folders import FILES, MANIFEST, files_in, placed_whole, require_replaceable
from continual.saving.job import KINDS, CannotSave, LeftOut, SavedForm, SaveJob, SaveSettings
from continual.saving.peft_form import PeftForm
from continual.saving.proof import Proof, prove
from continual.saving.transformers_form import TransformersForm
from continual.tasks.sight import lend_sight
from store import Revision

__all__ = ["FORMS", "KINDS", "CannotSave", "SaveSettings", "Saved", "save"]

FORMS: Mapping[str, SavedForm] = {form.name: form for form in (TransformersForm(), PeftForm())}
MANIFEST_VERSION = 1


@dataclass(frozen=True)
class Saved:
    """A saved model: its folder, and the facts about it that `cedit.json` has."""

    directory: Path
    facts: Mapping[str, Any]
    files: Mapping[str, int]  # by name, each with its length in bytes
    seconds: float
    unexpected: tuple[str, ...]
    """The ids of corrections that the saved model does not answer rightly although nothing of
    theirs was left out."""

    @property
    def length(self) -> int:
        """The bytes of all files."""
        return sum(self.files.values())


def save(
    opened: OpenStore, directory: Path | str, settings: SaveSettings, at: str | None = None
) -> Saved:
    """Save the model of a store at a revision (the one that it stands at unless named), in a form
    that other tools load.

    Raises CannotSave for edits that the form cannot say and that nobody left out, NotOurs for a
    folder with files that cedit did not write, UnknownRevision, ModelError, StoreError.
    """
    started, target = time.perf_counter(), Path(directory)
    form = _form(settings)
    if album_of(opened.task) is not None and not form.sees:
        raise CannotSave(
            f"A model that sees is not saved as {form.name}: save it --as transformers, which "
            "takes edits of weights along; or `cedit export` the history, as one file."
        )
    path = opened.store.settings["model"]["path"]
    spared = (opened.store.path, Path(path))
    require_replaceable(target.expanduser().resolve(), force=settings.force, spared=spared)
    with _standing(opened, at) as revision:
        job = _job(opened, revision, settings)
        left_out = job.left_out(form.staying(job))
        with placed_whole(target, force=settings.force, spared=spared) as folder:
            opened.listener.note(f"Writing {target}")
            facts = form.write(job, folder)
            model = form.load(job, folder)
            lend_sight(opened.task, model)
            proof = prove(opened.site, job.run.ledger, model, opened.listener)
            record = _record(job, form, facts, left_out, proof)
            (folder / "README.md").write_text(card_text(record), encoding="utf-8")
            record[FILES] = [*files_in(folder), MANIFEST]
            (folder / MANIFEST).write_text(manifest_text(record), encoding="utf-8")
            files = files_in(folder)
    expected = {owner for entry in left_out.values() for owner in entry.owners}
    unexpected = tuple(owner for owner in proof.lost if owner not in expected)
    return Saved(target, record, files, time.perf_counter() - started, unexpected)


def _form(settings: SaveSettings) -> SavedForm:
    """Return the form of the settings. Raises CannotSave for an unknown form or kind."""
    if settings.form not in FORMS:
        raise CannotSave(f"There is no form {settings.form!r}: choose {' or '.join(FORMS)}.")
    form = FORMS[settings.form]
    if unknown := sorted(settings.without - {*form.kinds}):
        raise CannotSave(
            f"As {form.name}, {', '.join(unknown)} cannot be left out: --without takes "
            f"{', '.join(form.kinds)}."
        )
    return form


@contextmanager
def _standing(opened: OpenStore, at: str | None) -> Iterator[Revision]:
    """Stand at a revision within `with`, and then where the model was."""
    before = opened.states.at or "head"
    revision = opened.store.revision(at or before)
    if revision.id == before:
        yield revision
        return
    try:
        yield opened.stand_at(revision)
    finally:
        opened.stand_at(before)
        opened.forget_run_state()


def _job(opened: OpenStore, revision: Revision, settings: SaveSettings) -> SaveJob:
    dtype = _number_format(opened, settings)
    layers = opened.store.layers(revision)
    parts = [part for layer in layers for part in opened.patches(layer.patch)]
    opened.listener.note("Reading every probe at this revision")
    run = RunState(opened.store, opened.site, Past(revision))
    return SaveJob(opened, revision, parts, run, settings, dtype)


def _number_format(opened: OpenStore, settings: SaveSettings) -> torch.dtype:
    """Return the saved number format: the one of the settings, or of the base's files. Raises
    ModelError for a name that is none."""
    if settings.dtype is not None:
        return number_format(settings.dtype)
    name = weights_format(SaveJob.directory_of(opened))
    return opened.site.dtype if name is None else number_format(name)


def _record(
    job: SaveJob,
    form: SavedForm,
    facts: Mapping[str, Any],
    left_out: Mapping[str, LeftOut],
    proof: Proof,
) -> dict[str, Any]:
    """Return the facts about a saved model, as `cedit.json` has them."""
    store, revision = job.opened.store, job.revision
    return {
        "cedit": version("cedit"),
        "version": MANIFEST_VERSION,
        "form": form.name,
        "relation": form.relation,
        "base": {"name": job.base_name, "fingerprint": store.base.fingerprint},
        "task": job.opened.task.name,
        "revision": revision.id,
        "seq": revision.seq,
        "fingerprint": revision.fingerprint,
        "dtype": str(job.dtype).removeprefix("torch."),
        **facts,
        "left_out": {kind: entry.to_json() for kind, entry in left_out.items()},
        "lost": proof.lost,
        "metrics": rates_at(store, revision),
        "probes": {role: counts.to_json() for role, counts in proof.roles.items()},
        "turned": {k: o for k, o in proof.saved.items() if proof.history[k] != o},
        "corrections": [
            {**_shown(c), "right": proof.is_right(c["id"])}
            for c in in_force(store, revision)
            if c["in_force"]
        ],
    }


def _shown(correction: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a correction that are about the fact and its edit."""
    names = ("id", "prompt", "target_new", "subject", "relation", "case", "editor", "seq")
    return {name: correction[name] for name in names if name in correction}
