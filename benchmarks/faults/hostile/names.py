"""Hostile names of revisions, tags, streams and stores."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.faults import commands, workload
from benchmarks.faults.findings import Finding
from benchmarks.faults.hostile.mutation import in_chunks
from benchmarks.faults.kills import scratch
from benchmarks.faults.workload import copied
from store import Draft, Store, StoreError
from store.check import verify

NAMES = (
    "",
    " ",
    "~",
    "~1",
    "head~",
    "head~~~~",
    "head~99999999999999999999",
    "head~-1",
    "head^",
    "@",
    "@-1",
    "@99999999999999999999999",
    "@1e9",
    "@٣",
    "..",
    "...",
    "head..",
    "../../etc/passwd",
    "/etc/passwd",
    "refs/head",
    "tag/v1",
    "a" * 10_000,
    "0" * 64,
    "0" * 65,
    "ffff",
    "FFFF",
    "-",
    "--",
    "-x",
    "--help",
    "HEAD",
    "Base",
    "a b",
    "a\nb",
    "a\tb",
    "\x1b[31mred",
    "é",
    "\u202egnp",
    "💥" * 50,
    "\udcff",
    "%s%n",
    "{0}",
    "'; DROP TABLE",
    "con",
    "*",
    "?",
    "[a-z]",
    "[bold]x[/bold]",
    "[/]",
    "a.lock",
    ".a",
    "a.",
)


def use_name(path: Path, name: str) -> list[str]:
    """Return the faults of a store that is given a name for a revision, a tag and other things."""
    with Store.open(path, writable=True) as store:
        uses: tuple[Callable[[], object], ...] = (
            lambda: store.revision(name),
            lambda: store.lineage(name),
            lambda: store.tag(name, "head"),
            lambda: store.request(name),
            lambda: store.requests_about(name),
            lambda: store.stream(name),
            lambda: store.cached(name),
            lambda: store.put_cached(name, {"a": torch.ones(1)}, {}),
            lambda: store.commit(
                Draft("edit", store.head_id, "f", {}, streams={name: {"position": 1}})
            ),
        )
        problems = [repr(error) for use in uses if (error := _crash(use))]
        strays = [p.relative_to(path) for p in path.rglob("*") if "passwd" in p.name]
        return problems + [f"it made {stray}" for stray in strays]


def use_place(folder: Path, name: str) -> list[str]:
    """Return the faults of taking a name as a store's folder."""
    uses: tuple[Callable[[], object], ...] = (
        lambda: Store.open(folder / name.lstrip("/")),
        lambda: Store.find(folder, name),
        lambda: workload.make(folder / "new" / name.lstrip("/.")),
    )
    return [repr(error) for use in uses if (error := _crash(use))]


def _crash(use: Callable[[], object]) -> Exception | None:
    """Return the error that a use ended with, unless the store raises it on purpose."""
    try:
        use()
    except StoreError:
        return None
    except Exception as error:
        return error
    return None


def of_names(finding: Finding) -> None:
    """Use hostile names everywhere in the store."""
    with scratch() as folder:
        path = folder / "store"
        workload.make(path)
        named = [(f"{name!r:.40}", name) for name in (*NAMES, "a\0b")]
        in_chunks(finding, named, partial(use_name, path))
        in_chunks(finding, named, partial(use_place, folder))
        with Store.open(path) as store:
            found = [str(problem) for problem in verify(store) if not problem.harmless]
        finding.count("afterwards", found)


def of_typed_names(finding: Finding, is_short: bool) -> None:
    """Type hostile names at the command line."""
    with scratch() as folder:
        path = str(copied(commands.new_store(), folder / "store"))
        for name in NAMES[:: 25 if is_short else 1]:
            for words in (
                ("show", "--store", path, "--", name),
                ("log", "--store", path, "--", name),
                ("diff", "--store", path, "--", name, "head"),
                ("tag", "--store", path, "--", name, "head"),
                ("rollback", "--store", path, "--", name),
                ("status", "--store", str(folder / "stores") + "/" + name),
            )[:: 3 if is_short else 1]:
                done = commands.run(*words)
                finding.count(f"{words[0]} {name!r:.40}", done.problems)
