"""cedit, by the name of its command: everything that `continual` offers."""

from typing import Any

from cedit_origin import require_own

require_own()

import continual  # noqa: E402
from continual import create as create  # noqa: E402
from continual import open as open  # noqa: E402

__all__ = [*continual.__all__]


def __getattr__(name: str) -> Any:
    """Look a name up in `continual`."""
    return getattr(continual, name)


def __dir__() -> list[str]:
    """The names of the interface."""
    return dir(continual)
