"""A page of causal traces: the averages of a set with their intervals, and every fact's maps.

Knows `TracedState` and the page's look; one file without scripts, as the report's page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files

from cli.output import DASH, counted
from cli.report.axes import ChartAxis
from cli.report.markup import Markup, element, join
from cli.report.tables import NUMBER, TEXT, ReportColumn, table
from cli.report.texts import moment, told
from continual.analysis.tracing.averages import GroupEffect, TraceAverages
from continual.analysis.tracing.config import WITHOUT
from continual.analysis.tracing.modules import ATTENTION, FFN, STATE
from continual.analysis.tracing.results import (
    AFTER,
    END,
    FIRST,
    FURTHER,
    LAST,
    MIDDLE,
    TRACED,
    UNKNOWN,
    FactTrace,
    TraceMap,
)
from continual.analysis.tracing.sets import TracedState

TITLES = {
    STATE: "State",
    FFN: "FFN output",
    ATTENTION: "Attention output",
    WITHOUT[FFN]: "State, FFN severed",
    WITHOUT[ATTENTION]: "State, attention severed",
}
STYLES = {
    FIRST: "first",
    MIDDLE: "middle",
    LAST: "last",
    AFTER: "after",
    FURTHER: "further",
    END: "end",
}
SHADES = {STATE: "state", FFN: "ffn", ATTENTION: "attention"}
LEVELS = 12  # shades of a map
LABELS, CELLS, ROW = 96, 216, 16  # widths of a map's labels and cells, height of a row, in pixels
NAMED_MAX = 9  # blocks that an axis names
TOKEN_MAX = 14  # characters of a token beside a map
OPEN = 2  # facts whose maps are shown at once
WIDTH, HEIGHT, LEFT, BOTTOM = 320, 210, 40, 30  # of a chart, in pixels
Scale = Callable[[float], float]


def traces_page(states: Sequence[TracedState], source: str, version: str) -> str:
    """Return the whole HTML document about traces at some revisions; `source` is the name of the
    set's file, empty for one prompt."""
    name = source or str(states[0].traces[0].prompt)
    styles = [
        files("cli.report").joinpath(f).read_text("utf-8") for f in ("style.css", "traces.css")
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="generator", content="cedit trace"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"Causal traces of {name}"),
        element("style", Markup("".join(styles))),
    )
    parts = [part for state in states for part in _state(state, is_set=bool(source))]
    main = element("main", _header(states, name), *parts, _footer(version))
    return f"<!doctype html>\n{element('html', head, element('body', main), lang='en')}\n"


def _header(states: Sequence[TracedState], name: str) -> Markup:
    facts = [
        ("Revisions", ", ".join(state.title for state in states)),
        ("Facts", f"{len(states[0].traces):,}"),
        ("σ of the subjects' embeddings", f"{states[0].sigma:.4g}"),
        ("Blocks restored together", f"{states[0].window}"),
    ]
    return element(
        "header",
        element("div", "Causal traces of", class_="kind"),
        element("h1", told(name)),
        element("dl", *(_pair(*fact) for fact in facts), class_="facts"),
        element(
            "p",
            "Noise on the subject's embeddings takes the answer away. Each map puts one output "
            "back to its clean value, at one token and block, and shows how much of the answer's "
            "probability comes back: its indirect effect. It tells where a fact is carried, and "
            "not where an edit of it works best.",
            class_="note",
        ),
    )


def _pair(name: str, value: str) -> Markup:
    return element("div", element("dt", name), element("dd", value))


def _footer(version: str) -> Markup:
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    command = element("code", "cedit trace")
    return element(
        "footer", join("Made by ", command, f" of cedit {version}, ", moment(made_at), ".")
    )


# -- one revision


