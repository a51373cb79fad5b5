"""Tokens: who may ask, propose, approve and administer. They stand in one file of mode 600.

The file is made at the first start, with a token of the role `admin`. Every comparison takes as
long as every other, and looks at all tokens.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path

from continual.errors import CeditError
from store import write_durably
from store.errors import reading

FOLDER, FILE = "server", "tokens.json"
PREFIX = "cedit-"
_MODE = 0o600
_BYTES = 32
_NAME_CHARACTERS_MAX = 64


class Role(IntEnum):
    """The rights of a token; each role has those of the ones before it."""

    ask = 1
    propose = 2
    approve = 3
    admin = 4


class TokenProblem(CeditError):
    """A file of tokens, or a name in it, that cannot be used."""


@dataclass(frozen=True)
class Token:
    """A token with its owner's name and role."""

    name: str
    role: str
    token: str

    @property
    def rights(self) -> Role:
        """Its role. Raises TokenProblem for one that there is not."""
        return role_of(self.role)


def role_of(name: str) -> Role:
    """Return the role of a name. Raises TokenProblem for one that there is not."""
    if name not in Role.__members__:
        raise TokenProblem(f"There is no role {name!r}: choose {', '.join(Role.__members__)}.")
    return Role[name]


class Tokens:
    """The tokens of a store's server."""

    def __init__(self, path: Path, tokens: Sequence[Token]) -> None:
        self._path = path
        self.tokens = tuple(tokens)

    @classmethod
    def of(cls, store: Path) -> Tokens:
        """Read a store's tokens; empty before the first start. Raises TokenProblem."""
        path = store / FOLDER / FILE
        with reading(path):
            if not path.exists():
                return cls(path, ())
            if path.stat().st_mode & 0o077:
                raise TokenProblem(
                    f"{path} can be read by others: chmod 600 {path}, or remove it and start anew."
                )
            text = path.read_text(encoding="utf-8")
        try:
            tokens = [Token(**entry) for entry in json.loads(text)["tokens"]]
            roles = [token.rights for token in tokens]
            assert all(len(token.token) >= _BYTES for token in tokens)
            assert len(roles) == len({token.name for token in tokens})
        except (ValueError, KeyError, TypeError, AssertionError, TokenProblem) as error:
            raise TokenProblem(
                f"{path} is no file of tokens as cedit writes it ({error}): remove it, and the "
                "next start makes another."
            ) from None
        return cls(path, tokens)

    def added(self, name: str, role: str) -> tuple[Tokens, Token]:
        """Make a token, durably; return all tokens and the new one. Raises TokenProblem for a name
        that is taken."""
        if not name or len(name) > _NAME_CHARACTERS_MAX or not name.isprintable():
            raise TokenProblem(
                f"{name!r} is no name for a token: use 1 to 64 printable characters."
            )
        if any(token.name == name for token in self.tokens):
            raise TokenProblem(f"There is a token named {name!r} already: remove it first.")
        made = Token(name, role_of(role).name, PREFIX + secrets.token_urlsafe(_BYTES))
        return self._written((*self.tokens, made)), made

    def without(self, name: str) -> Tokens:
        """Remove a token, durably. Raises TokenProblem for a name that no token has, and for the
        last administrator."""
        kept = tuple(token for token in self.tokens if token.name != name)
        if len(kept) == len(self.tokens):
            raise TokenProblem(f"There is no token named {name!r}.")
        if not any(token.rights == Role.admin for token in kept):
            raise TokenProblem(f"{name!r} is the last administrator: make another one first.")
        return self._written(kept)

    def _written(self, tokens: tuple[Token, ...]) -> Tokens:
        entries = {"tokens": [asdict(token) for token in tokens]}
        write_durably(self._path, json.dumps(entries, indent=1).encode("utf-8"), _MODE)
        return Tokens(self._path, tokens)

    @property
    def secret(self) -> str:
        """The key of signatures: derived from the first administrator's token, so that whoever has
        that can check them."""
        keys = [token.token for token in self.tokens if token.rights == Role.admin]
        return hashlib.sha256(f"webhooks {keys[0] if keys else ''}".encode()).hexdigest()

    def owner(self, text: str) -> Token | None:
        """Return the token that a text is; None for any other text."""
        owner: Token | None = None
        for token in self.tokens:
            if hmac.compare_digest(token.token.encode("utf-8"), text.encode("utf-8", "replace")):
                owner = token
        return owner


def tokens_at_start(store: Path) -> tuple[Tokens, Token | None]:
    """Return a store's tokens, and the administrator's if it was made just now."""
    tokens = Tokens.of(store)
    return (tokens, None) if tokens.tokens else tokens.added("admin", "admin")
