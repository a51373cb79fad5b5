"""Trains the scope that comes with the package, and measures its reliability on held-out pairs.

    python -m benchmarks.train_scope [--out continual/memory/scope.safetensors] [--seed 0]
                                     [--plots DIR] [--json OUT]

The training requests are the `learned` ones of `scope_data`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

from benchmarks import plots, tables
from benchmarks.scope_data import kinds
from benchmarks.tables import TextColumn
from continual.memory.encoder import SentenceEncoder
from continual.memory.reliability import ScopeReport
from continual.memory.trained import EMBEDDED
from continual.memory.training import train_scope

REMEMBERED = 1_000_000  # texts
COLUMNS = (
    TextColumn("chance from", "low", ".1f"),
    TextColumn("to", "high", ".1f"),
    TextColumn("pairs", "count", ",d"),
    TextColumn("mean chance", "chance", ".3f"),
    TextColumn("in scope", "share", ".3f"),
)


def draw(report: ScopeReport) -> Figure:
    """Draw the reliability curve: the share in scope over the mean chance."""
    figure = Figure(figsize=(4.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    filled = [b for b in report.reliability if b.count]
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.plot([b.chance for b in filled], [b.share for b in filled], marker="o", markersize=4)
    axes.set_xlabel("mean chance of a bin")
    axes.set_ylabel("share of it in scope")
    axes.set_title(f"{report.pairs:,} held-out pairs, F1 {report.f1:.3f}", fontsize=10)
    axes.grid(alpha=0.3)
    return figure


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--plots", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    requests = [request for kind in kinds() for request in kind.learned]
    started = time.perf_counter()
    encoder = SentenceEncoder(remembered_max=REMEMBERED)
    generator = torch.Generator().manual_seed(options.seed)
    scope, report = train_scope(requests, encoder, generator)
    tables.note(f"{len(requests):,} requests, {time.perf_counter() - started:.0f} s")
    scope.save(options.out)
    title = (
        f"Held-out pairs at threshold {report.threshold}: precision {report.precision:.3f}, "
        f"recall {report.recall:.3f}, F1 {report.f1:.3f}, calibration error "
        f"{report.calibration_error:.4f}"
    )
    record = report.to_json()
    tables.show(title, COLUMNS, record["reliability"])
    if options.plots:
        plots.save(draw(report), options.plots, "scope_reliability")
    tables.write_json(options.json, "train_scope", {"requests": len(requests), **record})


if __name__ == "__main__":
    main()