def _state(state: TracedState, *, is_set: bool) -> Iterator[Markup]:
    yield element("h2", state.title, id=f"at-{state.revision.seq}")
    traced = [trace for trace in state.traces if trace.outcome == TRACED or not is_set]
    if is_set:
        averages = state.averages()
        yield _figures(averages)
        if averages.effects:
            yield _charts(averages)
        yield element("h3", "Facts ", element("span", f"{len(traced):,}", class_="count"))
    yield from (_fact(trace, is_open=i < OPEN) for i, trace in enumerate(traced))
    left = [trace for trace in state.traces if trace not in traced]
    if left:
        yield _left_out(left)


def _figures(averages: TraceAverages) -> Markup:
    counts = averages.counts
    figures = [
        (f"{counts['traced']:,}", "Facts traced", "their effects are averaged"),
        (f"{counts['unknown']:,}", "Not answered", "the model says something else"),
        (f"{counts['weak']:,}", "Hardly depend", "on their subject: the noise moves them little"),
    ]
    if averages.clean and averages.corrupted and averages.total_effect:
        figures += [
            (f"{averages.clean.mean:.3f}", "Clean", "probability of the answer"),
            (f"{averages.corrupted.mean:.3f}", "Corrupted", "with noise on the subject"),
            (
                f"{averages.total_effect.mean:.3f}",
                "Total effect",
                f"the difference, ± {averages.total_effect.half:.3f}",
            ),
        ]
    return element("section", *(_figure(*figure) for figure in figures), class_="figures")


def _figure(value: str, title: str, meaning: str) -> Markup:
    return element(
        "div",
        element("div", value, class_="value"),
        element("div", title, class_="name"),
        element("div", meaning, class_="means"),
        class_="figure",
    )


def _left_out(traces: Sequence[FactTrace]) -> Markup:
    columns: list[ReportColumn[FactTrace]] = [
        ReportColumn("prompt", TEXT, lambda trace: told(str(trace.prompt))),
        ReportColumn("answer", TEXT, lambda trace: told(trace.answer)),
        ReportColumn("the model says", TEXT, lambda trace: told(trace.said)),
        ReportColumn("p", NUMBER, lambda trace: f"{trace.clean.probability:.3f}"),
        ReportColumn("effect", NUMBER, _effect),
        ReportColumn(
            "reason",
            TEXT,
            lambda trace: "not answered" if trace.outcome == UNKNOWN else "hardly depends",
        ),
    ]
    title = f"{counted(len(traces), 'fact')} not averaged"
    return element(
        "details", element("summary", title), table(columns, traces, len(traces)), class_="part"
    )


def _effect(trace: FactTrace) -> str:
    return DASH if trace.corrupted is None else f"{trace.total_effect:.3f}"


# -- averages


def _charts(averages: TraceAverages) -> Markup:
    """Return a chart for each kind, all on one scale."""
    blocks = [
        block
        for groups in averages.effects.values()
        for effect in groups.values()
        for block in effect.means
    ]
    high = max(block.mean + block.half for block in blocks)
    low = min(0.0, min(block.mean - block.half for block in blocks))
    axis = _axis(low, max(high, 1e-3))
    names = dict.fromkeys(g for groups in averages.effects.values() for g in groups)
    legend = (
        element("li", element("span", class_="swatch"), element("b", name), class_=STYLES[name])
        for name in names
    )
    charts = (
        element(
            "div",
            element(
                "h4", TITLES[kind], element("span", _strongest(averages, kind), class_="count")
            ),
            _chart(groups, axis, TITLES[kind]),
        )
        for kind, groups in averages.effects.items()
    )
    return element(
        "figure",
        element("ul", *legend, class_="legend"),
        element("div", *charts, class_="maps"),
        element(
            "p",
            "Average indirect effect by block; the bands are 95 % intervals of the mean.",
            class_="note",
        ),
    )


def _strongest(averages: TraceAverages, kind: str) -> str:
    found = averages.strongest(kind)
    if found is None:
        return ""
    group, block = found
    return f"{averages.effects[kind][group].peak[1].mean:.3f} at block {block}, {group}"


