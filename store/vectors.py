"""The vector index: a FAISS cache that can always be made again from what the journal says.

Knows vectors, the ids that its caller gives them, and the journal position that it stands for.
Leaves what the vectors mean, and making them again, to its caller: whatever does not fit exactly
is not loaded. FAISS itself notices neither a flipped bit nor an id that comes twice.

Small indexes are searched whole; from ``CROSSOVER`` vectors on by inverted lists, as many as the
recall asks for (`benchmarks.vectors` measures both).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store import canonical, durable
from store.errors import StoreError

if TYPE_CHECKING:
    from torch import Tensor

CROSSOVER = 100_000  # vectors
RECALL_MIN = 0.995  # of the nearest vector, for inputs of cosine `NEAR` with one that is kept
NEAR = 0.9
GROWTH_MAX = 4  # how far an index grows before its lists are made anew

_FORMAT = 1
_LISTS_PER_ROOT = 2  # lists = 2 √n
_TRAINING_PER_LIST = 64  # vectors
_ITERATIONS = 10
_SAMPLE = 256  # inputs on which the recall is measured
_SEED = 0
_END = b"\n"


class VectorError(StoreError):
    """Vectors or ids that an index can't take."""


@dataclass(frozen=True)
class Stamp:
    """What an index stands for: a place in the journal, and the encoder of its vectors."""

    seq: int
    revision: str
    encoder: str  # fingerprint


@dataclass(frozen=True)
class Nearest:
    """The best k of each query, best first."""

    ids: Tensor  # [q, k] int64
    scores: Tensor  # [q, k] float32: inner products


