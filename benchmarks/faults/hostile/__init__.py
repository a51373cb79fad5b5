"""Hostile input: streams, patches, archives and names. A traceback is a failure, as is a hang."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.faults.findings import Finding
from benchmarks.faults.hostile.archives import of_archives
from benchmarks.faults.hostile.names import of_names, of_typed_names
from benchmarks.faults.hostile.patches import of_patches, of_worn_patches
from benchmarks.faults.hostile.streams import of_applied_streams, of_streams


def find(is_short: bool) -> Iterator[Finding]:
    """Yield a finding for each row of the table."""
    streams = Finding("hostile streams, read")
    of_streams(streams, 200 if is_short else 10_000)
    yield streams
    applied = Finding("hostile streams, `cedit apply`")
    of_applied_streams(applied, is_short)
    yield applied
    patches = Finding("hostile files in the place of patches")
    of_patches(patches, 100 if is_short else 3000)
    yield patches
    archives = Finding("hostile archives")
    of_archives(archives, 60 if is_short else 2000)
    yield archives
    worn = Finding("patches that no model can wear, at the command line")
    of_worn_patches(worn, is_short)
    yield worn
    names = Finding("hostile names of revisions, tags, streams, stores")
    of_names(names)
    yield names
    typed = Finding("hostile names, at the command line")
    of_typed_names(typed, is_short)
    yield typed