def _axis(low: float, high: float) -> ChartAxis:
    steps = [base * 10.0**power for power in range(-4, 1) for base in (1, 2, 5)]
    step = next(step for step in steps if (high - low) / step <= 6)
    return ChartAxis(low, high, step)


def _chart(groups: Mapping[str, GroupEffect], axis: ChartAxis, label: str) -> Markup:
    blocks = next(iter(groups.values())).blocks
    first, last = blocks[0], blocks[-1]

    def x(block: float) -> float:
        return round(LEFT + (WIDTH - LEFT - 6) * (block - first) / max(1, last - first), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 8) * axis.share(value), 1)

    return element(
        "svg",
        element("title", label),
        *_chart_grid(axis, blocks, x, y),
        *(_band(STYLES[group], effect, x, y) for group, effect in groups.items()),
        *(_mean(STYLES[group], effect, x, y) for group, effect in groups.items()),
        *_hovers(groups, blocks, x),
        xmlns="http://www.w3.org/2000/svg",
        view_box=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=label,
    )


def _chart_grid(axis: ChartAxis, blocks: Sequence[int], x: Scale, y: Scale) -> Iterator[Markup]:
    for tick in axis.ticks:
        style = "zero" if abs(tick) < axis.step / 2 else "grid"
        yield element("line", class_=style, x1=LEFT, x2=WIDTH - 6, y1=y(tick), y2=y(tick))
        yield element(
            "text", axis.text(tick), class_="small end", x=LEFT - 6, y=y(tick), dy="0.32em"
        )
    for block in ticked(blocks):
        yield element("text", f"{block}", class_="small middle", x=x(block), y=HEIGHT - BOTTOM + 15)
    yield element("text", "block", class_="small end", x=WIDTH - 6, y=HEIGHT - 3)


