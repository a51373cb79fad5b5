"""Measures the seconds of one MEMIT batch: this engine against the straightforward loop.

    python -m benchmarks.memit_speed [--requests 1000] [--large-requests 20] [--sizes atlas,gpt2]
                                     [--rules "our steps,Adam"] [--device cuda] [--chunk N]
                                     [--threads N] [--json OUT]

Both make the same edits with the same objective, stop rule, most steps, contexts, keys, lambda,
blocks, clamp and key statistics, from the prompts alone, on the same model in one process. The loop
is as published: one request at a time, a full forward pass over its contexts at every step, dense
float64 solves. It runs twice: by the engine's steps, which lead to the same values, so that the
ratio is due to the passes alone; and by Adam at the published rate, which leads to others. The
table has the mean steps of a request: their ratio is the step rule's part. The engine's step also
has the proof of every edit, the commit, and the exact re-check of all probes. CounterFact's scores
are taken after each, over the same phrasings and neighbours.
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import memit_loop, tables
from benchmarks.capacity import UNBOUNDED, requests_of_atlas
from benchmarks.scores import drawn, scores
from benchmarks.speed import Numerals
from benchmarks.tables import TextColumn
from continual.anatomy import find_anatomy
from continual.atlas.corpus import TERMINATOR
from continual.base import PretrainedBase
from continual.editors.memit import Memit, MemitConfig
from continual.editors.memit.config import MOMENT_SHARE
from continual.locate_then_edit import editor as locate_then_edit
from continual.locate_then_edit.config import default_blocks
from continual.model import EditedModel
from continual.new_store import NewStore, init
from continual.requests import Request
from continual.session import Session
from continual.step.pipeline import Step
from continual.tasks import make_task
from continual.watch.config import UNWATCHED
from store import Store

RATIO_WANTED = 20.0
WARM_UP = 4  # requests
TEXT_TOKENS = 8192  # of the random model's statistics

SCORES = ("ES", "PS", "NS")
COLUMNS = (
    TextColumn("model", "size"),
    TextColumn("requests", "requests", ",d"),
    TextColumn("way", "way"),
    TextColumn("steps", "steps", ".1f"),
    TextColumn("targets, s", "targets_s", ",.1f"),
    TextColumn("keys, s", "keys_s", ",.2f"),
    TextColumn("solve, s", "solve_s", ",.2f"),
    TextColumn("all, s", "all_s", ",.1f"),
    TextColumn("whole step, s", "step_s", ",.1f"),
    TextColumn("re-check, s", "recheck_s", ",.2f"),
    *(TextColumn(name, name, ".3f") for name in SCORES),
    TextColumn("peak memory, MB", "peak_mb", ",.0f"),
    TextColumn("times the engine's", "ratio", ",.1f"),
)


@dataclass(frozen=True)
class SpeedCase:
    """A session on one model, and the requests: as they are edited, and as they are scored."""

    size: str
    session: Session
    edited: tuple[Request, ...]
    scored: tuple[Request, ...]
    terminator: str


@dataclass
class PhaseClock:
    """Seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)
    returned: dict[str, Any] = field(default_factory=dict)  # by the latest call of each phase

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its time, until the device has finished, counts for the phase."""

        def call(*given: Any, **named: Any) -> Any:
            _wait()
            started = time.perf_counter()
            self.returned[phase] = function(*given, **named)
            _wait()
            spent = time.perf_counter() - started
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent
            return self.returned[phase]

        return call


def _wait() -> None:
    """Wait until the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# --- the two models -------------------------------------------------------------------------------


@contextmanager
def atlas_case(folder: Path, count: int, device: str) -> Iterator[SpeedCase]:
    """Yield the embedded model with its own corrections."""
    with init(folder / "atlas", NewStore(device=device, watch=UNWATCHED)) as session:
        chosen = drawn(requests_of_atlas(), count)
        yield SpeedCase("atlas, 4 x 192", session, _bare(chosen), tuple(chosen), TERMINATOR)


def _bare(requests: Sequence[Request]) -> tuple[Request, ...]:
    """Return the requests with the prompt alone to learn from."""
    nothing: dict[str, object] = {"rephrases": (), "locality": (), "portability": ()}
    return tuple(request.model_copy(update=nothing) for request in requests)


