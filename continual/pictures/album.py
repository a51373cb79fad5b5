"""The album: the pictures that an open store knows, by the digests of their content.

A picture that comes in is written to the store at once, if that is open for writing, and becomes
part of the history with the revision that names it; one that no revision names is garbage. Without
a writable store it is held in memory, the latest ones. Knows digests and pixels; leaves files to
the store.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from continual.errors import RequestError
from continual.picture_marks import DIGEST_DIGITS, KEY_DIGITS
from continual.pictures import content

if TYPE_CHECKING:
    from torch import Tensor

    from store import Store

PICTURE = "pixels"
"""The name of the tensor in a picture's file."""
PLAIN_SIDE, PLAIN_GREY = 32, 128
HELD_BYTES_MAX = 512 << 20
"""Of the pictures in memory beside those in a store: it cannot be written, or they were asked about
and no more."""


class Album:
    """The pictures of an open store, and those that came in since."""

    def __init__(self) -> None:
        self._store: Store | None = None
        self._lender: Store | None = None
        self._held: OrderedDict[str, Tensor] = OrderedDict()
        self._digests: dict[str, str] = {}  # by key, of all pictures met so far
        self._turn = threading.Lock()  # of the pictures in memory: a server asks from many threads

    def open(self, store: Store) -> None:
        """Keep pictures in a store from now on; those in memory go there if it can be written."""
        self._store = store
        if store.writable:
            for digest in list(self._held):
                store.keep_picture({PICTURE: self._held.pop(digest)}, content.META)

    def borrow(self, store: Store) -> None:
        """Take pictures that are not here from another store, as they are asked for."""
        self._lender = store

    def take(self, source: object, folder: Path | None = None, *, keeps: bool = True) -> str:
        """Take a picture in: a path (a relative one in `folder`), a data URI, bytes, or the digest
        of one that is here. Return its digest. Raises PictureError."""
        if isinstance(source, str) and len(source) == DIGEST_DIGITS and self._is_here(source):
            return source
        return self.add(content.read(source, folder), keeps=keeps)

    def keep(self, digests: Iterable[str]) -> None:
        """Write those of these pictures that are held in memory to the store. Raises PictureError
        for one that is not here."""
        for digest in map(self.digest, digests):
            if digest in self._held:
                self.add(self.pixels(digest))

    def add(self, pixels: Tensor, *, keeps: bool = True) -> str:
        """Take in pixels [height, width, 3] uint8, and return their digest; without `keeps` they
        are held in memory alone. Raises PictureError if another picture here has the same key."""
        from store import digest_of

        tensors = {PICTURE: pixels}
        digest = digest_of(tensors, content.META)
        self._note(digest)
        if keeps and self._store is not None and self._store.writable:
            self._store.keep_picture(tensors, content.META)
        else:
            self._hold(digest, pixels)
        return digest

    def plain(self) -> str:
        """Return the digest of a grey picture that shows nothing; it is taken in when first
        asked for."""
        import torch

        return self.add(torch.full((PLAIN_SIDE, PLAIN_SIDE, 3), PLAIN_GREY, dtype=torch.uint8))

    def pixels(self, digest: str) -> Tensor:
        """Return the picture of a digest or a key, [height, width, 3] uint8. Raises PictureError
        for one that is not here, IntegrityError for one that is damaged."""
        digest = self.digest(digest)
        with self._turn:
            if digest in self._held:
                self._held.move_to_end(digest)
                return self._held[digest]
        assert self._store is not None
        return self._store.picture(digest)[PICTURE]

    def kept_form(self, digest: str) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
        """Return a picture as the store keeps it: its tensors, and their meta."""
        return {PICTURE: self.pixels(digest)}, content.META

    def digest(self, key: str) -> str:
        """Return the digest of a picture that is here by its key, or by itself. Raises
        PictureError."""
        known = self._digests.get(key[:KEY_DIGITS])
        if known is None and self._store is not None:
            names = self._store.pictures_from(key[:KEY_DIGITS])
            known = names[0] if names else None
            if known is not None:
                self._note(known)
        if known is None and self._lender is not None:
            names = self._lender.pictures_from(key[:KEY_DIGITS])
            known = self.add(self._lender.picture(names[0])[PICTURE]) if names else None
        if known is None or not known.startswith(key) or not self._is_here(known):
            raise content.PictureError(
                f"the picture {key[:KEY_DIGITS]} is not in the store: give it with its request, or "
                "put its file back into pictures/ from an archive or a backup"
            )
        return known

    def require(self, digests: Iterable[str]) -> None:
        """Raise PictureError if one of these pictures is not here."""
        for digest in digests:
            self.digest(digest)

    def _is_here(self, digest: str) -> bool:
        if digest in self._held:
            return True
        return self._store is not None and digest in self._store.pictures_from(digest)

    def _hold(self, digest: str, pixels: Tensor) -> None:
        with self._turn:
            self._held[digest] = pixels
            self._held.move_to_end(digest)
            sizes = [held.numel() for held in self._held.values()]
            while self._store is not None and sum(sizes) > HELD_BYTES_MAX and len(sizes) > 1:
                self._held.popitem(last=False)
                sizes.pop(0)

    def _note(self, digest: str) -> None:
        """Remember a digest by its key. Raises PictureError for a second one of the same key."""
        before = self._digests.setdefault(digest[:KEY_DIGITS], digest)
        if before != digest:
            raise content.PictureError(
                f"two pictures have digests that begin with {digest[:KEY_DIGITS]}, which was made "
                "so on purpose: change a pixel of one"
            )


def album_of(task: object) -> Album | None:
    """Return the album of a task whose prompts may show pictures; None for any other task."""
    album = getattr(task, "album", None)
    return album if isinstance(album, Album) else None


def require_none(text: str) -> None:
    """Raise RequestError for a text that shows a picture, where none can be shown."""
    from continual.picture_marks import digests_in

    if digests_in(text):
        raise RequestError(
            "it shows a picture, and this store's task takes texts alone: make a store with "
            "--task multimodal for a model that sees"
        )
