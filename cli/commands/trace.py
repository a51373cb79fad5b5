"""`cedit trace`: shows which states of the model carry a fact."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.interruption import stopping
from cli.options import common, find_store, require_revision, revision_names, with_workers
from cli.output import Output, columns, counted, one_line
from cli.watching import listening

if TYPE_CHECKING:
    from continual.analysis.tracing import FactTrace, Tracer
    from continual.analysis.tracing.results import TraceMap
    from continual.analysis.tracing.sets import TracedState
    from continual.execution import Executor
    from continual.requests import Request
    from continual.session import Session
    from store import Revision

INTERRUPTED = 130
SHADES = "·▁▂▃▄▅▆▇█"
SHADES_MAX = 24  # blocks that a token's line shows one by one
TOKEN_WIDTH = 20
SHOWN_MIN = 0.005  # the least effect that a token's line names


@click.command("trace")
@click.argument("source", metavar="PROMPT|FILE")
@click.option("--subject", metavar="TEXT", help="The subject of PROMPT, as it is written there.")
@click.option("--answer", metavar="TEXT", help="The answer (default: the model's own next token).")
@click.option(
    "--at",
    metavar="REVISION",
    shell_complete=revision_names,
    default="head",
    help="The revision (default: head).",
)
@click.option(
    "--beside",
    metavar="REVISION",
    shell_complete=revision_names,
    help="Trace at this revision too, with the same noise.",
)
@click.option("--noise", type=click.FloatRange(0.0), help="In σ of the subjects (default: 3).")
@click.option(
    "--draws", type=click.IntRange(1, 1000), help="Of noise; scores are their means (default: 10)."
)
@click.option("--seed", type=click.IntRange(0), help="Of the noise (default: 1).")
@click.option(
    "--window",
    type=click.IntRange(1),
    help="Blocks restored together, of FFN and attention (default: a fifth, ten at most).",
)
@click.option(
    "--every", type=click.IntRange(1), help="Of so many blocks trace one (default: 1, each)."
)
@click.option(
    "--severed", is_flag=True, help="Also restore states with FFN or attention held corrupted."
)
@click.option(
    "--min-effect",
    type=click.FloatRange(-1.0, 1.0),
    help="Total effect under which a fact of FILE is not averaged (default: .05).",
)
@click.option("--limit", type=click.IntRange(1), help="Of FILE, trace so many facts.")
@click.option("--own-answers", is_flag=True, help="Of FILE, trace the model's own tokens.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw the maps, or a set's averages (PNG, SVG or PDF; needs matplotlib).",
)
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a page with the averages and all maps.",
)
@with_workers
@common
def command(
    out: Output,
    store: str | None,
    executor: Executor,
    source: str,
    subject: str | None,
    answer: str | None,
    at: str,
    beside: str | None,
    limit: int | None,
    own_answers: bool,
    plot: Path | None,
    html: Path | None,
    **settings: Any,
) -> int:
    """Trace which states of the model carry a fact.

    The embeddings of a subject are corrupted by noise, so that the model loses its answer. Then one
    output after another is put back to its value in the clean run, and the answer's probability is
    measured: a block's output (state), and the outputs of FFN and attention in windows of blocks.
    The difference to the corrupted run is the indirect effect of that token and block.

    PROMPT is one fact, with its --subject. Without it the argument is a FILE of facts in any format
    that `cedit apply` reads, or - for standard input; those that the model does not answer, or
    whose answer hardly depends on the subject, are counted and not averaged. Each trace is kept in
    the store's cache as it is made, so the same command resumes an interrupted run.

    A trace tells where a fact is carried, and not where an edit of it works best.

    With --json there is a line for each fact: {"type":"trace","prompt","subject","answer","said",
    "tokens","subject_places","is_known","outcome","clean","corrupted","total_effect","maps":[{
    "kind","window","probability","log_probability"}],"second","revision","seq","way","sigma",
    "window"}; of a FILE also one with the averages: {"type":"traces","counts","total_effect",
    "effects","peaks",…}.

    \b
    Example:
      cedit trace "The capital of Australia is" --subject Australia
      cedit trace "The capital of Australia is" --subject Australia --beside base --plot map.png
      cedit trace facts.jsonl --limit 100 --html traces.html
    """
    from continual.analysis.tracing import TracingConfig

    _require_kind(source, subject, answer, own_answers, limit)
    _require_writable(plot, html)
    path = find_store(store)
    names = list(dict.fromkeys(filter(None, (at, beside))))
    for name in names:
        require_revision(path, name)
    given = {key: value for key, value in settings.items() if value is not None}
    if "min_effect" in given:
        given["total_effect_min"] = given.pop("min_effect")
    from continual.session import open_session

    stop = threading.Event()
    with open_session(path, writable=False, at=names[0], executor=executor) as session:
        run = TraceRun(out, session, TracingConfig(**given), stop)
        with stopping(stop, reads_input=source == "-"), listening(out) as session.listener:
            if subject is not None:
                states = run.one(source, subject, answer, names)
            else:
                states = run.many(source, names, limit, own_answers)
    _show(out, states, is_set=subject is None)
    _write(out, states, source, plot, html, is_set=subject is None)
    return INTERRUPTED if stop.is_set() else 0


def _require_kind(
    source: str, subject: str | None, answer: str | None, own_answers: bool, limit: int | None
) -> None:
    """Raise UsageError for options of a prompt beside a file, and the other way round."""
    if subject is not None:
        if own_answers or limit is not None:
            raise click.UsageError("--own-answers and --limit are for a FILE, without --subject.")
        return
    if answer is not None:
        raise click.UsageError("--answer is for one PROMPT, with its --subject.")
    if source != "-" and not Path(source).is_file():
        raise click.UsageError(
            f"{one_line(source)!r} is no file: a PROMPT needs its --subject, and a FILE has to be "
            "there."
        )


def _require_writable(plot: Path | None, html: Path | None) -> None:
    """Raise an error for a plot or a page that could not be written in the end."""
    if plot is not None:
        from continual.analysis.tracing.drawing import require_plottable

        require_plottable(plot)
    if html is not None and not html.parent.is_dir():
        raise click.ClickException(f"The page cannot be written: there is no folder {html.parent}.")


@dataclass
class TraceRun:
    """A run of the command: traces on an open session, revision by revision."""

    out: Output
    session: Session
    config: Any
    stop: threading.Event

    def one(
        self, prompt: str, subject: str, answer: str | None, names: Sequence[str]
    ) -> list[TracedState]:
        """Trace one prompt at each revision."""
        from continual.analysis.tracing.sets import TraceCache, TracedState, history_ids

        states: list[TracedState] = []
        for name in names:
            revision, tracer = self._standing(name)
            fact = tracer.fact(prompt, subject, answer)
            self._tell_of_memory(prompt, name)
            if not states:
                own = [fact.sequence.ids[place] for place in fact.sequence.subject]
                sigma = tracer.deviation([*own, *history_ids(tracer, self.session.store, revision)])
            state = TracedState(name, revision, tracer.way, sigma, tracer.window)
            cache = TraceCache(self.session.store, tracer, sigma)
            state.traces.append(cache.traced(fact, is_selective=False, about={}))
            states.append(state)
        return states

    def many(
        self, source: str, names: Sequence[str], limit: int | None, own_answers: bool
    ) -> list[TracedState]:
        """Trace the facts of a file at each revision."""
        from continual.analysis.tracing.sets import TraceCache, TracedState, read_set, traces_of

        states: list[TracedState] = []
        for name in names:
            if self.stop.is_set():
                break
            revision, tracer = self._standing(name)
            if not states:
                facts = read_set(tracer, self._requests(source))
                self._require_facts(source, facts.requests, facts.left_out)
                sigma = tracer.deviation(facts.token_ids)
            state = TracedState(name, revision, tracer.way, sigma, tracer.window)
            cache = TraceCache(self.session.store, tracer, sigma)
            executor = self.session.executor
            traces = traces_of(cache, facts.requests, own_answers=own_answers, executor=executor)
            self._take(state, traces, limit or len(facts.requests), is_limited=limit is not None)
            states.append(state)
        return states

    def _standing(self, name: str) -> tuple[Revision, Tracer]:
        """Put the model at a revision, and make its tracer."""
        from continual.analysis.tracing import Tracer

        revision = self.session.stand_at(name)
        tracer = Tracer(self.session.edited, self.session.task, self.config)
        if tracer.way != "in parts":
            self.out.note(
                f"{name}: {tracer.why_whole}, so every place is run through the whole model: "
                "exact, and slower."
            )
        return revision, tracer

    def _take(
        self, state: TracedState, traces: Iterator[FactTrace], most: int, *, is_limited: bool
    ) -> None:
        """Take traces until the run is stopped, or until as many as asked for have been made."""
        from continual.analysis.tracing.results import TRACED

        done = 0
        for trace in traces:
            state.traces.append(trace)
            if trace.outcome == TRACED or not is_limited:
                done += 1
            self.session.listener.progress(f"{state.name}: facts", done, most)
            if done >= most or self.stop.is_set():
                break

    def _requests(self, source: str) -> Iterator[Request]:
        """Yield the requests of a file."""
        from continual.streams.places import stream_for

        for item in stream_for(self.session.store, source):
            if item.reason is not None:
                self.out.note(f"record {item.position} cannot be read: {item.reason}")
            yield from item.requests

    def _require_facts(
        self, source: str, facts: Sequence[Request], left_out: Mapping[str, int]
    ) -> None:
        """Say which records are no facts. Raises CeditError if none is one."""
        from continual.errors import CeditError

        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        if not facts:
            raise CeditError(
                f"{source} has no fact to trace ({reasons or 'it is empty'}): a fact needs a "
                "prompt, its subject as it is written there, and its answer."
            )
        if reasons:
            self.out.note(f"left out: {reasons}")

    def _tell_of_memory(self, prompt: str, name: str) -> None:
        """Say if a prompt is answered from a record in memory, of which the model knows nothing."""
        if not len(self.session.edited.memory):
            return
        route = self.session.route(self.session.task.question(prompt))
        if route is not None:
            self.out.note(
                f"{name}: this prompt is answered from memory (`cedit ask` shows by which edit); "
                "the trace is of the model itself, without it."
            )


# -- for people


def _show(out: Output, states: Sequence[TracedState], *, is_set: bool) -> None:
    for state in states:
        for trace in state.traces:
            out.record({"type": "trace", **trace.to_json(), **state.to_json()})
        if is_set:
            _show_set(out, state)
        else:
            _show_fact(out, state, state.traces[0])


def _show_fact(out: Output, state: TracedState, trace: FactTrace) -> None:
    """Print a fact's effects, a line for each token."""
    from continual.analysis.tracing.drawing import TITLES
    from continual.analysis.tracing.results import UNKNOWN, WEAK

    clean, corrupted = trace.clean, trace.corrupted or trace.clean
    second = trace.second
    again = "" if second is None else f", {second.corrupted.probability:.3f} by another seed"
    out.text(
        f"{state.title}: {one_line(str(trace.prompt))} → {one_line(trace.answer)}",
        f"p of its first token: {clean.probability:.3f} clean, {corrupted.probability:.3f} "
        f"corrupted{again}; total effect {trace.total_effect:.3f}; σ {state.sigma:.3g}",
    )
    if len(trace.answer_tokens) > 1:
        out.text(
            f"mean log-probability of its {len(trace.answer_tokens)} tokens: "
            f"{clean.log_probability:.3f} clean, {corrupted.log_probability:.3f} corrupted"
        )
    if trace.outcome == UNKNOWN:
        said = one_line(trace.said)
        out.warn([f"the model does not answer {one_line(trace.answer)!r}: it says {said!r}"])
    if trace.outcome == WEAK:
        out.warn(
            ["the noise hardly moves the answer: effects this small are noise (see --min-effect)"]
        )
    names = ["token", *(name for m in trace.maps for name in (_heading(TITLES, m), ""))]
    out.text(columns(names, _token_rows(trace)), "")


