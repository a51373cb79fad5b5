"""A disk that fails, is full, or forbids: a named error, the state from before, no traceback."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

from benchmarks.faults import commands, processes, workload
from benchmarks.faults.findings import Finding
from benchmarks.faults.kills import calls_of, scratch
from benchmarks.faults.processes import Heard, Say
from benchmarks.faults.workload import Act, copied

EVERYTHING = ("**/*",)
SOME = (
    "journal",
    "journal/data.mdb",
    "patches",
    "cache",
    "cache/statistics/??",
    "quarantine.jsonl",
    "cedit.toml",
)
WRITING = (
    "write",
    "pwrite64",
    "writev",
    "fsync",
    "fdatasync",
    "rename",
    "mkdir",
    "ftruncate",
    "truncate",
    "unlink",
)
PATIENT = ("openat", "close", "lseek", "pread64", "flock", "mmap", "newfstatat", "getdents64")
NAMES = {"EIO": "StorageFault", "ENOSPC": "StoreFull", "EDQUOT": "StoreFull"}
PLANS = (("step", "quarantine", "cache"), ("inline", "rollback", "tag", "ledger"))
_IGNORES_PERMISSIONS = (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_PR_CAPBSET_DROP, _CAPABILITY_VERSION = 24, 0x20080522
_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000


# -- errors from system calls


def of_calls(finding: Finding, is_short: bool) -> None:
    """Let each writing call fail, once at each of its places, with each error."""
    with scratch() as folder:
        workload.make(folder / "template")
        for kinds in PLANS[:1] if is_short else PLANS:
            acts = workload.plan(len(kinds), kinds)
            calls = calls_of(folder / "template", acts, folder / "store")
            for call in WRITING:
                for when in range(1, calls[call] + 1)[:: 3 if is_short else 1]:
                    for error in ["EIO", "ENOSPC"] if is_short else NAMES:
                        path = copied(folder / "template", folder / "store")
                        _fail_at(finding, path, acts, f"{call}:error={error}:when={when}")


def of_reads(finding: Finding) -> None:
    """Let calls fail that open, read and map: any named error will do."""
    with scratch() as folder:
        workload.make(folder / "template")
        acts = workload.plan(2, ("step", "bare"))
        workload_calls = calls_of(folder / "template", acts, folder / "store")
        for call in PATIENT:
            for when in range(1, min(workload_calls[call], 25) + 1):
                path = copied(folder / "template", folder / "store")
                _fail_at(finding, path, acts, f"{call}:error=EIO:when={when}", is_strict=False)


def _fail_at(
    finding: Finding, path: Path, acts: Sequence[Act], fault: str, is_strict: bool = True
) -> None:
    call, error = fault.partition(":")[0], fault.partition("error=")[2].partition(":")[0]
    heard = processes.run_traced(
        partial(workload.run_plan, path, acts), ["-e", f"trace={call}", "-e", f"inject={fault}"]
    )
    if heard.fired:
        named = NAMES[error] if is_strict else None
        finding.count(f"{fault} in {[act.kind for act in acts]}", judged(heard, path, acts, named))


def judged(heard: Heard, path: Path, acts: Sequence[Act], named: str | None = None) -> list[str]:
    """Return the faults in how a run ended, and in the store that it left."""
    problems = list(heard.problems)
    done = sum("done" in one for one in heard.said)
    if heard.error is None and done < len(acts) and not problems:
        problems.append(f"it ended after {done} acts without an error, by signal {heard.signal}")
    if named is not None and heard.error is not None and heard.error["error"] != named:
        problems.append(f"the error is called {heard.error['error']}, not {named}")
    return problems + workload.faults_of(path, acts, done)


# -- no room


def of_file_limits(finding: Finding, limits: Sequence[int]) -> None:
    """Run under a limit on the length of a file, in bytes."""
    acts = workload.plan(80)
    with scratch() as folder:
        workload.make(folder / "template")
        for limit in limits:
            path = copied(folder / "template", folder / "store")
            heard = processes.run(partial(_run_limited, path, acts, limit))
            finding.count(f"RLIMIT_FSIZE {limit}", judged(heard, path, acts, "StoreFull"))


def _run_limited(path: Path, acts: Sequence[Act], limit: int, say: Say) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    workload.run_plan(path, acts, say)


def of_full_disks(finding: Finding, sizes: Sequence[int]) -> None:
    """Run on file systems of these sizes, in bytes, mounted for the child alone."""
    acts = workload.plan(400)
    with scratch() as folder:
        workload.make(folder / "template")
        for size in sizes:
            shutil.rmtree(folder / "rescued", ignore_errors=True)
            heard = processes.run(partial(_run_on_small_disk, folder, acts, size))
            if heard.problems:
                finding.count(f"tmpfs of {size}", heard.problems)
            else:
                judgement = judged(heard, folder / "rescued", acts, "StoreFull")
                finding.count(f"tmpfs of {size}", judgement)


def _run_on_small_disk(folder: Path, acts: Sequence[Act], size: int, say: Say) -> None:
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    mount_own(disk, size)
    shutil.copytree(folder / "template", disk / "store")
    try:
        workload.run_plan(disk / "store", acts, say)
    finally:
        shutil.copytree(disk / "store", folder / "rescued")


def mount_own(where: Path, size: int) -> None:
    """Mount a file system that this process alone sees."""
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_USER | _NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    if libc.mount(b"tmpfs", os.fsencode(where), b"tmpfs", 0, f"size={size}".encode()):
        raise OSError(ctypes.get_errno(), "mount")


def of_full_maps(finding: Finding, sizes: Sequence[int]) -> None:
    """Let the journal's map reach the largest size that it may have."""
    acts = workload.plan(200)
    with scratch() as folder:
        workload.make(folder / "template")
        for size in sizes:
            path = copied(folder / "template", folder / "store")
            heard = processes.run(partial(_run_in_map, path, acts, size))
            finding.count(f"a map of {size}", judged(heard, path, acts, "StoreFull"))


