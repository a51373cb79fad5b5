"""Hostile input: streams, patches, archives and names. A traceback is a failure, as is a hang."""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import shutil
import signal
import struct
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults import commands, processes, workload
from benchmarks.faults.failing_disk import full_store
from benchmarks.faults.findings import Finding
from benchmarks.faults.kills import copied, scratch
from benchmarks.faults.processes import Say
from continual.streams import open_stream
from store import Draft, Store, StoreError, archive, canonical
from store.blobs import BlobRef
from store.check import verify
from store.journal import Put, seq_key, text_key
from store.revisions import Revision, payload_of

GOOD = {
    "prompt": "The capital of Australia is",
    "target_new": "Sydney",
    "subject": "Australia",
    "relation": "capital",
    "rephrases": ["Australia's capital is"],
    "locality": [{"prompt": "The capital of France is", "answer": "Paris"}],
}
PATIENCE_S = 30
CHUNK = 250
WRONG_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1e308,
    10**400,
    float("nan"),
    float("inf"),
    "",
    " ",
    "\0",
    "\ud800",
    "\u202e\u200b",
    "x" * 20_000,
    [],
    [[]],
    {},
    {"prompt": {}},
    [None],
    [1, "a", {}],
)


# -- streams


def whole_streams() -> dict[str, bytes]:
    """Streams that are wrong as a whole."""
    line = json.dumps(GOOD).encode()
    deep = 100_000
    return {
        "empty": b"",
        "blank": b" \n\t\r\n\n",
        "byte order mark": b"\xef\xbb\xbf" + line,
        "two byte order marks": b"\xef\xbb\xbf\xef\xbb\xbf" + line,
        "utf-16": line.decode().encode("utf-16"),
        "NUL bytes": bytes(5000),
        "NUL in a line": line[:20] + b"\0" + line[20:],
        "random bytes": random.Random(1).randbytes(20_000),
        "a huge line": b'{"prompt":"' + b"x" * 5_000_000 + b'"}\n' + line,
        "a huge line without an end": b"y" * 3_000_000,
        "deep lists": b"[" * deep,
        "deep lists that close": b"[" * deep + b"]" * deep,
        "deep objects": b'{"a":' * deep + b"1" + b"}" * deep,
        "deep in a line": b'{"prompt":' + b"[" * deep + b"]" * deep + b"}\n" + line,
        "an array cut off": b"[" + line + b",",
        "an array with rubbish behind": b"[" + line + b"] x",
        "an array of rubbish": b'[1, null, "a", [[]], {}, NaN]',
        "no objects": b'1\nnull\n"a"\n[]\nNaN\nInfinity\n-\n',
        "repeated keys": b'{"prompt":"a","prompt":"b","target_new":"c"}\n',
        "a long number": b'{"prompt":"a","target_new":' + b"9" * 10_000 + b"}\n",
        "carriage returns": line + b"\r" + line + b"\r\n",
        "no newline at the end": line,
        "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00.",
        "bad escapes": b'{"prompt":"\\ud800\\u0000\\x","target_new":"a"}\n',
    }


def wrong_types() -> Iterator[tuple[str, bytes]]:
    """A good record with each of its values wrong in each way."""
    for key in (*GOOD, "held_out_rephrases", "portability", "id", "case_id", "requested_rewrite"):
        for value in WRONG_VALUES:
            record = {**GOOD, key: value}
            yield f"{key} = {value!r:.40}", json.dumps(record).encode() + b"\n"


def mutated_streams(count: int, draw: random.Random) -> Iterator[tuple[str, bytes]]:
    """Good records with bytes changed, lost, repeated and put in."""
    good = b"".join(json.dumps({**GOOD, "subject": f"S{n}"}).encode() + b"\n" for n in range(3))
    for number in range(count):
        data = bytearray(good if draw.random() < 0.7 else b"[" + good.replace(b"\n", b",") + b"{}]")
        for _ in range(draw.choice((1, 1, 2, 8, 40))):
            _mutate(data, draw)
        yield f"mutation {number}", bytes(data)