def _heading(titles: Mapping[str, str], trace_map: TraceMap) -> str:
    window = f", {trace_map.window} blocks" if trace_map.window > 1 else ""
    return f"{titles[trace_map.kind]}{window}"


def _token_rows(trace: FactTrace) -> Iterator[list[str]]:
    """Yield for each token its text, and for each kind a line of shades and the strongest block."""
    floor = trace.floor
    for place, text in enumerate(trace.tokens):
        star = "*" if place in trace.subject_places else ""
        cells = [one_line(text.strip() or "␣")[:TOKEN_WIDTH] + star]
        for trace_map in trace.maps:
            effects = [p - floor for p in trace_map.probability[place]]
            best = max(range(len(effects)), key=effects.__getitem__)
            cells.append(shaded(effects, trace.total_effect))
            is_some = effects[best] >= SHOWN_MIN
            cells.append(f"{effects[best]:.2f} at {trace_map.blocks[best]}" if is_some else "")
        yield cells


def shaded(effects: Sequence[float], whole: float) -> str:
    """Return a character for each block, or for the strongest of some neighbouring ones: the effect
    as a share of `whole`."""
    size = -(-len(effects) // SHADES_MAX)
    parts = [max(effects[start : start + size]) for start in range(0, len(effects), size)]
    shares = [part / whole if whole > 0 else 0.0 for part in parts]
    top = len(SHADES) - 1
    return "".join(SHADES[min(top, max(0, round(share * top)))] for share in shares)


def _show_set(out: Output, state: TracedState) -> None:
    """Print the averages of a set."""
    from continual.analysis.tracing.drawing import TITLES

    averages = state.averages()
    out.record({"type": "traces", **averages.to_json(), **state.to_json()})
    counts = averages.counts
    out.text(
        f"{state.title}: {counted(len(state.traces), 'fact')}, {counts['traced']} traced, "
        f"{counts['unknown']} that the model does not answer, {counts['weak']} that hardly depend "
        "on their subject"
    )
    if averages.total_effect is None or averages.clean is None or averages.corrupted is None:
        return
    out.text(
        f"p of the answer: {averages.clean.mean:.3f} clean, {averages.corrupted.mean:.3f} "
        f"corrupted; average total effect {averages.total_effect.mean:.3f} "
        f"± {averages.total_effect.half:.3f}"
    )
    for kind, groups in averages.effects.items():
        first, second = averages.peaks[kind]
        rows = [
            [
                group,
                shaded([block.mean for block in effect.means], averages.total_effect.mean),
                f"{effect.peak[1].mean:.3f} ± {effect.peak[1].half:.3f}",
                str(effect.peak[0]),
                str(effect.facts),
            ]
            for group, effect in groups.items()
        ]
        names = (TITLES[kind], "by block", "strongest", "block", "facts")
        out.text("", columns(names, rows, "strongest block facts"))
        out.text(f"at each fact's own peak {first:.3f}, there with another seed {second:.3f}")


def _write(
    out: Output,
    states: Sequence[TracedState],
    source: str,
    plot: Path | None,
    html: Path | None,
    *,
    is_set: bool,
) -> None:
    """Write the plot and the page."""
    if plot is not None:
        from continual.analysis.tracing.drawing import draw_averages, draw_facts

        if is_set:
            draw_averages([(_set_title(s, source), s.averages()) for s in states], plot)
        else:
            draw_facts([(_fact_title(s), s.traces[0]) for s in states], plot)
        out.note(f"drawn: {plot}")
    if html is not None:
        from importlib.metadata import version

        from cli.report.traces import traces_page
        from store import write_durably

        page = traces_page(states, Path(source).name if is_set else "", version("cedit"))
        write_durably(html, page.encode("utf-8"))
        out.note(f"written: {html}")


def _fact_title(state: TracedState) -> str:
    from continual.analysis.tracing.drawing import plottable

    trace = state.traces[0]
    answer, floor = plottable(trace.answer), trace.floor
    return f"{state.title} → {answer}: {trace.clean.probability:.2f} clean, {floor:.2f} corrupted"


def _set_title(state: TracedState, source: str) -> str:
    traced = sum(trace.outcome == "traced" for trace in state.traces)
    return f"{state.title}: {counted(traced, 'fact')} of {Path(source).name}"
