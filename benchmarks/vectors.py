"""Measures the vector index at size: every vector scored in full, against a short list by codes.

    python -m benchmarks.vectors [--sizes 1000,10000,100000] [--near 0.95] [--real FILE]
        [--threads N] [--json OUT]

The vectors are random unit vectors of MiniLM's width; an input is a planted near-duplicate of a
vector, at the cosine `--near`. Each size is built twice: flat, and with codes. `--real` adds rows
for real texts and their rephrases; these are embedded once, in some minutes, and kept in that file.
Recall is of the nearest vector, and of the ten nearest, against the exact search. Save and load go
through the durable write.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import real_texts, tables
from benchmarks.tables import TextColumn
from store.vectors import Stamp, VectorIndex

SIZES = (1_000, 10_000, 100_000)
WIDTH = 384
INPUTS = 500
NEAR = 0.95
K = 10
NEVER = 1 << 62  # a crossover that no size reaches
STAMP = Stamp(seq=1, revision="benchmark", encoder="random")

COLUMNS = (
    TextColumn("of", "kind"),
    TextColumn("vectors", "vectors", ",d"),
    TextColumn("index", "index"),
    TextColumn("own recall", "own_recall", ".3f"),
    TextColumn("build s", "build_s", ".2f"),
    TextColumn("added per s", "added_per_s", ",.0f"),
    TextColumn("p50 ms", "p50_ms", ".3f"),
    TextColumn("p99 ms", "p99_ms", ".3f"),
    TextColumn("recall@1", "recall_1", ".3f"),
    TextColumn("recall@10", "recall_10", ".3f"),
    TextColumn("MB", "megabytes", ",.0f"),
    TextColumn("save s", "save_s", ".2f"),
    TextColumn("load s", "load_s", ".2f"),
)


def planted(vectors: Tensor, near: float, generator: torch.Generator) -> Tensor:
    """Return inputs [INPUTS, d] of this cosine with vectors drawn from `vectors` [n, d]."""
    own = vectors[torch.randperm(len(vectors), generator=generator)[:INPUTS]]
    noise = torch.randn(own.shape, generator=generator)
    noise = normalize(noise - (noise * own).sum(1, keepdim=True) * own, dim=1)
    return near * own + (1 - near**2) ** 0.5 * noise


def measure(vectors: Tensor, inputs: Tensor, exact: Tensor, crossover: int) -> Mapping[str, Any]:
    """Build an index over `vectors`, search it for `inputs`, and return a row of the table."""
    started = time.perf_counter()
    index = VectorIndex(WIDTH, crossover)
    index.add(range(len(vectors)), vectors)
    build = time.perf_counter() - started
    found, times = [], []
    for query in inputs.split(1):
        began = time.perf_counter()
        found.append(index.search(query, K).ids)
        times.append(1e3 * (time.perf_counter() - began))
    ids = torch.cat(found)
    shared = (ids.unsqueeze(2) == exact.unsqueeze(1)).any(2).float().mean()
    ordered = sorted(times)
    return {
        "vectors": len(vectors),
        "index": "flat" if index.is_exact else "codes",
        "own_recall": index.recall,
        "build_s": build,
        "added_per_s": len(vectors) / build,
        "p50_ms": ordered[len(ordered) // 2],
        "p99_ms": ordered[int(0.99 * len(ordered))],
        "recall_1": float((ids[:, 0] == exact[:, 0]).float().mean()),
        "recall_10": float(shared),
        **stored(index),
    }


def stored(index: VectorIndex) -> dict[str, float]:
    """Return the megabytes of the index on disk, and the seconds to save and load it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        started = time.perf_counter()
        index.save(path, STAMP)
        saved = time.perf_counter()
        loaded = VectorIndex.load(path, STAMP, WIDTH, len(index))
        ended = time.perf_counter()
        assert loaded is not None
        size = path.stat().st_size / 1e6
    return {"megabytes": size, "save_s": saved - started, "load_s": ended - saved}


def random_rows(sizes: Sequence[int], near: float) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of random vectors, flat and with codes at each size."""
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        vectors = normalize(torch.randn(size, WIDTH, generator=generator), dim=1)
        yield from compared("random", vectors, planted(vectors, near, generator))


def real_rows(kept: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of all real texts, asked by some of their rephrases."""
    vectors, inputs = real_texts.load(kept)
    drawn = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[:INPUTS]
    yield from compared("real texts", vectors, inputs[drawn])


def compared(kind: str, vectors: Tensor, inputs: Tensor) -> Iterator[Mapping[str, Any]]:
    """Yield two rows: flat, and with codes."""
    size = len(vectors)
    exact = (inputs @ vectors.T).topk(min(K, size), 1).indices
    for crossover in (NEVER, size):
        row = {"kind": kind, **measure(vectors, inputs, exact, crossover)}
        tables.note(f"{size:,} {kind}, {row['index']}: p50 {row['p50_ms']:.3f} ms")
        yield row


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), metavar="1000,10000,...")
    parser.add_argument("--near", type=float, default=NEAR, help="cosine of inputs")
    parser.add_argument("--real", type=Path, metavar="FILE", help="embeddings of real texts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = list(random_rows([int(size) for size in options.sizes.split(",")], options.near))
    if options.real is not None:
        rows += real_rows(options.real)
    title = f"The vector index, width {WIDTH}, inputs of cosine {options.near}"
    tables.show(title, COLUMNS, rows)
    tables.write_json(options.json, "vectors", {"near": options.near, "rows": rows})


if __name__ == "__main__":
    main()
