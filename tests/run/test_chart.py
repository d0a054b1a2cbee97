"""The line charts: sound SVG, round ticks, gaps where there is no value."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedbpt_api.run.chart import Series, line_chart, ticks

values = st.floats(-1e6, 1e6)


def _draw(*series: Series) -> ElementTree.Element:
    return ElementTree.fromstring(line_chart(series, "a <chart>", "x & y", lambda y: f"{y:.3g}"))


@given(st.lists(st.tuples(st.floats(0, 1e6), values), min_size=1, max_size=20))
@example([(5e-324, 0.0)])
@example([(1.0, 0.0), (2.0, 5e-324)])
def test_every_known_point_is_drawn_inside_the_picture(points: list[tuple[float, float]]) -> None:
    svg = _draw(Series("a", "c0", tuple(points)))
    dots = svg.findall(".//circle")
    assert len(dots) == len(points)
    for dot in dots:
        assert 54 <= float(dot.attrib["cx"]) <= 506
        assert 12 <= float(dot.attrib["cy"]) <= 254


def test_larger_values_are_further_right_and_higher() -> None:
    svg = _draw(Series("a", "c0", ((0.0, 1.0), (10.0, 2.0), (20.0, 4.0))))
    dots = [(float(d.attrib["cx"]), float(d.attrib["cy"])) for d in svg.findall(".//circle")]
    assert dots == sorted(dots)
    heights = [y for _, y in dots]
    assert heights[1] - heights[2] == pytest.approx(2 * (heights[0] - heights[1]), abs=0.2)


def test_a_missing_value_breaks_the_line() -> None:
    svg = _draw(Series("a", "c0", ((0.0, 1.0), (1.0, math.nan), (2.0, 2.0), (3.0, 2.5))))
    path = svg.find(".//path")
    assert path is not None
    assert [step[0] for step in path.attrib["d"].split() if step[0].isalpha()] == ["M", "M", "L"]


def test_nothing_known_draws_nothing() -> None:
    assert line_chart([Series("a", "c0", ((1.0, math.nan),))], "a", "b", str) == ""


def test_names_are_escaped() -> None:
    svg = _draw(Series('<b>"x"', "c0", ((1.0, 1.0),)))
    title = svg.find(".//title")
    assert title is not None
    assert title.text == '<b>"x": 1 at 1'


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0, 10, 5, (0, 2, 4, 6, 8, 10)),
        (0.13, 0.87, 5, (0.2, 0.4, 0.6, 0.8)),
        (0, 17508, 5, (0, 5000, 10000, 15000)),
        (-1, 1, 4, (-1, -0.5, 0, 0.5, 1)),
        (1, 400_002, 2, (200_000, 400_000)),
    ],
)
def test_ticks_are_round(low: float, high: float, most: int, expected: tuple[float, ...]) -> None:
    assert ticks(low, high, most) == pytest.approx(expected)


@given(values, st.floats(1e-3, 1e6), st.integers(2, 8))
def test_ticks_are_few_and_inside(low: float, width: float, most: int) -> None:
    found = ticks(low, low + width, most)
    assert 0 < len(found) <= most + 1
    assert low - 1e-6 * width <= found[0] <= found[-1] <= low + width * (1 + 1e-6)


def test_ticks_refuse_an_empty_range() -> None:
    with pytest.raises(ValueError, match="no ticks"):
        ticks(1.0, 1.0, 5)