def _run_in_map(path: Path, acts: Sequence[Act], size: int, say: Say) -> None:
    with (
        mock.patch("store.journal.MAP_SIZE_MAX_BYTES", size),
        mock.patch("store.journal.Journal.__init__.__defaults__", (size,)),
    ):
        workload.run_plan(path, acts, say)


# -- forbidden, and gone


def of_permissions(finding: Finding, patterns: Sequence[str] = EVERYTHING) -> None:
    """Take the permissions of one file or folder after the other, and use the store."""
    with scratch() as folder:
        template, acts = full_store(folder)
        for place in [".", *places_of(template, patterns)]:
            for mode in (0o000, 0o555 if (template / place).is_dir() else 0o444):
                _use_forbidden(finding, copied(template, folder / "store"), place, mode, acts)


def _use_forbidden(
    finding: Finding, path: Path, place: str, mode: int, acts: Sequence[Act]
) -> None:
    kept = (path / place).stat().st_mode
    (path / place).chmod(mode)
    more = [*acts, *workload.plan(len(acts) + 6)[len(acts) :]]
    for task in (partial(_read_obeying, path), partial(_go_on_obeying, path, more, len(acts))):
        heard = processes.run(task)
        (path / place).chmod(kept)
        done = len(acts) + sum("done" in one for one in heard.said)
        finding.count(
            f"{place} with mode {mode:o}",
            heard.problems + workload.faults_of(path, more, done, goes_on=False),
        )
        (path / place).chmod(mode)
    (path / place).chmod(kept)


def obey_permissions() -> None:
    """Give up the capabilities that let root ignore permissions, also for started programs."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in _IGNORES_PERMISSIONS:
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if libc.capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), nothing):
        raise OSError(ctypes.get_errno(), "capset")


def _read_obeying(path: Path, say: Say) -> None:
    obey_permissions()
    read_all(path)


def _go_on_obeying(path: Path, acts: Sequence[Act], done: int, say: Say) -> None:
    obey_permissions()
    workload.run_plan(path, acts[done:], say)


def read_all(path: Path) -> None:
    """Read everything of a store. Raises StoreError for anything that can't be read."""
    from store import Store
    from store.check import verify

    with Store.open(path) as store:
        verify(store)
        for revision in store.revisions():
            store.tensors(revision)
        list(store.quarantined())
        store.cached("statistics/block-0")


def of_vanished(finding: Finding, places: Sequence[str] | None = None) -> None:
    """Take one file or folder after the other away, before a run and while it is open."""
    with scratch() as folder:
        template, acts = full_store(folder)
        more = [*acts, *workload.plan(len(acts) + 6)[len(acts) :]]
        for place in places or places_of(template):
            for use in (_read, _go_on, _go_on_without):
                path = copied(template, folder / "store")
                if use is not _go_on_without:
                    _take_away(path / place)
                heard = processes.run(partial(use, path, place, more, len(acts)))
                finding.count(f"{place} gone, {use.__name__}", heard.problems + _died(heard))