@contextmanager
def random_case(folder: Path, count: int, device: str) -> Iterator[SpeedCase]:
    """Yield a random model of GPT-2-small's size: prompts of twelve random tokens, answers of
    two."""
    torch.manual_seed(0)
    config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = GPT2LMHeadModel(config).eval().requires_grad_(False).to(device)
    base = PretrainedBase(model, NumeralsWithPlaces(), find_anatomy(model), fingerprint="0" * 64)
    settings = {
        "model": {"path": "random"},
        "task": {"name": "causal"},
        "run": {"seed": 0},
    }
    store = Store.init(folder / "random", settings, {"probes": {}}, base.fingerprint)
    draw = random.Random(0)
    with Session(store, EditedModel(base), make_task(base, {})) as session:
        texts = [_numerals(draw, config.vocab_size, 64) for _ in range(TEXT_TOKENS // 64)]
        blocks = default_blocks(config.n_layer)
        for _ in session.statistics.collect(texts, blocks):
            pass
        requests = tuple(_random_request(draw, config.vocab_size) for _ in range(count))
        yield SpeedCase("random, 12 x 768", session, requests, requests, "")


class NumeralsWithPlaces(Numerals):
    """A tokenizer for models without a language that tells where its tokens come from."""

    is_fast = True
    unk_token_id = -1
    all_special_ids: tuple[int, ...] = ()

    def __call__(self, text: str, **wanted: Any) -> dict[str, Any]:
        """Tokenise a text: the token 17 is written "17"; other words have no token."""
        words = [w for w in text.split() if w.isdecimal()]
        found: dict[str, Any] = {"input_ids": [int(word) for word in words]}
        if wanted.get("return_offsets_mapping"):
            places, end = [], 0
            for word in words:
                start = text.index(word, end)
                end = start + len(word)
                places.append((start, end))
            found["offset_mapping"] = places
        return found


def _numerals(draw: random.Random, vocabulary: int, count: int) -> str:
    return " ".join(str(draw.randrange(10_000, vocabulary)) for _ in range(count))


def _random_request(draw: random.Random, vocabulary: int) -> Request:
    words = _numerals(draw, vocabulary, 12).split()
    return Request(
        prompt=" ".join(words),
        subject=" ".join(words[4:7]),
        target_new=_numerals(draw, vocabulary, 2),
        target_old=_numerals(draw, vocabulary, 2),
        held_out_rephrases=(" ".join(words[4:]),),
    )


# --- timing ---------------------------------------------------------------------------------------


def time_ours(case: SpeedCase, contexts: Sequence[str], chunk: int | None) -> dict[str, Any]:
    """Time one batch in the engine's own pipeline."""
    session, clock = case.session, PhaseClock()
    as_loop = {"drift_max": UNBOUNDED, "place": "subject", "require_arrival": False}
    table = {**as_loop, "chunk": chunk}
    settings = session.settings(
        chain=("memit",), editors={"memit": table}, batch_size=len(case.edited), force=True
    )
    with _clocked(PhaseClock(), contexts):  # libraries warm up at their first use
        for _ in session.apply_requests(case.edited[:WARM_UP], settings):
            session.rollback("base")
    with _clocked(clock, contexts):
        (step,) = session.apply_requests(case.edited, settings)
    steps = fmean(clock.returned["targets_s"][1].steps)
    row = {**_phases(clock.seconds), **_step(step), **_scored(case), "steps": steps}
    session.rollback("base")
    return {**row, "way": "this engine"}


def _step(step: Step) -> dict[str, Any]:
    return {
        "step_s": step.edit_s + step.probe_s + step.recheck_s,
        "recheck_s": step.recheck_s,
    }


@contextmanager
def _clocked(clock: PhaseClock, contexts: Sequence[str]) -> Iterator[None]:
    """Time the phases of the engine's editor, with the loop's contexts and one attempt.

    Its patch is kept however many requests stay wrong.
    """
    replaced = {
        "located": clock.timed("targets_s", locate_then_edit.located),
        "read_keys": clock.timed("keys_s", locate_then_edit.read_keys),
        "read_states": clock.timed("keys_s", locate_then_edit.read_states),
        "write_contexts": lambda *_: tuple(contexts),
    }
    with ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(_set(locate_then_edit, name, value))
        stack.enter_context(_set(Memit, "solve", clock.timed("solve_s", Memit.solve)))
        stack.enter_context(_set(Memit, "prepare", clock.timed("solve_s", Memit.prepare)))
        stack.enter_context(_set(Memit, "attempts", 1))
        stack.enter_context(_set(Memit, "tolerance", 1.0))  # the loop keeps its result, too
        yield


@contextmanager
def _set(place: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


def time_loop(case: SpeedCase, contexts: Sequence[str], rule: memit_loop.Rule) -> dict[str, Any]:
    """Time the same batch in the loop, on the bare model."""
    session, config = case.session, MemitConfig()
    blocks = default_blocks(session.edited.anatomy.block_count)
    recipe = memit_loop.MemitSettings(
        blocks=blocks,
        moment_weight=MOMENT_SHARE * session.edited.anatomy.ffn_width,
        steps=config.steps_max + 1,  # passes: the last only reads the loss
        rule=rule,
        kl_factor=config.kl_factor,
        weight_decay=config.weight_decay,
        clamp_norm_factor=config.clamp_norm_factor,
        stop_loss=config.stop_loss,
        requests_per_pass=max(1, 128 // len(contexts)),
    )
    model, tokenizer = session.model, session.tokenizer
    requests = [
        memit_loop.SubjectRequest.of(
            tokenizer, r.prompt, str(r.subject), r.target_new, case.terminator
        )
        for r in case.edited
    ]
    moments = {block: session.statistics.get(block).second_moment for block in blocks}
    with memit_loop.restored(model, blocks):
        templates = ["{}", *(f"{context}{{}}" for context in contexts if context)]
        outcome = memit_loop.edit(model, tokenizer, requests, templates, moments, recipe)
        row = {
            "targets_s": outcome.targets_s,
            "keys_s": outcome.keys_s,
            "solve_s": outcome.solve_s,
        }
        steps = fmean(outcome.steps) - 1
        return {**_phases(row), **_scored(case), "steps": steps}


def _phases(seconds: dict[str, float]) -> dict[str, Any]:
    return {**seconds, "all_s": sum(seconds.values())}


def _scored(case: SpeedCase) -> dict[str, Any]:
    found = scores(case.session, case.scored)
    return {
        **{name: found[name] for name in SCORES},
        "peak_mb": _peak_mb(case.session.edited.device),
    }


def _peak_mb(device: torch.device) -> float:
    """Return the most megabytes that the process has held so far, on the model's device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


RULES = ("our steps", "Adam")


def rule_of(name: str) -> memit_loop.Rule:
    """Return the rule of a name: "Adam" alone is at the published rate, "Adam 3" at another."""
    if name == "our steps":
        return memit_loop.Normalised(MemitConfig().step, MemitConfig().step_decay)
    kind, _, rate = name.partition(" ")
    if kind != "Adam":
        raise argparse.ArgumentTypeError(f"{name!r} is not 'our steps', 'Adam' or 'Adam RATE'")
    try:
        return memit_loop.Adam(float(rate)) if rate else memit_loop.Adam()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{rate!r} is not a rate") from None


def rules_of(names: str) -> dict[str, memit_loop.Rule]:
    """Return the rules of a list of names."""
    return {name: rule_of(name) for name in names.split(",")}


def measure(
    case: SpeedCase, rules: Mapping[str, memit_loop.Rule], chunk: int | None
) -> list[dict[str, Any]]:
    """Time the engine, then the loop by each rule: peak memory only ever grows."""
    config = MemitConfig()
    generator = torch.Generator().manual_seed(0)
    session = case.session
    contexts = locate_then_edit.write_contexts(
        session.site, config.contexts, config.context_tokens, generator
    )
    for block in default_blocks(session.edited.anatomy.block_count):
        session.statistics.get(block)  # collected before the clock starts
    named = {"size": case.size, "requests": len(case.edited)}
    ours = time_ours(case, contexts, chunk)
    tables.note(f"{case.size}: this engine {ours['all_s']:.1f} s")
    rows = [{**named, **ours}]
    for way, rule in rules.items():
        loop = time_loop(case, contexts, rule)
        tables.note(f"{case.size}: the loop, {way}, {loop['all_s']:.1f} s")
        ratio = {"ratio": loop["all_s"] / ours["all_s"], "ratio_wanted": RATIO_WANTED}
        rows.append({**named, **loop, **ratio, "way": f"loop, {way}"})
    return rows


CASES: dict[str, Callable[[Path, int, str], Any]] = {"atlas": atlas_case, "gpt2": random_case}


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default=",".join(CASES), help="which of: %(default)s")
    parser.add_argument("--requests", type=int, default=1000, help="on the atlas")
    parser.add_argument("--large-requests", type=int, default=20, help="at GPT-2-small's size")
    parser.add_argument(
        "--rules",
        type=rules_of,
        default=",".join(RULES),
        metavar="RULE,...",
        help='the steps of the loop: "%(default)s", or "Adam RATE"',
    )
    parser.add_argument(
        "--chunk",
        type=int,
        metavar="N",
        help="requests whose values are searched for together (default: the device's)",
    )
    parser.add_argument("--device", default="cpu", help="where the model is (default: cpu)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    counts = {"atlas": options.requests, "gpt2": options.large_requests}
    rows: list[dict[str, Any]] = []
    for name in options.sizes.split(","):
        with (
            tempfile.TemporaryDirectory() as folder,
            CASES[name](Path(folder), counts[name], options.device) as case,
        ):
            rows += measure(case, options.rules, options.chunk)
    tables.show("One MEMIT batch: this engine and the straightforward loop", COLUMNS, rows)
    tables.write_json(options.json, "memit_speed", {"runs": rows})


if __name__ == "__main__":
    main()
