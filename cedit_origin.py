"""Tells cedit's own packages from others of the same name, and starts the command `cedit`.

`store` and `cli` are names that another distribution, or a file beside a program, may have as well.
The command runs on cedit's own packages whatever else is found first; a program that imports
`cedit` is told at once if it would get others. Imports nothing of cedit's before that is clear.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

NAMES = ("store", "continual", "cli")
MARK = '__distribution__ = "cedit"'
"""A line of each package's `__init__.py`."""
_ROOT = Path(__file__).resolve().parent


class ForeignPackage(ImportError):
    """Another package has the name of one of cedit's."""


def require_own() -> None:
    """Raise ForeignPackage if `import` finds other packages than cedit's by their names."""
    for name in NAMES:
        found = _found(name)
        if not _is_own(name, found):
            raise ForeignPackage(_told(name, found))


def main() -> None:
    """Run the command on cedit's own packages, and leave with its exit code."""
    overwritten = [name for name in NAMES if not _is_own(name, _own(name))]
    if overwritten:
        name = overwritten[0]
        sys.exit(f"cedit: {_told(name, _own(name))}")
    for name in NAMES:
        if not _is_own(name, _found(name)):
            _load_own(name)
    from cli.main import main as run

    run()


def _own(name: str) -> Path:
    return _ROOT / name / "__init__.py"


def _found(name: str) -> Path | None:
    """Return the file that `import` takes, or has taken, for a package."""
    module = sys.modules.get(name)
    if module is not None:
        file = getattr(module, "__file__", None)
        return Path(file) if file else None
    spec = importlib.util.find_spec(name)
    return Path(spec.origin) if spec is not None and spec.origin else None


def _is_own(name: str, file: Path | None) -> bool:
    """Tell whether a file is the beginning of cedit's own package, as it was installed."""
    if file is None or file.resolve() != _own(name) or not file.is_file():
        return False
    return MARK in file.read_text("utf-8", errors="replace").splitlines()


def _load_own(name: str) -> None:
    file = _own(name)
    folder = [str(file.parent)]
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folder)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def _told(name: str, found: Path | None) -> str:
    """Return the message about a package: the file found, its owner, and the remedy."""
    where = "nothing" if found is None else str(found)
    owners = [] if found is None else list(_owners(name, found.resolve()))
    owner = f"of the distribution {' and '.join(owners)}" if owners else "which no other owns"
    if found is not None and found.resolve() != _own(name):
        remedy = (
            f"cedit's own is {_own(name)}. Install cedit in an environment of its own, or give a "
            "file or folder of your program that has this name another."
        )
    else:
        other = owners[0].split()[0] if owners else "the other package"
        remedy = (
            f"It has to be cedit's own. Keep the two apart: uninstall {other} here, then "
            "pip install --force-reinstall --no-deps cedit."
        )
    return f"`import {name}` finds {where}, {owner}. {remedy}"


def _owners(name: str, found: Path) -> Iterator[str]:
    """Yield the other distributions that have installed a file."""
    ends = (f"{name}/__init__.py", f"{name}.py")
    for distribution in distributions():
        files = [file for file in distribution.files or () if str(file).endswith(ends)]
        title = distribution.metadata["Name"]
        if title != "cedit" and any(
            Path(str(distribution.locate_file(file))).resolve() == found for file in files
        ):
            yield f"{title} {distribution.version}"
