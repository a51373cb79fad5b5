"""The vector index: a FAISS cache that can always be made again from the journal.

Knows vectors, the ids that its caller gives them, and the journal position that it stands for.
Leaves the meaning of the vectors, and making them again, to its caller: an index that does not fit
exactly is not loaded. FAISS itself notices neither a flipped bit nor an id that comes twice.

Small indexes are searched whole. From ``CROSSOVER`` vectors on, each has a short code beside it as
well (a product quantisation of four bits for every few dimensions; Jégou et al. 2011, scanned in
registers as André et al. 2017 do): all codes are scanned, and the ``SHORTLIST`` of the best is
scored in full (`benchmarks.vectors` measures both).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store import canonical, durable
from store.errors import StoreError

if TYPE_CHECKING:
    from torch import Tensor

CROSSOVER = 32_000  # vectors: searching so many whole takes some milliseconds
SHORTLIST = 1000  # vectors scored in full, among all with codes
RECALL_MIN = 0.995  # of the nearest vector, for inputs of cosine `NEAR` with a stored vector
NEAR = 0.9
GROWTH_MAX = 4  # how far an index grows before its codes are made anew

_FORMAT = 2
_CODED_DIMENSIONS = 6  # dimensions that share four bits, at least
_TRAINING_MAX = 50_000  # vectors
_SAMPLE = 256  # inputs on which the recall is measured
_SEED = 0
_END = b"\n"
_LINE_MAX = 4096  # bytes: the lines before the vectors are short


class VectorError(StoreError):
    """Vectors or ids that an index can't take."""


@dataclass(frozen=True)
class Stamp:
    """The place in the journal that an index stands for, and the encoder of its vectors."""

    seq: int
    revision: str
    encoder: str  # fingerprint


@dataclass(frozen=True)
class Description:
    """The description in the file of an index."""

    seq: int  # the place in the journal that it stands for
    revision: str
    count: int  # vectors
    recall: float | None  # of its codes, measured when they were made; None without codes


@dataclass(frozen=True)
class Nearest:
    """The best k of each query, best first."""

    ids: Tensor  # [q, k] int64
    scores: Tensor  # [q, k] float32: inner products


