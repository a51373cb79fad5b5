"""The header of an LMDB data file, read without LMDB.

LMDB maps the file into memory and trusts it: a file that is too short ends the process with SIGBUS
when a missing page is touched. So its two meta pages are read and judged first. Knows the file
format of LMDB 0.9 (native byte order); leaves the content to the journal.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from store.errors import IntegrityError

LABEL = "journal/data.mdb"

_MAGIC = 0xBEEFC0DE
_VERSION = 1
_META_FLAG = 0x08
_READS_MAX = 5  # a writer may commit between the reads of the two pages
# Page header: number, pad, flags, bounds. Meta: magic, version, address, map size, page size (kept
# where the first database has its pad), 92 bytes on the trees, the last page, the transaction.
_META_PAGE = struct.Struct("=QHHI IIQQ I92xQQ")
_PAGE_SIZES = frozenset(1 << power for power in range(9, 17))


@dataclass(frozen=True)
class Meta:
    """One meta page: the state of the file as of one transaction."""

    page_size: int  # bytes
    last_page: int
    transaction: int

    @property
    def length(self) -> int:
        """Bytes that the file needs to hold all pages."""
        return (self.last_page + 1) * self.page_size


def require_whole(path: Path) -> None:
    """Raise IntegrityError if the file's meta pages are damaged or it is shorter than they say."""
    meta = _settled_meta(path)
    length = path.stat().st_size
    if length < meta.length:
        raise IntegrityError(LABEL, f"is cut off: {length} of {meta.length} bytes are there")


def _settled_meta(path: Path) -> Meta:
    for _ in range(_READS_MAX):
        even_page, odd_page = _read_metas(path)
        latest_meta, earlier_meta = sorted(
            (even_page, odd_page), key=lambda meta: -meta.transaction
        )
        # Transaction n goes to page n % 2, so the two pages always hold neighbours.
        are_neighbours = latest_meta.transaction - earlier_meta.transaction == 1
        is_in_place = latest_meta is (odd_page if latest_meta.transaction % 2 else even_page)
        if (are_neighbours and is_in_place) or latest_meta.transaction == 0:
            return latest_meta
    raise IntegrityError(LABEL, "its two meta pages contradict each other")


def _read_metas(path: Path) -> tuple[Meta, Meta]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise IntegrityError(LABEL, f"can't be read ({error.strerror})") from error
    try:
        even_page = _parse(os.pread(descriptor, _META_PAGE.size, 0))
        odd_page = _parse(os.pread(descriptor, _META_PAGE.size, even_page.page_size))
    finally:
        os.close(descriptor)
    return even_page, odd_page


def _parse(data: bytes) -> Meta:
    if len(data) < _META_PAGE.size:
        raise IntegrityError(LABEL, "is cut off within its first pages")
    fields = _META_PAGE.unpack(data)
    flags, magic, version = fields[2], fields[4], fields[5]
    meta = Meta(page_size=fields[8], last_page=fields[9], transaction=fields[10])
    if magic != _MAGIC or version != _VERSION or not flags & _META_FLAG:
        raise IntegrityError(LABEL, "is not an LMDB 0.9 data file")
    if meta.page_size not in _PAGE_SIZES:
        raise IntegrityError(LABEL, "its page size is damaged")
    return meta
