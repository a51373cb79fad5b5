"""The address of a store's server: a file beside its tokens, for commands on the same machine."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from continual.serving.tokens import FOLDER
from store import write_durably

FILE = "address.json"


def announce(store: Path, url: str) -> None:
    """Write down the address of a store's server."""
    write_durably(store / FOLDER / FILE, json.dumps({"url": url}).encode("utf-8"))


def withdraw(store: Path) -> None:
    """Remove the address of a server that ends."""
    with suppress(OSError):
        (store / FOLDER / FILE).unlink(missing_ok=True)


def address_of(store: Path) -> str | None:
    """Return the address of a store's server, as far as it is known; one that was killed may have
    left it behind."""
    try:
        url = json.loads((store / FOLDER / FILE).read_text(encoding="utf-8"))["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return url if isinstance(url, str) else None
