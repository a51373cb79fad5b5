"""The devices that a model's parts are put on: one device, several, or the disk.

Reads a `device_map` as `cedit init` and cedit.toml have it, and says it to transformers, which lets
accelerate place the modules and move their inputs. Leaves the loading itself to `loading`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import torch

from continual.errors import ModelError, first_line
from continual.out_of_memory import is_out_of_memory

BALANCED = ("auto", "balanced", "balanced_low_0", "sequential")
"""The ways in which accelerate chooses devices itself."""
DISK = "disk"
"""The place of modules whose parameters are read from the disk for each of their passes."""


@dataclass(frozen=True)
class Placement:
    """The devices that a model's modules are put on while it is loaded, by accelerate."""

    device_map: str | Mapping[str, str | int] = ""  # see transformers' `device_map`; empty: the CPU
    offload_folder: str | None = None  # for parameters that are not as the checkpoint's files have

    @classmethod
    def of(cls, lines: Sequence[str], offload: Path | None = None) -> Self:
        """Read a placement from the lines of a `device_map`: a name of BALANCED, or "MODULE DEVICE"
        for each module. Raises ModelError for any other line, and without accelerate.

        Makes a folder in `offload`, or among the system's temporary ones, if parameters may lie on
        the disk.
        """
        if not lines:
            return cls()
        if find_spec("accelerate") is None:
            raise ModelError(
                "A model is put on several devices by accelerate, which is not installed: pip "
                "install 'cedit[large]', or leave device_map out."
            )
        if len(lines) == 1 and lines[0] in BALANCED:
            return cls(lines[0], _new_folder(offload))
        pairs = [line.rpartition(" ") for line in lines]
        places = {module: _device(place) for module, _, place in pairs}
        return cls(places, _new_folder(offload) if DISK in places.values() else None)

    def options(self) -> dict[str, Any]:
        """Return the options of `from_pretrained`."""
        if not self.device_map:
            return {}
        return {"device_map": self.device_map, "offload_folder": self.offload_folder}


def _new_folder(parent: Path | None) -> str:
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    return tempfile.mkdtemp(prefix="cedit-", dir=parent)


def _device(name: str) -> str | int:
    """Return a device as accelerate names it. Raises ModelError for one that cannot be used."""
    if name == DISK:
        return name
    if name.isdecimal():
        name = f"cuda:{name}"
    return str(torch.empty(0, device=usable_device(name)).device)  # torch has one CPU


def device_map_lines(told: str) -> tuple[str, ...]:
    """Return the lines of a `device_map` as `Placement.of` reads it, for a name of BALANCED or a
    JSON file of modules and devices. Raises ModelError for any other file."""
    if not told or told in BALANCED:
        return (told,) if told else ()
    try:
        modules = json.loads(Path(told).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The device map {told} cannot be read ({first_line(error)}): give a JSON file such as "
            f'{{"": "cpu"}}, or one of {", ".join(BALANCED)}.'
        ) from error
    is_map = isinstance(modules, dict) and all(
        isinstance(place, str | int) for place in modules.values()
    )
    if not is_map or not modules:
        raise ModelError(
            f"The device map {told} is no JSON object of modules and their devices, such as "
            '{"model.embed_tokens": "cpu", "model.layers.0": "disk"}.'
        )
    return tuple(f"{module} {place}" for module, place in modules.items())


def usable_device(name: str) -> torch.device:
    """Return a device that can hold tensors here. Raises ModelError for any other."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" holds nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"Device {name!r} cannot be used here ({first_line(error)}): choose cpu, or cuda "
            "with a CUDA build of torch and a GPU; an existing store has it in cedit.toml, under "
            "[model]."
        ) from error
    return device
