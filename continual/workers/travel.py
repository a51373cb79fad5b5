"""Functions, items and results as bytes, for another process that holds the same model.

The model and its parts go by name: the edited model, its site and task, its tokenizer, any of its
modules; so does an open store, by its path. The other process puts its own in their places. Tensors
go with their bits; everything else as pickle has it. An object that belongs to this process alone
(another model, a function within a function) cannot travel: NotPortable. The bytes come from
processes that this package started, and go to them; they are not read from anywhere else.
"""

from __future__ import annotations

import io
import pickle
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from continual.base import PretrainedBase
from continual.model import EditedModel
from continual.model.states import tensor_bytes
from continual.site import Site
from continual.task_model import TaskModel
from continual.tasks import Task
from store import Store


class NotPortable(Exception):
    """An object that only this process has."""


class Residents:
    """The model and its parts, which each process has for itself, by name."""

    def __init__(self) -> None:
        self.edited: EditedModel | None = None
        self.task: Task | None = None
        self._stores: dict[str, Store] = {}

    @classmethod
    def of(cls, edited: EditedModel, task: Task | None = None) -> Residents:
        """Return the residents of a model, with its task if that stays, too."""
        residents = cls()
        residents.edited, residents.task = edited, task
        return residents

    @cached_property
    def site(self) -> Site:
        """The model's site, the same at each call: what it remembers of a state is used again."""
        assert self.edited is not None and self.task is not None
        return Site(self.edited, self.task)

    def store(self, path: Path) -> Store:
        """Return a store, open for reading: once in this process, as its journal asks for."""
        name = str(path.absolute())
        if name not in self._stores:
            self._stores[name] = Store.open(path)
        return self._stores[name]

    def close(self) -> None:
        """Close the stores."""
        for store in self._stores.values():
            store.close()
        self._stores.clear()

    @cached_property
    def _paths(self) -> dict[int, str]:
        """The paths of the model's modules, by their identity."""
        assert self.edited is not None
        return {id(module): path for path, module in self.edited.model.named_modules()}

    def name(self, obj: Any) -> tuple[str, ...] | None:
        """Return the name of an object that stays; None for one that travels. The first model that
        is named is the residents' own, if they have none yet. Raises NotPortable for a part of
        another one."""
        if isinstance(obj, TaskModel):
            self._require(type(obj) in (Site, TaskModel), obj)
            self._take(obj.edited, obj.task)
            return ("site",)
        if isinstance(obj, EditedModel):
            self._take(obj, None)
            return ("edited",)
        if isinstance(obj, PretrainedBase):
            self._require(self.edited is not None and obj is self.edited.base, obj)
            return ("base",)
        if isinstance(obj, PreTrainedTokenizerBase):
            self._require(self.edited is not None and obj is self.edited.tokenizer, obj)
            return ("tokenizer",)
        if isinstance(obj, Store):
            return ("store", str(obj.path.absolute()))
        if isinstance(obj, nn.Module):
            self._require(self.edited is not None and id(obj) in self._paths, obj)
            return ("module", self._paths[id(obj)])
        if self.edited is not None and obj is self.edited.decode:
            return ("decode",)
        return ("task",) if obj is not None and obj is self.task else None

    def get(self, name: tuple[str, ...]) -> Any:
        """Return the object with a name in this process."""
        kind, *path = name
        if kind == "store":
            return self.store(Path(path[0]))
        edited = self.edited
        assert edited is not None
        if kind == "module":
            return edited.model.get_submodule(path[0])
        if kind in ("site", "task"):
            return self.site if kind == "site" else self.task
        return {
            "edited": edited,
            "base": edited.base,
            "tokenizer": edited.tokenizer,
            "decode": edited.decode,
        }[kind]

    def _take(self, edited: EditedModel, task: Task | None) -> None:
        if self.edited is None:
            self.edited = edited
        if self.task is None:
            self.task = task
        is_same = edited is self.edited and (task is None or task is self.task)
        self._require(is_same, edited)

    @staticmethod
    def _require(holds: bool, obj: Any) -> None:
        if not holds:
            raise NotPortable(f"{type(obj).__name__}, which only this process has")


class _Packer(pickle.Pickler):
    """Pickles with names for the residents, and with the bits of tensors."""

    def __init__(self, file: io.BytesIO, residents: Residents) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._residents = residents

    def persistent_id(self, obj: Any) -> Any:
        """Return the name of a resident; None for anything else."""
        return self._residents.name(obj)

    def reducer_override(self, obj: Any) -> Any:
        """Reduce a tensor to its bits."""
        if not isinstance(obj, Tensor):
            return NotImplemented
        if type(obj) is not Tensor or obj.requires_grad or obj.layout is not torch.strided:
            raise NotPortable(f"{type(obj).__name__} that is part of a computation")
        place = None if obj.device.type == "cpu" else str(obj.device)
        return _tensor, (tensor_bytes(obj), obj.dtype, tuple(obj.shape), place)


class _Unpacker(pickle.Unpickler):
    """Unpickles with this process's residents."""

    def __init__(self, file: io.BytesIO, residents: Residents) -> None:
        super().__init__(file)
        self._residents = residents

    def persistent_load(self, pid: Any) -> Any:
        """Return the resident with a name."""
        return self._residents.get(pid)


def packed(obj: Any, residents: Residents) -> bytes:
    """Return an object as bytes. Raises NotPortable if it cannot travel."""
    file = io.BytesIO()
    try:
        _Packer(file, residents).dump(obj)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise NotPortable(str(error)) from error
    return file.getvalue()


def unpacked(data: bytes, residents: Residents) -> Any:
    """Return the object of `packed`, with this process's residents in it."""
    return _Unpacker(io.BytesIO(data), residents).load()


def _tensor(data: bytes, dtype: torch.dtype, shape: tuple[int, ...], place: str | None) -> Tensor:
    """Return a tensor with these bits, in memory of torch's own."""
    flat = torch.empty(0, dtype=dtype)
    if data:
        flat = torch.frombuffer(bytearray(data), dtype=dtype).clone()
    tensor = flat.reshape(shape)
    return tensor if place is None else tensor.to(place)


def packed_error(error: BaseException) -> bytes:
    """Return an exception as bytes; as a RuntimeError with its text if its class cannot travel."""
    state = {name: value for name, value in vars(error).items() if name != "__notes__"}
    try:
        data = pickle.dumps((_error, (type(error), error.args, state)))
        pickle.loads(data)
    except Exception:
        data = pickle.dumps((_error, (RuntimeError, (f"{type(error).__name__}: {error}",), {})))
    return data


def unpacked_error(data: bytes) -> BaseException:
    """Return the exception of `packed_error`."""
    make, args = pickle.loads(data)
    error: BaseException = make(*args)
    return error


def _error(
    kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]
) -> BaseException:
    """Make an exception as it was, without calling its constructor, which may take other
    arguments."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error
