"""The names under ``[anatomy]`` in ``cedit.toml``, which correct a wrong finding.

Knows the keys, and reads modules by them. Leaves the meaning of each module to ``blocks``, ``ffn``
and ``logit_path``.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from continual.anatomy.module_paths import name_of
from continual.errors import ModelError

OVERRIDES: Mapping[str, str] = {
    "blocks": "path of the list of blocks",
    "up": "path or paths, with commas, inside a block: the FFN's input matrices",
    "down": "path inside a block: the FFN's output matrix",
    "norm_after": "path inside a block: the norm behind the FFN's residual sum, or none",
    "final_norm": "path of the norm behind the last block, or none",
    "head": "path of the matrix that gives the logits",
    "context": "number of the block whose queries, averaged, stand beside the last one's, or none",
    "turn": "tokens, with commas, between a user's turn and the answer: no part of the context",
}
"""The keys that ``[anatomy]`` in ``cedit.toml`` may set."""


class WrongOverride(ModelError):
    """An override names a module that the model does not have."""


NONE = "none"
"""The value of an override that says: this model has no such module."""


def check_overrides(chosen: Mapping[str, str]) -> None:
    """Raise ModelError for a key that is no setting."""
    for key in chosen:
        if key not in OVERRIDES:
            raise ModelError(f"anatomy.{key} is not a setting; there are {', '.join(OVERRIDES)}.")


def optional_path(
    root: nn.Module, key: str, chosen: Mapping[str, str], found: str | None
) -> str | None:
    """Return the path that a user names for a key, else the one found; None for no such module.
    Raises WrongOverride."""
    path = chosen.get(key, found)
    if path is None or path == NONE:
        return None
    module_at(root, path, key)
    return path


def module_at(root: nn.Module, path: str, key: str) -> nn.Module:
    """Return the module at a path that a user named. Raises WrongOverride if there is none."""
    try:
        return root.get_submodule(path)
    except AttributeError:
        names = ", ".join(name for name, _ in root.named_modules() if name.count(".") <= 2 and name)
        raise WrongOverride(
            f"anatomy.{key}: {name_of(root)} has no {path!r}. It has {names}."
        ) from None


def context_block(chosen: Mapping[str, str], last: int) -> int | None:
    """Return the block that a user names for the context of queries; None for no context. Raises
    WrongOverride for no number of a block before the last."""
    name = chosen.get("context", NONE)
    if name == NONE:
        return None
    if not name.isdecimal() or not int(name) < last:
        raise WrongOverride(
            f"anatomy.context: {name!r} is no block before the last one, {last}. Take a number "
            f"below {last}, or {NONE!r}."
        )
    return int(name)


def turn_tokens(chosen: Mapping[str, str]) -> tuple[int, ...] | None:
    """Return the tokens between a user's turn and the answer that a user names; None for none,
    and where there is to be no context. Raises WrongOverride for anything but numbers, and if
    nothing is said of a context that would leave them out."""
    listed = chosen.get("turn", NONE)
    if NONE in (listed, chosen.get("context")):
        return None
    tokens = split_paths(listed)
    if not all(token.isdecimal() for token in tokens):
        raise WrongOverride(f"anatomy.turn: {listed!r} are not numbers of tokens with commas.")
    if "context" not in chosen:
        raise WrongOverride("anatomy.turn belongs to anatomy.context: give the context's block.")
    return tuple(map(int, tokens))


def split_paths(paths: str | None) -> tuple[str, ...]:
    """Return the paths between the commas; none for no setting."""
    return tuple(path.strip() for path in paths.split(",")) if paths else ()


def remedy(*keys: str) -> str:
    """Return the last sentence of a message: the lines to write into ``cedit.toml``."""
    settings = "; ".join(f"{key} = {OVERRIDES[key]}" for key in keys)
    where = "with `cedit init --anatomy KEY=NAME`, or in cedit.toml under [anatomy]"
    return f"Name it {where}: {settings}."
