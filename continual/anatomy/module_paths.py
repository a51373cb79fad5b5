"""Paths of modules inside a model, and the kinds of modules that are told by their class names."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def name_of(module: object) -> str:
    """Return the name of a module's class."""
    return type(module).__name__


def children_of(model: nn.Module, path: str) -> list[nn.Module]:
    """Return the modules right below a path, in their order."""
    return list(model.get_submodule(path).children())


def path_of(model: nn.Module, module: nn.Module) -> str:
    """Return the path of a module in a model."""
    path: str = next(path for path, part in model.named_modules() if part is module)
    return path


def is_inside(path: str, *roots: str) -> bool:
    """Tell whether a path is one of the roots or below it; everything is below ""."""
    return any(root in ("", path) or path.startswith(f"{root}.") for root in roots)


def outermost_of(paths: Iterable[str]) -> list[str]:
    """Return the paths that are below no other."""
    all_paths = list(paths)
    return [
        path for path in all_paths if not any(path.startswith(f"{root}.") for root in all_paths)
    ]


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a norm, by the name of its class."""
    return "norm" in name_of(module).lower()


def is_attention(module: nn.Module) -> bool:
    """Tell whether a module is attention, by the name of its class."""
    return any(word in name_of(module).lower() for word in ("attention", "attn"))


def experts_in(block: nn.Module) -> list[str]:
    """Return the paths of the collections of experts in a block."""
    names = [path for path, _ in block.named_modules() if "experts" in path.split(".")[-1]]
    return outermost_of(names)