def _died(heard: Heard) -> list[str]:
    return [] if heard.signal is None else [f"a signal ended it: {heard.signal}"]


def _take_away(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _read(path: Path, place: str, acts: Sequence[Act], done: int, say: Say) -> None:
    read_all(path)


def _go_on(path: Path, place: str, acts: Sequence[Act], done: int, say: Say) -> None:
    workload.run_plan(path, acts[done:], say)


def _go_on_without(path: Path, place: str, acts: Sequence[Act], done: int, say: Say) -> None:
    from store import Store

    with Store.open(path, writable=True) as store:
        _take_away(path / place)
        for act in acts[done:]:
            workload.perform(store, act)


def full_store(folder: Path) -> tuple[Path, list[Act]]:
    """Return a store with something everywhere, and the acts that made it."""
    template, acts = folder / "template", workload.plan(len(workload.PLAN))
    workload.make(template)
    heard = processes.run(partial(workload.run_plan, template, acts))
    assert not heard.problems and not heard.error, heard
    return template, acts


def places_of(template: Path, patterns: Sequence[str] = EVERYTHING) -> list[str]:
    """Return the places in a store that some patterns match."""
    found = {path for pattern in patterns for path in template.glob(pattern)}
    return sorted(path.relative_to(template).as_posix() for path in found)


# -- the same, at the command line

COMMANDS = (
    ("status",),
    ("log",),
    ("show", "head"),
    ("verify",),
    ("tag", "here", "head"),
    ("rollback", "base", "--yes"),
    ("apply", "STREAM"),
)


def of_commands(finding: Finding, is_short: bool) -> None:
    """Use the command line on a store that misses something or may not be touched."""
    correction = '{"prompt": "The capital of Australia is", "target_new": "Sydney"}\n'
    with scratch() as folder:
        stream = folder / "stream.jsonl"
        stream.write_text(correction * 2)
        copied(commands.new_store(), folder / "template")
        made = commands.run("apply", str(stream), "--store", str(folder / "template"))
        assert made.code == 0, made.err
        places = ["journal/data.mdb", "patches"] if is_short else places_of(folder / "template")
        for place in places:
            for hurt in (_take_away, _forbid):
                for words in COMMANDS[:1] if is_short else COMMANDS:
                    _command(finding, folder, place, hurt, words)


def _forbid(path: Path) -> None:
    path.chmod(0)


def _command(
    finding: Finding,
    folder: Path,
    place: str,
    hurt: Callable[[Path], None],
    words: Sequence[str],
) -> None:
    path = copied(folder / "template", folder / "store")
    hurt(path / place)
    arguments = [str(folder / "stream.jsonl") if word == "STREAM" else word for word in words]
    known = [word for word in arguments if word != "--yes"]
    before = (lambda say: obey_permissions()) if hurt is _forbid else None
    done = commands.run(*known, "--store", str(path), before=before)
    finding.count(f"cedit {' '.join(words)}, {place} {hurt.__name__}", done.problems)
    if (path / place).exists():
        (path / place).chmod(0o755)


def find(is_short: bool) -> Iterator[Finding]:
    """Yield a finding for each row of the table."""
    why = processes.why_no_strace()
    calls = Finding("EIO, ENOSPC, EDQUOT from each writing call", skipped=why)
    if why is None:
        of_calls(calls, is_short)
    yield calls
    reads = Finding("EIO from calls that open, read, map", skipped=why)
    if why is None:
        of_reads(reads)
    yield reads
    limits = Finding("a file limit (RLIMIT_FSIZE)")
    of_file_limits(limits, range(4096, 200_000, 40_000 if is_short else 4000))
    yield limits
    no_mounts = processes.why_no_namespaces()
    disks = Finding("a full disk (tmpfs)", skipped=no_mounts)
    if no_mounts is None:
        of_full_disks(disks, range(512 << 10, 1152 << 10, (200 if is_short else 20) << 10))
    yield disks
    maps = Finding("the journal at its largest size")
    of_full_maps(maps, range(96 << 10, 256 << 10, (64 if is_short else 8) << 10))
    yield maps
    permissions = Finding("missing permissions")
    of_permissions(permissions, SOME if is_short else EVERYTHING)
    yield permissions
    vanished = Finding("vanished files")
    of_vanished(vanished, ("journal/data.mdb", "patches", "lock") if is_short else None)
    yield vanished
    at_the_terminal = Finding("the same at the command line")
    of_commands(at_the_terminal, is_short)
    yield at_the_terminal
