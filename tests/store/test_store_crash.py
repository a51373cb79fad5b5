"""Killed, out of room or let down by the disk, a store keeps all that it acknowledged."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from store import Store
from store.check import verify

WRITER = """
import sys
from pathlib import Path
from store import Draft, Store, StoreError
path, count, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
try:
    with Store.open(path, writable=True) as store:
        for _ in range(count):
            n = store.length
            draft = Draft("edit", store.head.id, f"f{n}", {"text": "x" * size},
                          streams={"news": {"position": n}})
            print(store.commit(draft).id, flush=True)
except StoreError as error:
    print(f"{type(error).__name__}: {error}", flush=True)
"""
BLOB_WRITER = """
import sys
from pathlib import Path
from store import durable, StoreError
try:
    durable.write_durably(Path(sys.argv[1]) / "patches" / "ab" / "blob", b"x" * 1_000_000)
    print("written", flush=True)
except StoreError as error:
    print(f"{type(error).__name__}: {error}", flush=True)
"""


def acknowledged(output: bytes) -> list[str]:
    return [line for line in output.decode().split("\n")[:-1] if len(line) == 64]


def assert_sound(path: Path, ids: list[str]) -> None:
    """All acknowledged revisions are there, at most one more, and nothing is half-done."""
    with Store.open(path, writable=True) as store:
        present = [revision.id for revision in store.revisions(1)]
        assert present[: len(ids)] == ids
        assert len(present) - len(ids) in (0, 1)
        assert store.head.seq == len(present)
        stream = store.stream("news")
        assert stream == ({"position": len(present)} if present else None)
        assert [problem for problem in verify(store) if not problem.harmless] == []


def test_kill_at_a_random_time_loses_nothing_acknowledged(store, path, python):
    store.close()
    chance = random.Random(3)
    ids: list[str] = []
    for _ in range(10):
        child = python(WRITER, path, 10_000, 3000)
        assert child.stdout.readline() == b"ready\n"
        time.sleep(chance.uniform(0.0, 0.08))
        child.kill()
        ids += acknowledged(child.stdout.read())  # what was read ahead with the first line, too
        child.wait()
        assert_sound(path, ids)
        with Store.open(path) as reader:
            ids = [revision.id for revision in reader.revisions(1)]
    assert len(ids) > 10


# -- faults injected into system calls

needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")


def injected(python, tmp_path, program: str, fault: str, *arguments: object) -> tuple[str, int]:
    """Run a writer under a fault; its output and how often the fault was injected."""
    log = tmp_path / "strace.log"
    call = fault.partition(":")[0]
    trace = ["strace", "-f", "-o", str(log), "-e", f"trace={call}", "-e", f"inject={fault}"]
    child = python(program, *arguments, under=trace)
    output = child.communicate()[0].decode()
    text = log.read_text()
    return output, text.count("(INJECTED)") + text.count("+++ killed by SIGKILL +++")


@needs_strace
@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("fdatasync:error=EIO:when=3", "StorageFault"),
        ("fdatasync:error=ENOSPC:when=3", "StoreFull"),
        ("pwrite64:error=ENOSPC:when=4", "StoreFull"),
        ("pwrite64:error=EIO:when=5", "StorageFault"),
        ("pwrite64:error=EDQUOT:when=6", "StoreFull"),
    ],
)
def test_a_failed_write_of_the_journal_has_a_name(store, path, python, tmp_path, fault, named):
    store.close()
    output, fired = injected(python, tmp_path, WRITER, fault, path, 6, 3000)
    assert fired
    assert output.splitlines()[-1].startswith(named)
    assert "open the store again" in output
    assert_sound(path, acknowledged(output.encode()))


@needs_strace
@pytest.mark.parametrize("when", [1, 2, 5, 6])
@pytest.mark.parametrize("call", ["fdatasync", "pwrite64"])
def test_kill_at_a_system_call_loses_nothing_acknowledged(
    store, path, python, tmp_path, call, when
):
    store.close()
    fault = f"{call}:signal=KILL:when={when}"
    output, fired = injected(python, tmp_path, WRITER, fault, path, 6, 3000)
    assert fired
    assert_sound(path, acknowledged(output.encode()))


@needs_strace
@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("fsync:error=EIO:when=2", "StorageFault"),
        ("fsync:error=ENOSPC:when=2", "StoreFull"),
        ("rename:error=EIO:when=1", "StorageFault"),
    ],
)
def test_a_failed_write_of_a_blob_leaves_nothing(store, path, python, tmp_path, fault, named):
    store.close()
    output, fired = injected(python, tmp_path, BLOB_WRITER, fault, path)
    assert fired
    assert output.startswith(named)
    assert list((path / "patches").rglob("*")) == [path / "patches" / "ab"]
    assert_sound(path, [])


@needs_strace
def test_kill_before_a_blob_is_named_leaves_only_what_is_harmless(store, path, python, tmp_path):
    store.close()
    _, fired = injected(python, tmp_path, BLOB_WRITER, "rename:signal=KILL:when=1", path)
    assert fired
    assert_sound(path, [])


# -- no room


def test_a_file_limit_is_named_and_harmless(store, path, python):
    store.close()
    limited = ["sh", "-c", 'ulimit -f 256; exec "$@"', "sh"]
    output = python(WRITER, path, 1000, 3000, under=limited).communicate()[0]
    assert output.splitlines()[-1].startswith(b"StoreFull")
    assert_sound(path, acknowledged(output))


def test_a_blob_past_the_file_limit_is_named_and_leaves_nothing(store, path, python):
    store.close()
    limited = ["sh", "-c", 'ulimit -f 256; exec "$@"', "sh"]
    output = python(BLOB_WRITER, path, under=limited).communicate()[0]
    assert output.startswith(b"StoreFull")
    assert list((path / "patches").rglob("*")) == [path / "patches" / "ab"]


def _unshare_works() -> bool:
    command = ["unshare", "-rm", "true"]
    return bool(shutil.which("unshare")) and subprocess.run(command, check=False).returncode == 0


@pytest.mark.skipif(not _unshare_works(), reason="needs user and mount namespaces")
def test_a_full_disk_is_named_and_harmless(store, path, python, tmp_path):
    store.close()
    disk, rescued = tmp_path / "disk", tmp_path / "rescued"
    disk.mkdir()
    script = (
        f'mount -t tmpfs -o size=2m tmpfs {disk} && cp -r {path}/. {disk} && "$@"; '
        f"cp -r {disk} {rescued}"
    )
    under = ["unshare", "-rm", "sh", "-c", script, "sh"]
    output, err = python(WRITER, disk, 1000, 3000, under=under).communicate()
    assert output.splitlines()[-1].startswith(b"StoreFull"), err
    assert len(acknowledged(output)) > 10
    assert_sound(rescued, acknowledged(output))