class VectorIndex:
    """Vectors by id, searched by inner product; on a GPU where FAISS finds one."""

    def __init__(self, width: int, crossover: int | None = CROSSOVER) -> None:
        """`crossover`: from how many on there are lists; None: never."""
        faiss = _faiss()
        self.width = width
        self._crossover = crossover
        self._index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(width))
        self._ids: set[int] = set()
        self._made_at = 0  # vectors from which the lists were made; 0 without lists
        self._retry_at = crossover
        self._on_gpu: Any = None

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, identity: object) -> bool:
        return identity in self._ids

    @property
    def is_exact(self) -> bool:
        """Whether every vector is looked at."""
        return self._made_at == 0

    @property
    def lists(self) -> int | None:
        """How many inverted lists there are."""
        return None if self.is_exact else int(self._index.nlist)

    @property
    def probed(self) -> int | None:
        """How many of them are looked at."""
        return None if self.is_exact else int(self._index.nprobe)

    def add(self, ids: Sequence[int], vectors: Tensor) -> None:
        """Take in vectors [n, d]. Raises ``VectorError``, and takes in none, for an id that is
        negative, comes twice or is there, and for vectors of another width, with NaN or Inf."""
        self._require_new(ids, vectors)
        if not ids:
            return
        self._index.add_with_ids(_floats(vectors), _integers(ids))
        self._ids.update(ids)
        self._on_gpu = None
        if self._retry_at is not None and len(self) >= self._retry_at:
            self._make_lists()

    def remove(self, ids: Sequence[int]) -> None:
        """Drop vectors. Raises ``VectorError``, and drops none, for an id that isn't there."""
        if missing := set(ids) - self._ids:
            raise VectorError(f"the vector index has no id {min(missing)}: it can't be removed")
        if not ids:
            return
        self._index.remove_ids(_integers(ids))
        self._ids.difference_update(ids)
        self._on_gpu = None

    def search(self, queries: Tensor, k: int) -> Nearest:
        """The k nearest of each query [q, d]; fewer where there are fewer vectors.

        Raises ``VectorError`` for queries of another width, with NaN or Inf.
        """
        import torch

        self._require_fitting("query", queries)
        count = min(k, len(self))
        if not count or not len(queries):
            shape = (len(queries), count)
            return Nearest(torch.empty(shape, dtype=torch.int64), torch.empty(shape))
        scores, ids = self._searched().search(_floats(queries), count)
        short = (ids < 0).any(1)  # the lists that were looked at hold fewer
        if short.any():
            whole = _faiss().SearchParametersIVF(nprobe=self._index.nlist)
            scores[short], ids[short] = self._index.search(
                _floats(queries)[short], count, params=whole
            )
        assert (ids >= 0).all()
        return Nearest(torch.from_numpy(ids), torch.from_numpy(scores))

    def save(self, path: Path, stamp: Stamp) -> None:
        """Write it as standing for this place. Raises StoreFull or StorageFault."""
        payload = _faiss().serialize_index(self._index).tobytes()
        meta = {
            **asdict(stamp),
            "format": _FORMAT,
            "width": self.width,
            "count": len(self),
            "made_at": self._made_at,
            "retry_at": self._retry_at,
        }
        body = canonical.dumps(meta) + _END + payload
        durable.write_durably(path, canonical.digest(body).encode() + _END + body)

    @classmethod
    def load(
        cls, path: Path, stamp: Stamp, width: int, count: int, crossover: int | None = CROSSOVER
    ) -> VectorIndex | None:
        """The index at this path if it is whole and stands for just this; else None.

        None says: make it anew. That it is missing, torn, damaged, of another place in the
        journal, another encoder, width or count makes no difference.
        """
        read = _read(path)
        if read is None:
            return None
        meta, payload = read
        wanted = {**asdict(stamp), "format": _FORMAT, "width": width, "count": count}
        if any(meta.get(name) != value for name, value in wanted.items()):
            return None
        if crossover is None and meta["made_at"]:
            return None  # it has lists
        loaded = cls(width, crossover)
        loaded._made_at = meta["made_at"]
        loaded._retry_at = None if crossover is None else meta["retry_at"]
        return loaded if loaded._takes(payload, count) else None

    def _takes(self, payload: bytes, count: int) -> bool:
        """Whether these bytes are an index of so many vectors; then it is this one's."""
        import numpy

        faiss = _faiss()
        try:
            self._index = faiss.deserialize_index(numpy.frombuffer(payload, dtype=numpy.uint8))
        except RuntimeError:  # of another version of FAISS
            return False
        self._ids = {identity for ids, _ in self._contents() for identity in ids.tolist()}
        found: tuple[int, int, int] = (self._index.d, self._index.ntotal, len(self._ids))
        return found == (self.width, count, count)

    def _searched(self) -> Any:
        """What is searched: the index, or its copy on a GPU."""
        faiss = _faiss()
        if not getattr(faiss, "get_num_gpus", lambda: 0)():
            return self._index
        if self._on_gpu is None:
            self._on_gpu = faiss.index_cpu_to_all_gpus(self._index)
        return self._on_gpu

    def _make_lists(self) -> None:
        """Inverted lists, of which so many are looked at that the recall suffices; where that
        would be most of them, everything is looked at."""
        import numpy

        faiss = _faiss()
        parts = list(self._contents())
        ids = numpy.concatenate([part[0] for part in parts])
        vectors = numpy.concatenate([part[1] for part in parts])
        lists = int(_LISTS_PER_ROOT * len(ids) ** 0.5)
        index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(self.width), self.width, lists, faiss.METRIC_INNER_PRODUCT
        )
        index.cp.niter, index.cp.seed = _ITERATIONS, _SEED
        index.cp.max_points_per_centroid = _TRAINING_PER_LIST
        index.cp.spherical = True
        index.cp.min_points_per_centroid = 1  # no warning for a low crossover
        index.train(vectors)
        index.add_with_ids(vectors, ids)
        self._retry_at = GROWTH_MAX * len(ids)
        probed = _enough(index, ids, vectors)
        if probed is not None:
            index.nprobe = probed
            self._index, self._made_at = index, len(ids)
        elif not self.is_exact:
            self._index, self._made_at = _flat(ids, vectors), 0
        self._on_gpu = None

    def _contents(self) -> Iterator[tuple[Any, Any]]:
        """Ids [n] and vectors [n, d], in parts."""
        faiss = _faiss()
        if hasattr(self._index, "invlists"):
            yield from _listed(self._index)
        else:
            flat = faiss.downcast_index(self._index.index)
            ids = faiss.vector_to_array(self._index.id_map)
            yield ids, flat.reconstruct_n(0, flat.ntotal).reshape(-1, self.width)

    def _require_new(self, ids: Sequence[int], vectors: Tensor) -> None:
        self._require_fitting("vector", vectors)
        if len(ids) != len(vectors):
            raise VectorError(f"{len(ids)} ids were given for {len(vectors)} vectors")
        if len(set(ids)) != len(ids):
            raise VectorError("an id is given twice: each vector has its own")
        if known := self._ids.intersection(ids):
            raise VectorError(
                f"the vector index has the id {min(known)} already: remove it before it is added"
            )
        if ids and min(ids) < 0:
            raise VectorError(f"{min(ids)} is no id: ids are 0 and up")

    def _require_fitting(self, what: str, vectors: Tensor) -> None:
        if vectors.ndim != 2 or vectors.shape[1] != self.width:
            raise VectorError(
                f"a {what} of the shape {list(vectors.shape)} does not fit an index of width "
                f"{self.width}: give [n, {self.width}]"
            )
        if not vectors.isfinite().all():
            raise VectorError(f"a {what} holds NaN or Inf: its encoder is damaged")


