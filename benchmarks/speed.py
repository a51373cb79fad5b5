"""Measures the seconds of one T-Patcher edit: this engine against the paper's own loop.

    python -m benchmarks.speed [--sizes atlas,small,gpt2] [--edits N] [--device cuda]
                               [--json OUT]

Both make the same edits, from the prompt alone, on the same model with the same 40,000 queries in
memory and the same threads. An edit here is all of a step's work to plan, edit and prove: the
prompt's pass through the model, the gate, the training, the patch on the model, and the check that
the prompt is right with it. The whole step also has the commit to disk and the exact re-check of
all earlier edits.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import paper_loop, tables
from benchmarks.tables import TextColumn
from continual.anatomy import find_anatomy
from continual.atlas.facts import load_facts
from continual.base import PretrainedBase
from continual.embedded import ATLAS
from continual.model import EditedModel
from continual.new_store import NewStore, init
from continual.queries.memory import ProtectedQueries
from continual.readers import read_record
from continual.recheck.encoded_requests import EncodedRequest, encode
from continual.recheck.retention import APPLIED
from continual.requests import Request
from continual.session import Session
from continual.site import Site
from continual.step.batches import Batch
from continual.step.pipeline import Pipeline
from continual.tasks import Encoding, Question, make_task
from continual.watch.config import UNWATCHED
from store import Store

MEMORY = 40_000
WARM_UP = 40  # edits: by then single sequences go through their traced pass
RATIO_WANTED = 300.0

COLUMNS = (
    TextColumn("model", "size"),
    TextColumn("parameters", "parameters", ",d"),
    TextColumn("memory", "memory", ",d"),
    TextColumn("edits", "edits", "d"),
    TextColumn("edit, s", "edit_s", ".4f"),
    TextColumn("whole step, s", "step_s", ".4f"),
    TextColumn("right", "right", ".0%"),
    TextColumn("paper's edits", "paper_edits", "d"),
    TextColumn("paper's loop, s", "paper_s", ".2f"),
    TextColumn("its steps", "paper_steps", "d"),
    TextColumn("right", "paper_right", ".0%"),
    TextColumn("times faster", "ratio", ",.0f"),
)


@dataclass(frozen=True)
class TimedStore:
    """A store on one model, the edits to make, and the queries that have to stay silent."""

    size: str
    session: Session
    encoded_requests: tuple[EncodedRequest, ...]
    memory: Tensor  # [MEMORY, d]


@dataclass(frozen=True)
class Timing:
    """One edit of this engine."""

    edit_s: float
    step_s: float
    right: bool


@dataclass(frozen=True)
class PaperTiming:
    """The same edit by the paper's loop."""

    seconds: float
    outcome: paper_loop.PaperEdit


# --- the three models -----------------------------------------------------------------------------


@contextmanager
def atlas_case(folder: Path, edits: int, device: str) -> Iterator[TimedStore]:
    """Yield the embedded model with its own corrections; memory is its training text."""
    lines = ATLAS.corrections.read_text(encoding="utf-8").splitlines()[:edits]
    read = [request for line in lines for request in read_record(json.loads(line))]
    requests = [request.model_copy(update={"rephrases": ()}) for request in read]  # prompt alone
    with init(folder / "atlas", NewStore(device=device, watch=UNWATCHED)) as session:
        encoded_requests = tuple(encode(request, session.task) for request in requests)
        yield TimedStore(
            "atlas, 4 x 192", session, encoded_requests, _atlas_memory(session, requests)
        )


def _atlas_memory(session: Session, requests: Sequence[Request]) -> Tensor:
    """Return queries of the training probes, then of statements of facts without a correction."""
    corrected = {(request.subject, request.relation) for request in requests}
    facts = [f for f in load_facts() if (f.subject, f.relation.name) not in corrected]
    statements = [(prompt, fact.object) for fact in facts for prompt in fact.prompts]
    random.Random(0).shuffle(statements)
    queries = session.run_state.memory.training
    encodings: list[Encoding] = []
    missing = MEMORY - len(queries)
    while missing > 0:
        encodings.append(session.task.encode(*statements.pop()))
        missing -= len(encodings[-1].targets)
    return torch.cat([queries, session.site.rows_in_passes(encodings).query])[:MEMORY]