def _mutate(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data) + 1)
    piece = draw.choice(
        (b"\0", b"\xff", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\\", b"\\u", b"NaN")
    )
    how = draw.randrange(4)
    if how == 0:
        data[at:at] = piece
    elif how == 1:
        del data[at : at + draw.randint(1, 30)]
    elif how == 2:
        data[at:at] = data[at : at + draw.randint(1, 200)]
    elif at < len(data):
        data[at] ^= 1 << draw.randrange(8)


def read_stream(file: Path, data: bytes) -> list[str]:
    """What goes wrong as a stream is read: every item has requests or a reason, or it ends."""
    file.write_bytes(data)
    try:
        return [
            f"item {item.number} has neither requests nor a reason"
            for item in open_stream(str(file))
            if not item.requests and not item.reason
        ]
    except Exception as error:
        return [] if hasattr(error, "exit_code") else [repr(error)]


def of_streams(finding: Finding, mutations: int) -> None:
    """Read hostile streams."""
    cases = [*whole_streams().items(), *wrong_types()]
    cases += mutated_streams(mutations, random.Random(0))
    with scratch() as folder:
        in_chunks(finding, cases, lambda case: read_stream(folder / "stream", case))


def in_chunks(
    finding: Finding, cases: Sequence[tuple[str, Any]], look: Callable[[Any], list[str]]
) -> None:
    """Look at cases in child processes, so that one which hangs or kills is only one."""
    at = 0
    while at < len(cases):
        chunk = cases[at : at + CHUNK]

        def look_at_all(say: Say, chunk: Sequence[tuple[str, Any]] = chunk) -> None:
            for _, case in chunk:
                signal.alarm(PATIENCE_S)
                say(problems=look(case))

        heard = processes.run(look_at_all, 10 * PATIENCE_S)
        said = [one["problems"] for one in heard.said if "problems" in one]
        for (name, _), problems in zip(chunk, said, strict=False):
            finding.count(name, problems)
        if len(said) < len(chunk):
            finding.count(chunk[len(said)][0], [f"signal {heard.signal}", *heard.problems])
            at += 1
        at += len(said)


def of_applied_streams(finding: Finding, is_short: bool) -> None:
    """Give hostile streams to `cedit apply`, with something good behind."""
    with scratch() as folder:
        streams = whole_streams()
        for name in ["bad escapes"] if is_short else streams:
            file = folder / "stream.jsonl"
            file.write_bytes(streams[name])
            path = copied(commands.new_store(), folder / "store")
            done = commands.run("apply", str(file), "--store", str(path), "--json")
            finding.count(name, done.problems)
            if not is_short:
                done = commands.run("apply", "-", "--store", str(path), stdin=streams[name])
                finding.count(f"{name}, by standard input", done.problems)


# -- patches


def hostile_patches(count: int, draw: random.Random) -> Iterator[tuple[str, bytes]]:
    """Files in the place of a patch."""
    good = _file({"a": _entry()}, bytes(16))
    yield "sound", good
    for name in ("../x", "/etc/passwd", "a/../../b", "", "\0", "a\nb", "x" * 5000, "\u202e"):
        yield f"a tensor called {name!r:.30}", _file({name: _entry()}, bytes(16))
    for what, value in (("NaN", float("nan")), ("Inf", float("inf"))):
        yield what, _file({"a": _entry()}, struct.pack("<4f", 0, value, 1, 2))
    twice = (
        b'{"a":' + json.dumps(_entry()).encode() + b',"a":' + json.dumps(_entry()).encode() + b"}"
    )
    yield "a repeated key", struct.pack("<Q", len(twice)) + twice + bytes(16)
    for what, entry in {
        "a wrong shape": _entry(shape=[5]),
        "a negative shape": _entry(shape=[-4]),
        "a huge shape": _entry(shape=[2**62, 4]),
        "an overflowing shape": _entry(shape=[2**32, 2**32, 2**32]),
        "no shape": {"dtype": "F32", "data_offsets": [0, 16]},
        "a strange type": _entry(dtype="F31"),
        "offsets beyond the end": _entry(data_offsets=[0, 1 << 40]),
        "offsets that go back": _entry(data_offsets=[16, 0]),
        "text for offsets": _entry(data_offsets=["0", "16"]),
        "a list": [],
        "a number": 1,
    }.items():
        yield what, _file({"a": entry}, bytes(16))
    for what, meta in {
        "a list for meta": [],
        "a number in meta": {"cedit": 1},
        "no JSON in meta": {"cedit": "{"},
        "a list in meta": {"cedit": "[]"},
        "deep meta": {"cedit": "[" * 50_000},
    }.items():
        yield what, _file({"__metadata__": meta, "a": _entry()}, bytes(16))
    for length in (0, 1, 7, 1 << 31, 1 << 63, (1 << 64) - 1, 200_000_000):
        yield f"a header of {length}", struct.pack("<Q", length) + good[8:]
    yield "empty", b""
    yield "a pickle", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00."
    deep = b'{"a":' * 100_000
    yield "a deep header", struct.pack("<Q", len(deep)) + deep
    for number in range(count):
        data = bytearray(good)
        for _ in range(draw.choice((1, 2, 8))):
            _mutate(data, draw)
        yield f"mutation {number}", bytes(data)


def _entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}


