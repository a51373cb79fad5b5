"""Lines of any length, as SVG: nothing that matters is left out."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.report import axes
from cli.report.chart import BANDS, LANE, LETTER, Bar, Chart, Flag, Lane, Series, draw
from cli.report.markup import Markup, element, join
from cli.report.texts import path, rate, seconds, told
from cli.report.thinning import thin

SVG = "{http://www.w3.org/2000/svg}"


def chart(values: list[float], flags: tuple[Flag, ...] = ()) -> Chart:
    dots = [(float(x), y) for x, y in enumerate(values)]
    return Chart(
        label="ER",
        x_label="revision",
        y_label="share",
        x=axes.counting(len(values) - 1, 5),
        y=axes.around(values, at_least=(0.0, 1.0)),
        series=[Series("ER", "er", dots)],
        flags=flags,
    )


# -- thinning


def test_a_dip_of_one_revision_in_ten_thousand_is_drawn() -> None:
    dots = [(float(x), 0.2 if x == 7_003 else 1.0) for x in range(10_000)]
    kept = thin(dots, 300)
    assert (7_003.0, 0.2) in kept
    assert len(kept) <= 4 * 300


@given(
    st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=400),
    st.integers(1, 50),
)
def test_thinning_keeps_ends_extremes_and_order(values: list[float], columns: int) -> None:
    dots = [(float(x), y) for x, y in enumerate(values)]
    kept = thin(dots, columns)
    assert set(kept) <= set(dots)
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (dots[0], dots[-1])
    ys = [y for _, y in kept]
    assert (min(ys), max(ys)) == (min(values), max(values))
    assert len(kept) <= max(2 * columns, 4 * columns)


def test_few_points_are_all_kept() -> None:
    dots = [(0.0, 1.0), (1.0, 0.5), (2.0, 1.0)]
    assert thin(dots, 100) == dots


# -- axes


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_an_axis_shows_every_value(values: list[float]) -> None:
    axis = axes.around(values, at_least=(0.0, 1.0))
    assert all(-1e-6 <= axis.share(value) <= 1 + 1e-6 for value in [*values, 0.0, 1.0])
    assert 2 <= len(axis.ticks) <= 8


def test_ticks_are_round_and_told_apart() -> None:
    axis = axes.around([0.953], at_least=(0.98, 1.0))
    assert [f"{tick:.{axis.decimals}f}" for tick in axis.ticks] == [
        "0.95", "0.96", "0.97", "0.98", "0.99", "1.00",
    ]  # fmt: skip
    assert axes.counting(130, 10).ticks == [0, 20, 40, 60, 80, 100, 120]
    assert axes.counting(1, 10).ticks == [0, 1]


def test_a_logarithmic_axis_has_every_power_of_ten_around_the_values() -> None:
    axis = axes.logarithmic([0.0, 0.004, 230.0], least=1e-4)
    assert [axis.text(tick) for tick in axis.ticks] == [
        "1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s", "1000 s",
    ]  # fmt: skip
    assert [axis.share(value) for value in (0.0, 1e-3, 1.0, 1000.0)] == [0.0, 0.0, 0.5, 1.0]


@given(st.lists(st.floats(0, 1e6), max_size=20))
def test_a_logarithmic_axis_shows_every_value(values: list[float]) -> None:
    axis = axes.logarithmic(values, least=1e-4)
    assert all(0 <= axis.share(value) <= 1 + 1e-9 for value in values)
    assert len(axis.ticks) >= 2


# -- drawing


@pytest.mark.parametrize("length", [1, 2, 50, 10_000])
def test_a_chart_of_any_length_is_small_svg(length: int) -> None:
    drawn = draw(chart([1.0] * length), 940, 330)
    svg = ElementTree.fromstring(drawn)
    assert svg.get("viewBox") == "0 0 940 330"
    assert 1 <= len(svg.findall(f"{SVG}rect")) <= BANDS
    assert len(drawn) < 120_000


def test_hovering_names_each_value_or_the_extremes_of_some() -> None:
    svg = ElementTree.fromstring(draw(chart([1.0, 0.5]), 400, 300))
    assert [t.text for t in svg.findall(f"{SVG}rect/{SVG}title")] == [
        "revision 0\nER 1.0000",
        "revision 1\nER 0.5000",
    ]
    values = [0.25 if x == 5 else 1.0 for x in range(2_400)]
    svg = ElementTree.fromstring(draw(chart(values), 400, 300))
    first = svg.find(f"{SVG}rect/{SVG}title")
    assert first is not None
    assert first.text == "revision 0–9\nER 0.2500 to 1.0000"


def test_flags_in_one_column_of_pixels_are_one() -> None:
    flags = tuple(Flag(5.0, "revert", f"@{n} <b>") for n in range(8))
    svg = ElementTree.fromstring(draw(chart([1.0] * 10, flags), 400, 300))
    (title,) = svg.findall(f"{SVG}g/{SVG}title")
    assert title.text == "@0 <b>\n@1 <b>\n@2 <b>\n@3 <b>\n@4 <b>\nand 3 more"


def test_lines_that_coincide_are_seen_on_each_other() -> None:
    dots = [(0.0, 1.0), (1.0, 1.0)]
    lines = [Series("ER", "er", dots, 1.5), Series("SR", "sr", dots, 4.0)]
    drawn = draw(replace(chart([1.0, 1.0]), series=lines), 400, 300)
    polylines = ElementTree.fromstring(drawn).findall(f"{SVG}polyline")
    assert [(line.get("class"), line.get("stroke-width")) for line in polylines] == [
        ("line sr", "4.0"),
        ("line er", "1.5"),
    ]


def test_labels_of_a_lane_never_lie_on_each_other() -> None:
    bars = [Bar(x, x, "tag", f"a-name-{x}", f"tag {x}", is_beside=True) for x in (3, 4, 5, 97, 99)]
    whole = replace(chart([1.0] * 100), lanes=[Lane("tags", bars)])
    svg = ElementTree.fromstring(draw(whole, 400, 300))
    assert svg.get("viewBox") == f"0 0 400 {300 + LANE}"
    texts = [t for t in svg.findall(f"{SVG}text") if (t.get("class") or "").startswith("lane")]
    spans = sorted((float(t.get("x") or 0), LETTER * len(t.text or "")) for t in texts)
    assert {t.text for t in texts} == {"a-name-3", "a-name-97"}
    assert all(x + length <= after for (x, length), (after, _) in pairwise(spans))
    assert all(0 <= x and x + length <= 400 for x, length in spans)
    titles = [t.text for t in svg.findall(f"{SVG}rect/{SVG}title")]
    assert titles[-5:] == [bar.text for bar in bars]  # what has no room is said when pointed at


# -- texts


def test_only_markup_is_markup() -> None:
    made = element("p", "<b>", Markup("<i>x</i>"), None, 3, title='"<>&', data_x=True, hidden=False)
    assert made == '<p title="&quot;&lt;&gt;&amp;" data-x>&lt;b&gt;<i>x</i>3</p>'
    assert join("a", None, "&") == "a&amp;"


def test_texts_from_outside_are_isolated_and_spelt_out() -> None:
    assert told("a\u202eb\n<") == r"<bdi>a\u202eb\n&lt;</bdi>"
    assert "<details" in told("x" * 161)
    assert "<details" not in told("x" * 160)


def test_a_file_is_broken_behind_its_separators_alone() -> None:
    assert path("own/bad.jsonl") == "<bdi>own/<wbr>bad.jsonl</bdi>"
    assert path("<b>") == "<bdi>&lt;b&gt;</bdi>"


def test_numbers_read_as_what_they_are() -> None:
    assert [rate(v) for v in (None, 1.0, 0.9, 0.99999)] == ["–", "1.000", "0.900", "0.99999"]
    assert [seconds(v) for v in (None, 0.0123, 2.5, 1234.0)] == [
        "–",
        "12.3 ms",
        "2.50 s",
        "1,234 s",
    ]