@contextmanager
def random_case(
    folder: Path, size: str, config: GPT2Config, edits: int, device: str
) -> Iterator[TimedStore]:
    """Yield a GPT-2 with random weights: prompts of twelve random tokens, answers of two."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval().requires_grad_(False).to(device)
    base = PretrainedBase(model, Numerals(), find_anatomy(model), fingerprint="0" * 64)
    settings = {"task": {"name": "causal"}, "run": {"seed": 0}}
    store = Store.init(folder / size, settings, {"probes": {}}, base.fingerprint)
    draw = random.Random(0)
    with Session(store, EditedModel(base), make_task(base, {})) as session:
        requests = [_random_request(draw, config.vocab_size) for _ in range(edits)]
        encoded_requests = tuple(encode(request, session.task) for request in requests)
        yield TimedStore(size, session, encoded_requests, _random_memory(session.site, draw))


class Numerals:
    """A tokenizer for models without a language: the token 17 is written "17"."""

    pad_token_id = 0

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """Return the numerals of these tokens."""
        return " ".join(map(str, ids))


def _random_request(draw: random.Random, vocabulary: int) -> Request:
    prompt, target = ([str(draw.randrange(vocabulary)) for _ in range(n)] for n in (12, 2))
    return Request(prompt=" ".join(prompt), target_new=" ".join(target))


def _random_memory(site: Site, draw: random.Random, length: int = 64) -> Tensor:
    """Return the queries of random token sequences, at every position."""
    vocabulary = site.edited.model.config.vocab_size
    places = tuple(range(length))
    drawn = [tuple(draw.randrange(vocabulary) for _ in places) for _ in range(MEMORY // length)]
    sequences = [Encoding(Question(ids[:1]), places, (*ids[1:], ids[0])) for ids in drawn]
    return site.rows_in_passes(sequences).query


def _config(blocks: int, width: int, heads: int, vocabulary: int) -> GPT2Config:
    return GPT2Config(
        n_layer=blocks, n_embd=width, n_head=heads, vocab_size=vocabulary, n_positions=1024
    )


SIZES: dict[str, Callable[[Path, int, str], Any]] = {
    "atlas": atlas_case,
    "small": lambda folder, edits, device: random_case(
        folder, "random, 6 x 256", _config(6, 256, 4, 8192), edits, device
    ),
    "gpt2": lambda folder, edits, device: random_case(
        folder, "random, 12 x 768", _config(12, 768, 12, 50_257), edits, device
    ),
}
PAPER_EDITS = {"atlas": 30, "small": 10, "gpt2": 3}


# --- timing ---------------------------------------------------------------------------------------


def time_ours(case: TimedStore) -> list[Timing]:
    """Time every edit in the engine's own pipeline, one step each."""
    session = case.session
    session.run_state.memory = ProtectedQueries(case.memory)
    pipeline = Pipeline(session.store, session.site, session.run_state, session.settings())
    timings = []
    for encoded_request in case.encoded_requests:
        started = time.perf_counter()
        step = pipeline.step(Batch((encoded_request,)))
        whole = time.perf_counter() - started
        right = step.outcomes[0].outcome == APPLIED
        timings.append(Timing(step.edit_s - step.commit_s, whole, right))
    return timings


def time_paper(case: TimedStore, edits: int) -> list[PaperTiming]:
    """Time the first edits in the paper's loop, each on the bare model."""
    torch.manual_seed(0)
    timings = []
    with case.session.edited.before_last_neurons():
        for encoded_request in case.encoded_requests[:edits]:
            encoding = encoded_request.learned[0]
            example = paper_loop.EditTokens(encoding.ids, encoding.positions, encoding.targets)
            started = time.perf_counter()
            outcome = paper_loop.edit(case.session.model, example, case.memory)
            timings.append(PaperTiming(time.perf_counter() - started, outcome))
            tables.note(f"{case.size}: paper's loop {timings[-1].seconds:.1f} s, {outcome}")
    return timings


def summary(
    case: TimedStore, ours: Sequence[Timing], paper: Sequence[PaperTiming]
) -> dict[str, Any]:
    """Return one row of the table: medians over the edits; for the ratio, over the paired edits."""
    ratios = [p.seconds / o.edit_s for o, p in zip(ours, paper, strict=False)]
    return {
        "size": case.size,
        "parameters": sum(p.numel() for p in case.session.model.parameters()),
        "memory": len(case.memory),
        "edits": len(ours),
        "edit_s": statistics.median(o.edit_s for o in ours),
        "step_s": statistics.median(o.step_s for o in ours),
        "right": statistics.mean(o.right for o in ours),
        "paper_edits": len(paper),
        "paper_s": statistics.median(p.seconds for p in paper),
        "paper_steps": int(statistics.median(p.outcome.steps for p in paper)),
        "paper_right": statistics.mean(p.outcome.right for p in paper),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "ratio_wanted": RATIO_WANTED,
    }


def measure(name: str, edits: int, paper_edits: int, device: str) -> dict[str, Any]:
    """Time both on one model; the engine's first edits, which warm up, do not count."""
    made = edits + WARM_UP
    with tempfile.TemporaryDirectory() as folder, SIZES[name](Path(folder), made, device) as case:
        tables.note(f"{case.size}: {len(case.memory):,} queries in memory")
        ours = time_ours(case)[WARM_UP:]
        counted = TimedStore(case.size, case.session, case.encoded_requests[WARM_UP:], case.memory)
        return summary(counted, ours, time_paper(counted, paper_edits))


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default=",".join(SIZES), help="which of: %(default)s")
    parser.add_argument("--edits", type=int, default=50, help="edits of ours at each size")
    parser.add_argument("--paper-edits", type=int, help="edits of the paper's loop at each size")
    parser.add_argument("--device", default="cpu", help="where the model is (default: cpu)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [
        measure(name, options.edits, options.paper_edits or PAPER_EDITS[name], options.device)
        for name in options.sizes.split(",")
    ]
    tables.show("Seconds per edit: this engine and the paper's loop (medians)", COLUMNS, rows)
    tables.write_json(options.json, "speed", {"sizes": rows})


if __name__ == "__main__":
    main()