def ticked(blocks: Sequence[int]) -> Sequence[int]:
    """Return the blocks that an axis names."""
    return blocks[:: -(-len(blocks) // NAMED_MAX)]


def _band(style: str, effect: GroupEffect, x: Scale, y: Scale) -> Markup:
    places = list(zip(effect.blocks, effect.means, strict=True))
    above = [(x(i), y(b.mean + b.half)) for i, b in places]
    below = [(x(i), y(b.mean - b.half)) for i, b in places]
    path = " ".join(f"{a:g},{b:g}" for a, b in [*above, *reversed(below)])
    return element("g", element("polygon", class_="interval", points=path), class_=style)


def _mean(style: str, effect: GroupEffect, x: Scale, y: Scale) -> Markup:
    places = zip(effect.blocks, effect.means, strict=True)
    path = " ".join(f"{x(i):g},{y(b.mean):g}" for i, b in places)
    return element("g", element("polyline", class_="mean", points=path), class_=style)


def _hovers(groups: Mapping[str, GroupEffect], blocks: Sequence[int], x: Scale) -> Iterator[Markup]:
    """Yield a strip for each block that tells its numbers when it is hovered over."""
    step = x(blocks[1]) - x(blocks[0]) if len(blocks) > 1 else WIDTH - LEFT
    for place, block in enumerate(blocks):
        lines = [f"block {block}"] + [
            f"{group} {effect.means[place].mean:.4f} ± {effect.means[place].half:.4f}"
            for group, effect in groups.items()
        ]
        yield element(
            "rect",
            element("title", "\n".join(lines)),
            class_="hover",
            x=round(x(block) - step / 2, 1),
            y=4,
            width=round(step, 1),
            height=HEIGHT - BOTTOM - 4,
        )


# -- one fact


def _fact(trace: FactTrace, *, is_open: bool) -> Markup:
    numbers = (
        f"{trace.clean.probability:.3f} clean, {trace.floor:.3f} corrupted, "
        f"effect {trace.total_effect:.3f}"
    )
    summary = element(
        "summary",
        element("span", told(str(trace.prompt)), " → ", element("b", told(trace.answer))),
        element("span", numbers, class_="num"),
    )
    maps = element("div", *(_map(trace, trace_map) for trace_map in trace.maps), class_="maps")
    return element("details", summary, maps, _remark(trace), class_="fact", open=is_open)


def _remark(trace: FactTrace) -> Markup:
    parts, corrupted = [], trace.corrupted or trace.clean
    if not trace.is_known:
        parts.append(f"The model does not answer this: it says {trace.said!r}.")
    if len(trace.answer_tokens) > 1:
        parts.append(
            f"The answer has {len(trace.answer_tokens)} tokens; their mean log-probability is "
            f"{trace.clean.log_probability:.3f} clean and {corrupted.log_probability:.3f} "
            "corrupted. The maps are of the first."
        )
    if trace.second is not None:
        parts.append(f"By another seed {trace.second.corrupted.probability:.3f} corrupted.")
    return element("p", " ".join(parts), class_="note")


def _map(trace: FactTrace, trace_map: TraceMap) -> Markup:
    token, block = trace_map.peak()
    most = trace.effect(trace_map.kind, token, block)
    strongest = f"up to {most:.3f}"
    return element(
        "div",
        element("h4", TITLES[trace_map.kind], element("span", strongest, class_="count")),
        heat_map(trace, trace_map),
    )


def heat_map(trace: FactTrace, trace_map: TraceMap) -> Markup:
    """Return a map of tokens and blocks as an SVG element: the deeper the colour, the larger the
    indirect effect, as a share of the map's largest."""
    blocks, height = trace_map.blocks, ROW * len(trace.tokens)
    cell = CELLS / len(blocks)
    return element(
        "svg",
        element("title", f"{TITLES[trace_map.kind]}: {trace.prompt}"),
        element("rect", class_="floor", x=LABELS, y=0, width=CELLS, height=height),
        *_labels(trace),
        *_shades(trace, trace_map, cell),
        *(
            element(
                "text",
                f"{block}",
                class_="small middle",
                x=round(LABELS + (blocks.index(block) + 0.5) * cell, 1),
                y=height + 13,
            )
            for block in ticked(blocks)
        ),
        xmlns="http://www.w3.org/2000/svg",
        view_box=f"0 0 {LABELS + CELLS} {height + 16}",
        role="img",
        aria_label=TITLES[trace_map.kind],
    )


def _labels(trace: FactTrace) -> Iterator[Markup]:
    for place, text in enumerate(trace.tokens):
        is_subject = place in trace.subject_places
        name = text.strip() or "␣"
        name = name if len(name) <= TOKEN_MAX else f"{name[: TOKEN_MAX - 1]}…"
        name = "".join(c if c.isprintable() else "·" for c in name)
        yield element(
            "text",
            f"{name}*" if is_subject else name,
            class_="token subject end" if is_subject else "token end",
            x=LABELS - 7,
            y=place * ROW + 12,
        )


def _shades(trace: FactTrace, trace_map: TraceMap, cell: float) -> Iterator[Markup]:
    """Yield the cells of each shade as one path; cells without an effect are left out."""
    floor = trace.floor
    most = max(max(row) for row in trace_map.probability) - floor
    if most <= 0:
        return
    levels: dict[int, list[str]] = {}
    for token, row in enumerate(trace_map.probability):
        for block, probability in enumerate(row):
            level = round(LEVELS * (probability - floor) / most)
            if level > 0:
                x, y = LABELS + block * cell, token * ROW
                levels.setdefault(level, []).append(f"M{x:.5g} {y}h{cell:.3g}v{ROW}h-{cell:.3g}z")
    style = SHADES.get(trace_map.kind, "state")
    for level, cells in sorted(levels.items()):
        yield element(
            "path",
            element("title", f"about {most * level / LEVELS:.3f}"),
            class_=f"cell {style}",
            fill_opacity=round(level / LEVELS, 3),
            d="".join(cells),
        )
