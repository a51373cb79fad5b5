"""The file of a trained editor network: safetensors with canonical JSON beside the weights.

The JSON names the method, the base model that it was trained on, and its matrices. A store names a
network by the file's path and SHA-256, so that the digest stands in the settings of every revision.
Leaves training to ``training``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from continual.errors import CeditError
from continual.gradients.networks import EditorNetwork, NetworkForm
from store import canonical

_META_KEY = "cedit"
_FORMAT = 1

Network = TypeVar("Network", bound=EditorNetwork)


class NetworkError(CeditError):
    """A file that is no network, or not the one that is asked for."""


@dataclass(frozen=True)
class NetworkFile:
    """The place of a trained network, and the digest that names it."""

    path: Path
    digest: str  # SHA-256 of the file

    @classmethod
    def of(cls, path: Path) -> NetworkFile:
        """Return the file at a path, by its present digest."""
        return cls(path, hashlib.sha256(path.read_bytes()).hexdigest())

    @classmethod
    def write(cls, path: Path, network: EditorNetwork, base: str, recipe: Any) -> NetworkFile:
        """Write a network, whole or not at all. `base` is the fingerprint of its base model."""
        meta = {
            "format": _FORMAT,
            "method": network.method,
            "base": base,
            "matrices": [[name, *shape] for name, shape in network.form.shapes.items()],
            "rank": network.form.rank,
            "recipe": dict(recipe),
        }
        tensors = {n: t.detach().contiguous().cpu() for n, t in network.state_dict().items()}
        content = save(tensors, metadata={_META_KEY: canonical.dumps(meta).decode()})
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.tmp")
        partial.write_bytes(content)
        partial.replace(path)
        return cls(path, hashlib.sha256(content).hexdigest())

    def read(self, kind: type[Network], base: str) -> Network:
        """Read a network of a method, in eval mode. Raises NetworkError for a file that is damaged,
        of another method or base, or not the one with this digest."""
        content = self._content(kind.method)
        try:
            with safe_open(self.path, framework="pt") as file:
                meta = canonical.loads((file.metadata() or {})[_META_KEY].encode())
            self._require(meta, kind.method, base)
            shapes = {str(name): (int(a), int(b)) for name, a, b in meta["matrices"]}
            network = kind(NetworkForm(shapes, int(meta["rank"])))
            network.load_state_dict(load(content))
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise self._refused(f"can't be read as a network ({error})", kind.method) from error
        network.eval().requires_grad_(False)
        return network

    def _content(self, method: str) -> bytes:
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise self._refused(f"can't be read ({error.strerror})", method) from error
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.digest:
            raise self._refused(
                f"is another file than the settings name: its digest is {digest[:12]}, and "
                f"network_digest is {self.digest[:12]}",
                method,
            )
        return content

    def _require(self, meta: Mapping[str, Any], method: str, base: str) -> None:
        if meta["format"] != _FORMAT or meta["method"] != method:
            raise self._refused(
                f"is a network of {meta['method']} in format {meta['format']}, not of {method} in "
                f"format {_FORMAT}",
                method,
            )
        if meta["base"] != base:
            raise self._refused(
                f"was trained on the base {meta['base'][:12]}, and this is {base[:12]}", method
            )

    def _refused(self, cause: str, method: str) -> NetworkError:
        return NetworkError(
            f"{self.path} {cause}: name the right file under [editor.{method}], or train a network "
            f"with `cedit train {method}`."
        )
