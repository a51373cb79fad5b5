"""One spelling for every JSON record, so that equal records have equal bytes and equal digests.

Knows JSON and SHA-256; leaves the meaning of a record to others.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NoReturn

from store.errors import StoreError


def dumps(obj: Any) -> bytes:
    """Return canonical JSON in UTF-8: sorted keys, no spaces, no NaN.

    Raises StoreError for a value that JSON cannot hold.
    """
    try:
        text = json.dumps(
            obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(
            f"a record can't be written as JSON ({error}): "
            "use finite numbers, valid text, lists and string keys"
        ) from error


def loads(data: bytes) -> Any:
    """Return the value that `data` spells. Raises ValueError for anything that is not JSON."""
    try:
        return _DECODER.decode(data.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def digest(data: bytes) -> str:
    """Return the SHA-256 in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)  # one for all: making it is dear