def _enough(index: Any, ids: Any, vectors: Any) -> int | None:
    """How many lists to look at for ``RECALL_MIN``; None if a quarter of them is too few."""
    faiss = _faiss()
    inputs = _near(vectors)
    wanted = ids[faiss.knn(inputs, vectors, 1, faiss.METRIC_INNER_PRODUCT)[1][:, 0]]
    for probed in _steps(max(1, index.nlist // 4)):
        found = index.search(inputs, 1, params=faiss.SearchParametersIVF(nprobe=probed))[1][:, 0]
        if (found == wanted).mean() >= RECALL_MIN:
            return probed
    return None


def _steps(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, …"""
    powers = [1 << power for power in range(most.bit_length())]
    return sorted({step for power in powers for step in (power, 3 * power) if step <= most})


def _near(vectors: Any) -> Any:
    """Inputs [s, d] of cosine ``NEAR`` with vectors that are drawn from these."""
    import numpy

    random = numpy.random.default_rng(_SEED)
    own = vectors[random.choice(len(vectors), min(_SAMPLE, len(vectors)), replace=False)]
    own = own / numpy.linalg.norm(own, axis=1, keepdims=True).clip(1e-12)
    noise = random.standard_normal(own.shape)
    noise -= (noise * own).sum(1, keepdims=True) * own
    noise /= numpy.linalg.norm(noise, axis=1, keepdims=True)
    return (NEAR * own + (1 - NEAR**2) ** 0.5 * noise).astype(numpy.float32)


def _flat(ids: Any, vectors: Any) -> Any:
    faiss = _faiss()
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(vectors.shape[1]))
    index.add_with_ids(vectors, ids)
    return index


def _listed(index: Any) -> Iterator[tuple[Any, Any]]:
    """Ids and vectors of each inverted list that has any."""
    import numpy

    faiss = _faiss()
    for place in range(index.nlist):
        size = index.invlists.list_size(place)
        if size:
            ids = faiss.rev_swig_ptr(index.invlists.get_ids(place), size).copy()
            codes = faiss.rev_swig_ptr(index.invlists.get_codes(place), size * index.code_size)
            yield ids, codes.copy().view(numpy.float32).reshape(size, index.d)


def _read(path: Path) -> tuple[dict[str, Any], bytes] | None:
    """The meta and FAISS's own bytes, if the checksum holds."""
    try:
        checksum, _, body = path.read_bytes().partition(_END)
    except OSError:
        return None
    if checksum != canonical.digest(body).encode():
        return None
    meta, _, payload = body.partition(_END)
    read: dict[str, Any] = canonical.loads(meta)
    return read, payload


def _floats(vectors: Tensor) -> Any:
    """As FAISS reads them: a contiguous numpy array."""
    return vectors.detach().float().cpu().contiguous().numpy()


def _integers(ids: Sequence[int]) -> Any:
    import numpy

    return numpy.array(ids, dtype=numpy.int64)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise StoreError(
            "the package faiss is missing: `pip install 'cedit[cpu]'`, or 'cedit[gpu]'"
        ) from error
    return faiss
