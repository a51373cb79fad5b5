"""Hostile archives: refused whole, or the history that was exported."""

from __future__ import annotations

import copy
import gzip
import io
import random
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.failing_disk import full_store
from benchmarks.faults.findings import Finding
from benchmarks.faults.hostile.mutation import in_chunks, mutate
from benchmarks.faults.kills import scratch
from store import Store, StoreError, archive, canonical
from store.check import verify


def hostile_archives(good: bytes, count: int, draw: random.Random) -> Iterator[tuple[str, bytes]]:
    """Yield files to put in the place of an exported history."""
    members = _members(good)
    yield "sound", good
    yield "empty", b""
    yield "no tar", random.Random(1).randbytes(5000)
    yield "gzipped", gzip.compress(good)
    yield "cut off", good[: len(good) // 2]
    yield "zeros", bytes(20_480)
    for name in (
        "../x",
        "/tmp/cedit-escaped",
        "a/../../x",
        "patches/../../x",
        "lock",
        "\u202e",
        "x" * 300,
    ):
        yield f"a member called {name!r:.30}", _tar([*members, (tarfile.TarInfo(name), b"x")])
    for kind, what in (
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.DIRTYPE, "a folder"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
    ):
        for number in (0, 1, len(members) - 1):
            changed = list(members)
            info = tarfile.TarInfo(members[number][0].name)
            info.type, info.linkname = kind, "/etc/passwd"
            changed[number] = (info, b"")
            yield f"{what} for {info.name[:30]}", _tar(changed)
    for number, (info, data) in enumerate(members):
        rest = members[:number] + members[number + 1 :]
        yield f"without {info.name[:30]}", _tar(rest)
        yield f"{info.name[:30]} twice", _tar([*members, (info, data)])
        yield f"{info.name[:30]} last", _tar([*rest, (info, data)])
        yield f"{info.name[:30]} emptied", _tar([*rest[:number], (info, b""), *rest[number:]])
    claim = tarfile.TarInfo("manifest.json")
    claim.size = 1 << 50
    yield "a huge manifest, claimed", claim.tobuf() + b"{}"
    for what, manifest in {
        "no JSON": b"{",
        "a list": b"[]",
        "no members": b"{}",
        "deep": b"[" * 200_000,
        "another format": _changed_manifest(members, archive=99),
        "no format": _changed_manifest(members, archive=None),
        "members that are no list": _changed_manifest(members, members=1),
        "a member that is no object": _changed_manifest(members, members=[1]),
        "text for a length": _changed_manifest(
            members, members=[{"name": "cedit.toml", "length": "1", "sha256": "0" * 64}]
        ),
        "a bomb": _changed_manifest(
            members, members=[{"name": "cedit.toml", "length": 1 << 60, "sha256": "0" * 64}]
        ),
    }.items():
        yield f"manifest: {what}", _tar([(members[0][0], manifest), *members[1:]])
    for number in range(count):
        data = bytearray(good)
        for _ in range(draw.choice((1, 2, 8))):
            if draw.random() < 0.5:
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            else:
                mutate(data, draw)
        yield f"mutation {number}", bytes(data)


def _members(data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    found = []
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        for info in opened:
            file = opened.extractfile(info)
            assert file is not None
            found.append((info, file.read()))
    return found


def _tar(members: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as opened:
        for info, data in members:
            own = copy.copy(info)
            own.size = len(data)
            opened.addfile(own, io.BytesIO(data))
    return out.getvalue()


def _changed_manifest(given: Sequence[tuple[tarfile.TarInfo, bytes]], **changes: Any) -> bytes:
    return canonical.dumps({**canonical.loads(given[0][1]), **changes})


def read_archive(folder: Path, truth: str, data: bytes) -> list[str]:
    """Return the faults of restoring an archive: it is refused whole, or gives the history."""
    cage = folder / "cage"
    shutil.rmtree(cage, ignore_errors=True)
    (cage / "in").mkdir(parents=True)
    file, path = cage / "in" / "archive", cage / "in" / "store"
    file.write_bytes(data)
    problems = []
    try:
        archive.restore(file, path)
        with Store.open(path) as store:
            found = [str(problem) for problem in verify(store) if not problem.harmless]
            problems += found + ([] if store.head_id == truth else ["another history"])
    except StoreError:
        if path.exists():
            problems.append("refused, and a store is left")
    except Exception as error:
        problems.append(repr(error))
    strays = {one.name for one in cage.rglob("*") if not one.is_relative_to(path)} - {
        "in",
        "archive",
    }
    if Path("/tmp/cedit-escaped").exists():
        strays.add("/tmp/cedit-escaped")
    return problems + [f"it left {stray}" for stray in sorted(strays)]


def of_archives(finding: Finding, mutations: int) -> None:
    """Restore hostile archives."""
    with scratch() as folder:
        path, _ = full_store(folder)
        with Store.open(path) as store:
            archive.export(store, folder / "archive")
            truth = store.head_id
        assert archive.restore(folder / "archive", folder / "restored").head == truth
        good = (folder / "archive").read_bytes()
        cases = list(hostile_archives(good, mutations, random.Random(0)))
        in_chunks(finding, cases, partial(read_archive, folder, truth))