def describe(path: Path) -> Description | None:
    """Read the description of an index; None if there is no file or its beginning is damaged.

    Reads no vector, and checks none: `load` finds out whether the index fits.
    """
    try:
        with path.open("rb") as file:
            file.readline(_LINE_MAX)  # the checksum
            meta = canonical.loads(file.readline(_LINE_MAX))
        return Description(meta["seq"], meta["revision"], meta["count"], meta["recall"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


class VectorIndex:
    """Vectors by id, searched by inner product; on a GPU where FAISS finds one."""

    def __init__(self, width: int, crossover: int | None = CROSSOVER) -> None:
        """Make an empty index. From `crossover` vectors on there are codes; None: never."""
        faiss = _faiss()
        self.width = width
        self._crossover = crossover
        self._index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(width))
        self._ids: set[int] = set()
        self._codes: Any = None  # in the order of the vectors
        self.recall: float | None = None  # of the codes, measured when they were made
        self._retry_at = crossover
        self._on_gpu: Any = None

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, identity: object) -> bool:
        return identity in self._ids

    @property
    def is_exact(self) -> bool:
        """True if every vector is scored in full."""
        return self._codes is None

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
            self._make_codes()
        elif self._codes is not None:
            self._codes.add(_floats(vectors))

    def remove(self, ids: Sequence[int]) -> None:
        """Drop vectors. Raises ``VectorError``, and drops none, for an id that isn't there."""
        if missing_ids := set(ids) - self._ids:
            raise VectorError(f"the vector index has no id {min(missing_ids)}: it can't be removed")
        if not ids:
            return
        numbers = _integers(ids)
        places = _places_of(numbers, self._numbers())
        self._index.remove_ids(numbers)
        if self._codes is not None:
            self._remove_codes(places)
        self._ids.difference_update(ids)
        self._on_gpu = None

    def search(self, queries: Tensor, k: int) -> Nearest:
        """Return the k nearest of each query [q, d]; fewer where there are fewer vectors.

        Raises ``VectorError`` for queries of another width, with NaN or Inf.
        """
        import torch

        self._require_fitting("query", queries)
        count = min(k, len(self))
        if not count or not len(queries):
            shape = (len(queries), count)
            return Nearest(torch.empty(shape, dtype=torch.int64), torch.empty(shape))
        on_gpu = self._on_gpus()
        if on_gpu is None and self._codes is not None and 2 * count <= SHORTLIST <= len(self):
            hits = [self._among_best(query, count) for query in _floats(queries)]
            scores, ids = (torch.stack(part) for part in zip(*hits, strict=True))
        else:
            index = self._index if on_gpu is None else on_gpu
            result = index.search(_floats(queries), count)
            scores, ids = map(torch.from_numpy, result)
        assert (ids >= 0).all()
        return Nearest(ids, scores)

    def _among_best(self, query: Any, count: int) -> tuple[Tensor, Tensor]:
        """Return scores and ids [count] of the nearest to a query [d] among the best codes."""
        import torch

        places = self._codes.search(query[None], SHORTLIST)[1][0]
        places.sort()  # the first of equally near ones wins, as in a whole search
        scores = torch.from_numpy(self._vectors()[places] @ query)
        top_scores, column = scores.topk(count)
        return top_scores, torch.from_numpy(self._numbers()[places[column.numpy()]])

    def save(self, path: Path, stamp: Stamp) -> None:
        """Write the index with its stamp. Raises StoreFull or StorageFault."""
        faiss = _faiss()
        vectors = faiss.serialize_index(self._index).tobytes()
        codes = b"" if self._codes is None else faiss.serialize_index(self._codes).tobytes()
        meta = {
            **asdict(stamp),
            "format": _FORMAT,
            "width": self.width,
            "count": len(self),
            "codes_bytes": len(codes),
            "recall": self.recall,
            "retry_at": self._retry_at,
        }
        body = canonical.dumps(meta) + _END + codes + vectors
        durable.write_durably(path, canonical.digest(body).encode() + _END + body)

    @classmethod
    def load(
        cls, path: Path, stamp: Stamp, width: int, count: int, crossover: int | None = CROSSOVER
    ) -> VectorIndex | None:
        """Load the index at this path if it is whole and fits all arguments; else return None.

        None says: make it anew. A file that is missing, torn or damaged, or has another place in
        the journal, encoder, width or count, gives None alike.
        """
        content = _read(path)
        if content is None:
            return None
        meta, payload = content
        header = {**asdict(stamp), "format": _FORMAT, "width": width, "count": count}
        if any(meta.get(name) != value for name, value in header.items()):
            return None
        index = cls(width, crossover)
        split = meta["codes_bytes"]
        if not index._takes(payload[split:], count):
            return None
        if crossover is not None:
            index._retry_at = meta["retry_at"]
            if split and not index._takes_codes(payload[:split], meta["recall"]):
                return None
        return index

    def _takes(self, payload: bytes, count: int) -> bool:
        """Take over these bytes as the index, and tell whether it is one of `count` vectors."""
        index = _deserialized(payload)
        if index is None:
            return False
        self._index = index
        self._ids = set(self._numbers().tolist())
        sizes: tuple[int, int, int] = (index.d, index.ntotal, len(self._ids))
        return sizes == (self.width, count, count)

    def _takes_codes(self, payload: bytes, recall: float) -> bool:
        """Take over these bytes as the codes, and tell whether they are one for each vector."""
        self._codes, self.recall = _deserialized(payload), recall
        return self._codes is not None and bool(self._codes.ntotal == len(self))

    def _on_gpus(self) -> Any:
        """Return the index's copy on the GPUs, if there are any: they search the whole of it."""
        faiss = _faiss()
        if self._on_gpu is None and getattr(faiss, "get_num_gpus", lambda: 0)():
            self._on_gpu = faiss.index_cpu_to_all_gpus(self._index)
        return self._on_gpu

    def _make_codes(self) -> None:
        """Make a code for every vector; drop them all if their recall is under ``RECALL_MIN``."""
        import numpy

        vectors = self._vectors()
        random = numpy.random.default_rng(_SEED)
        count = min(len(vectors), _TRAINING_MAX)
        codes = _quantiser(self.width)
        codes.train(vectors[numpy.sort(random.choice(len(vectors), count, replace=False))])
        codes.add(vectors)
        self._codes, self._retry_at = codes, GROWTH_MAX * len(vectors)
        self.recall = self._measured()
        if self.recall < RECALL_MIN:
            self._codes = self.recall = None

    def _remove_codes(self, places: Any) -> None:
        """Drop the codes at these places; the vectors have gone before.

        FAISS writes a new code over the remains of a removed one in the last block of codes. So the
        last block is emptied, and filled anew.
        """
        import numpy

        self._codes.remove_ids(places)
        count = self._codes.ntotal
        block_end = count - count % self._codes.bbs
        if block_end < count:
            self._codes.remove_ids(numpy.arange(block_end, count))
            self._codes.add(self._vectors()[block_end:])

    def _measured(self) -> float:
        """Return how often the nearest vector is found, for inputs that are near to one."""
        import torch

        inputs = torch.from_numpy(_near(self._vectors()))
        nearest_ids = torch.from_numpy(self._index.search(inputs.numpy(), 1)[1])
        return float((self.search(inputs, 1).ids == nearest_ids).float().mean())

    def _numbers(self) -> Any:
        """Return the ids [n], in the order of the vectors."""
        return _faiss().vector_to_array(self._index.id_map)

    def _vectors(self) -> Any:
        """Return the vectors [n, d], in the index's own memory."""
        faiss = _faiss()
        storage = faiss.downcast_index(self._index.index)
        buffer = faiss.rev_swig_ptr(storage.get_xb(), storage.ntotal * self.width)
        return buffer.reshape(-1, self.width)

    def _require_new(self, ids: Sequence[int], vectors: Tensor) -> None:
        self._require_fitting("vector", vectors)
        if len(ids) != len(vectors):
            raise VectorError(f"{len(ids)} ids were given for {len(vectors)} vectors")
        if len(set(ids)) != len(ids):
            raise VectorError("an id is given twice: each vector has its own")
        if clashes := self._ids.intersection(ids):
            raise VectorError(
                f"the vector index has the id {min(clashes)} already: remove it before it is added"
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


def _quantiser(width: int) -> Any:
    """Return an empty index of codes."""
    faiss = _faiss()
    dimensions = next(d for d in range(min(_CODED_DIMENSIONS, width), width + 1) if width % d == 0)
    codes = faiss.IndexPQFastScan(width, width // dimensions, 4, faiss.METRIC_INNER_PRODUCT)
    codes.pq.cp.seed = _SEED
    codes.pq.cp.min_points_per_centroid = 1  # no warning for a low crossover
    return codes


def _places_of(wanted: Any, numbers: Any) -> Any:
    """Return the places of the wanted ids among all of them."""
    import numpy

    return numpy.flatnonzero(numpy.isin(numbers, wanted))


def _deserialized(payload: bytes) -> Any:
    """Return FAISS's own index, or None for one of another version."""
    import numpy

    try:
        return _faiss().deserialize_index(numpy.frombuffer(payload, dtype=numpy.uint8))
    except RuntimeError:
        return None


def _near(vectors: Any) -> Any:
    """Return inputs [s, d] of cosine ``NEAR`` with vectors that are drawn from these."""
    import numpy

    random = numpy.random.default_rng(_SEED)
    sample = vectors[random.choice(len(vectors), min(_SAMPLE, len(vectors)), replace=False)]
    sample = sample / numpy.linalg.norm(sample, axis=1, keepdims=True).clip(1e-12)
    noise = random.standard_normal(sample.shape)
    noise -= (noise * sample).sum(1, keepdims=True) * sample
    noise /= numpy.linalg.norm(noise, axis=1, keepdims=True)
    return (NEAR * sample + (1 - NEAR**2) ** 0.5 * noise).astype(numpy.float32)


def _read(path: Path) -> tuple[dict[str, Any], bytes] | None:
    """Return the meta and FAISS's own bytes, if the checksum holds."""
    try:
        checksum, _, body = path.read_bytes().partition(_END)
    except OSError:
        return None
    if checksum != canonical.digest(body).encode():
        return None
    meta, _, payload = body.partition(_END)
    header: dict[str, Any] = canonical.loads(meta)
    return header, payload


def _floats(vectors: Tensor) -> Any:
    """Return vectors as FAISS reads them: a contiguous numpy array."""
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
