"""`cedit save`: saves the edited model for transformers or peft."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import common, find_store, require_revision, revision_names
from cli.output import Output, columns, counted, short, size

if TYPE_CHECKING:
    from continual.saving import Saved

FORMS = ("transformers", "peft")
PARTLY = 3
NAMED_MAX = 5  # corrections in a warning


@click.command("save")
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option(
    "--as", "form", type=click.Choice(FORMS), default=FORMS[0], help="The form (transformers)."
)
@click.option("--at", default="head", help="A revision.", shell_complete=revision_names)
@click.option(
    "--without",
    metavar="KIND",
    multiple=True,
    help=(
        "Edits that stay behind: neurons, subjects, contexts, gates, codebook, lookup, memory, "
        "dense."
    ),
)
@click.option("--dtype", metavar="FORMAT", help="Number format (default: the base's).")
@click.option("--force", is_flag=True, help="Replace a folder with other files.")
@click.option("--forms", is_flag=True, help="Print which architecture can say which edits.")
@common
def command(
    out: Output,
    store: str | None,
    directory: Path | None,
    form: str,
    at: str,
    without: tuple[str, ...],
    dtype: str | None,
    force: bool,
    forms: bool,
) -> int:
    """Save the edited model to the folder DIRECTORY, for transformers or peft to load.

    As transformers: a model directory with all edits in its weights. Edits of matrices are merged;
    neurons become units of a wider FFN, where the architecture has biases for them (--forms). As
    peft: a LoRA adapter of all low-rank edits, which needs pip install 'cedit[peft]'.

    Before the command is done, transformers or peft loads the folder by itself, and every probe of
    the history is asked again. The folder appears whole or not at all. A README.md (a model card)
    and a cedit.json say what it is: base, revision, fingerprints, corrections, metrics, and what
    did not go along.

    Edits that the form cannot say are named, and nothing is written unless --without names their
    KIND; several are separated by commas. An existing folder is replaced if cedit save wrote all
    of it; any other one only with --force. Exit code 3: a correction that goes along is not
    answered rightly by the saved model, as can happen in half precision; --dtype float32 helps.

    With --json: {"type":"saved","directory","form","revision","seq","fingerprint","dtype",
    "architecture","widening","rank","corrections","probes","lost","unexpected","left_out",
    "files","bytes","seconds"}; with --forms a line for each architecture,
    {"type":"architecture","model_type","title","neurons","note"}.

    \b
    Example:
      cedit save corrected
      cedit save corrected --at head~10 --without memory
      cedit save adapter --as peft
      cedit save --forms
    """
    if forms:
        _show_forms(out)
        return 0
    if directory is None:
        raise click.UsageError("Name a folder, or ask for the table of architectures (--forms).")
    path = find_store(store)
    require_revision(path, at)
    from cli.watching import listening
    from continual.saving import SaveSettings, save
    from continual.session import open_session

    kinds = frozenset(kind for names in without for kind in names.split(",") if kind)
    settings = SaveSettings(form, kinds, dtype, force)
    with (
        open_session(path, writable=False, at=at) as session,
        listening(out) as session.listener,
    ):
        saved = save(session, directory, settings)
    out.result(_record(saved), *_lines(saved))
    out.warn(_warnings(saved))
    return PARTLY if saved.unexpected else 0


def _record(saved: Saved) -> dict[str, Any]:
    names = ("form", "revision", "seq", "fingerprint", "dtype", "architecture")
    return {
        "type": "saved",
        "directory": str(saved.directory),
        **{name: saved.facts[name] for name in names},
        "widening": saved.facts.get("widening"),
        "rank": saved.facts.get("rank"),
        "corrections": len(saved.facts["corrections"]),
        "probes": saved.facts["probes"],
        "lost": saved.facts["lost"],
        "unexpected": list(saved.unexpected),
        "left_out": saved.facts["left_out"],
        "files": dict(saved.files),
        "bytes": saved.length,
        "seconds": round(saved.seconds, 3),
    }


def _lines(saved: Saved) -> Iterator[Any]:
    facts = saved.facts
    corrections = counted(len(facts["corrections"]), "correction")
    yield (
        f"{saved.directory}: {facts['architecture']} in {facts['dtype']}, {corrections}, "
        f"{size(saved.length)} in {saved.seconds:.0f} s"
    )
    yield f"revision {short(facts['revision'])} (@{facts['seq']})"
    if widening := facts.get("widening"):
        yield (
            f"{counted(widening['neurons'], 'neuron')} in FFNs of {widening['width']} units "
            f"(before: {widening['before']})"
        )
    if rank := facts.get("rank"):
        yield f"rank {rank}"
    if facts["probes"]:
        yield f"every probe asked again, by {facts['form']} alone:"
        yield _table(facts["probes"])


def _table(probes: Mapping[str, Mapping[str, int]]) -> Any:
    names = ("", "probes", "right in cedit", "right in it", "turned")
    rows = [(role, *counts.values()) for role, counts in probes.items()]
    return columns(names, rows, right="probes turned")


def _warnings(saved: Saved) -> Iterator[str]:
    from continual.saving import KINDS

    for kind, entry in saved.facts["left_out"].items():
        yield f"left behind: {entry['pieces']} {KINDS[kind]}"
    by_id = {c["id"]: c for c in saved.facts["corrections"]}
    lost = [by_id[identity] for identity in saved.facts["lost"] if identity in by_id]
    if lost:
        named = "; ".join(f"{c['prompt']} → {c['target_new']}" for c in lost[:NAMED_MAX])
        more = f"; and {len(lost) - NAMED_MAX} more" if len(lost) > NAMED_MAX else ""
        yield f"{counted(len(lost), 'correction')} lost: {named}{more}"
    if saved.unexpected:
        yield (
            f"{counted(len(saved.unexpected), 'correction')} of which nothing was left behind "
            f"turned wrong, saved in {saved.facts['dtype']}: another number format may keep them "
            "(--dtype float32), or the edits that they were made beside"
        )


def _show_forms(out: Output) -> None:
    from continual.saving.architectures import ARCHITECTURES, HEADER, table_rows

    for model_type, architecture in ARCHITECTURES.items():
        out.record(
            {
                "type": "architecture",
                "model_type": model_type,
                "title": architecture.title,
                "neurons": architecture.wider is not None,
                "note": architecture.note,
            }
        )
    out.text(columns(HEADER, table_rows()))
