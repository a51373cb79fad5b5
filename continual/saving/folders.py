"""The folder of a saved model: written beside its place, and put there whole.

A folder that cedit wrote lists its files in `cedit.json`; it may be replaced. Any other folder only
if a person says so, and never one with a store, a base model or the working directory in it. A
folder of a run that was killed lies beside the place, and goes with the next one. Knows names and
bytes; leaves the content to the forms.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from continual.errors import CeditError
from store.errors import from_os

MANIFEST = "cedit.json"
FILES = "files"
"""The key of a manifest for the names of all files beside it."""
_LOCK = ".lock"


class NotOurs(CeditError):
    """A folder that may not be replaced."""


@contextmanager
def placed_whole(target: Path, *, force: bool, spared: Sequence[Path] = ()) -> Iterator[Path]:
    """Give an empty folder to write to, and put it at the target when `with` ends well; otherwise
    nothing of it is left. `spared` are paths that no replaced folder may contain.

    Raises NotOurs for a target with other files, unless `force`; StoreError if it cannot be
    written.
    """
    place = target.expanduser().resolve()
    require_replaceable(place, force=force, spared=spared)
    with _written(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(place)
        folder = place.parent / f"{_prefix(place)}{secrets.token_hex(4)}"
        folder.mkdir()
        try:
            with _locked(folder):
                yield folder
                _sync(folder)
                require_replaceable(place, force=force, spared=spared)
                _put(folder, place)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def require_replaceable(place: Path, *, force: bool, spared: Sequence[Path] = ()) -> None:
    """Raise NotOurs for a place that may not be replaced."""
    file = next((path for path in (place, *place.parents) if path.is_file()), None)
    if file is not None:
        raise NotOurs(f"{file} is a file: name a folder.")
    if not place.exists():
        return
    guarded = [path.resolve() for path in (*spared, Path.cwd(), Path.home())]
    inside = next((path for path in guarded if path.is_relative_to(place)), None)
    if inside is not None and any(place.iterdir()):
        raise NotOurs(f"{place} has {inside} in it and is never replaced: name another folder.")
    others = sorted(_others_in(place))
    if others and not force:
        raise NotOurs(
            f"{place} has files that `cedit save` did not write ({', '.join(others[:3])}"
            f"{', …' if len(others) > 3 else ''}): name another folder, or replace all of it "
            "(--force)."
        )


def _others_in(place: Path) -> set[str]:
    """Return the names of the files in a folder that its manifest does not list."""
    names = {path.relative_to(place).as_posix() for path in place.rglob("*") if not path.is_dir()}
    try:
        manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        ours = {MANIFEST, *map(str, manifest[FILES])} if "cedit" in manifest else set()
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    return names - ours


def files_in(folder: Path) -> dict[str, int]:
    """Return the files in a folder by name, each with its length in bytes, without the lock."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != _LOCK)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def _prefix(place: Path) -> str:
    return f".{place.name}.cedit-"


def _remove_left(place: Path) -> None:
    """Remove the folders that killed runs left beside the place."""
    for left in place.parent.glob(f"{_prefix(place)}*"):
        with suppress(OSError), _locked(left):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock within `with`. Raises BlockingIOError if another process does."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _put(folder: Path, place: Path) -> None:
    """Rename a folder to its place, with what was there out of the way."""
    (folder / _LOCK).unlink()
    if not place.exists():
        folder.rename(place)
    else:
        before = place.parent / f"{_prefix(place)}{secrets.token_hex(4)}"
        place.rename(before)
        try:
            folder.rename(place)
        except OSError:
            before.rename(place)
            raise
        shutil.rmtree(before, ignore_errors=True)
    _sync_entry(place.parent)


def _sync(folder: Path) -> None:
    """Make all files of a folder survive a power loss."""
    for path in [*folder.rglob("*"), folder]:
        _sync_entry(path)


def _sync_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _written(place: Path) -> Iterator[None]:
    """Turn the errors of a disk into a CeditError that names the place."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise CeditError(
            f"{place} could not be written ({error}): free some space, or name another folder. "
            "Nothing of it was left."
        ) from error
    except OSError as error:
        if error.errno is None:
            raise
        raise from_os(place, error) from error