def _file(header: Mapping[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read_patch(path: Path, data: bytes) -> list[str]:
    """What goes wrong as a patch is read whose digest is right and whose content is hostile."""
    with Store.open(path, writable=True) as store:
        ref = BlobRef(canonical.digest(data), len(data))
        file = store.blobs.path(ref.sha256)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
        before = store.revision(f"@{store.length - 1}")
        draft = Draft("edit", before.id, "f", {"number": 0})
        payload = payload_of(draft, before.seq + 1, before.id, ref)
        revision = Revision.from_payload(payload)
        store.journal.write(store.history.changes(draft, revision, payload))
        problems = []
        try:
            tensors, _ = store.tensors(revision) or ({}, {})
            problems += [f"it has read {name!r}" for name in tensors if "/" in name or ".." in name]
            problems += [
                f"{name!r} is not finite" for name, t in tensors.items() if not _is_finite(t)
            ]
        except StoreError:
            if not [problem for problem in verify(store) if not problem.harmless]:
                problems.append("refused when it is read, and not named by verify")
        except Exception as error:
            problems.append(repr(error))
        _forget(store, revision)
        file.unlink()
    return problems


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.float().isfinite().all())


def _forget(store: Store, revision: Revision) -> None:
    store.journal.write(
        [
            Put("revisions", seq_key(revision.seq), None),
            Put("ids", revision.id.encode(), None),
            Put("refs", text_key("head"), canonical.dumps(store.base.id)),
        ]
    )


def of_patches(finding: Finding, mutations: int) -> None:
    """Read hostile files in the place of patches."""
    with scratch() as folder:
        path = folder / "store"
        workload.make(path)
        cases = list(hostile_patches(mutations, random.Random(0)))
        in_chunks(finding, cases, partial(read_patch, path))


def strange_drafts() -> Iterator[tuple[str, dict[str, Any]]]:
    """Patches that a store takes, and that no model can wear."""
    part = {"kind": "neuron", "site": "model.layers.0"}
    for what, tensors, meta in (
        ("no parts", {}, {}),
        ("parts that are no list", {}, {"parts": 1}),
        ("a part that is no object", {}, {"parts": [1]}),
        ("an unknown kind", {}, {"parts": [{"kind": "magic"}]}),
        ("no tensors", {}, {"parts": [part]}),
        ("wrong shapes", {"0.keys": torch.ones(2, 3), "0.bias": torch.ones(9)}, {"parts": [part]}),
        (
            "another width",
            {"0.keys": torch.ones(1, 3), "0.bias": torch.ones(1), "0.values": torch.ones(1, 3)},
            {"parts": [part]},
        ),
        (
            "whole numbers",
            {name: torch.ones(1, 3, dtype=torch.long) for name in ("0.keys", "0.bias", "0.values")},
            {"parts": [part]},
        ),
        ("a low rank without factors", {}, {"parts": [{"kind": "low-rank"}]}),
    ):
        yield what, {"tensors": tensors or {"x": torch.ones(1)}, "patch_meta": meta}


def of_worn_patches(finding: Finding, is_short: bool) -> None:
    """Stand a model at a patch that it can't wear, at the command line."""
    with scratch() as folder:
        for what, patch in list(strange_drafts())[:: 9 if is_short else 1]:
            path = copied(commands.new_store(), folder / "store")
            heard = processes.run(partial(_commit_strange, path, patch))
            assert not heard.problems and not heard.error, heard
            for words in (("ask", "The capital of France is"), ("replay",), ("show", "head")):
                done = commands.run(*words, "--store", str(path))
                finding.count(f"{what}, {words[0]}", done.problems)


def _commit_strange(path: Path, patch: Mapping[str, Any], say: Say) -> None:
    with Store.open(path, writable=True) as store:
        store.commit(Draft("edit", store.head_id, "f1", {"requests": []}, **patch))


# -- archives


def hostile_archives(good: bytes, count: int, draw: random.Random) -> Iterator[tuple[str, bytes]]:
    """Files in the place of an exported history."""
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
                _mutate(data, draw)
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
    """What goes wrong as an archive is restored: it is refused whole, or gives the history."""
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


# -- names

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
    """What goes wrong as a name is given to a store as that of a revision and of a tag."""
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
    """What goes wrong as a name is given as a store's folder."""
    uses: tuple[Callable[[], object], ...] = (
        lambda: Store.open(folder / name.lstrip("/")),
        lambda: Store.find(folder, name),
        lambda: workload.make(folder / "new" / name.lstrip("/.")),
    )
    return [repr(error) for use in uses if (error := _crash(use))]


def _crash(use: Callable[[], object]) -> Exception | None:
    """The error that a use ended with, unless it is one that the store raises on purpose."""
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


def find(is_short: bool) -> Iterator[Finding]:
    """The rows of the table."""
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
