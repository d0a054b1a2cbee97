"""Curves of several methods against what they cost: mean over seeds, the standard deviation as a band."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import mean, pstdev

from markupsafe import Markup, escape

from fedbpt_api.run.chart import Series, line_chart

# Okabe and Ito's colours, which can be told apart by the colour-blind, then the same dashed.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")
_STYLE = """
svg { font: 12px system-ui, sans-serif; } rect.page { fill: #fff; }
.grid { stroke: #e4e4e4; } .axis { stroke: #888; } text { fill: #333; }
.series path { fill: none; stroke-width: 2; } .series circle { r: 1.6; } .band { opacity: .13; stroke: none; }
"""
_STEPS = 60
_DASHED = "stroke-dasharray: 5 3;"


@dataclass(frozen=True, slots=True)
class Curve:
    """A method's runs: for each seed its (scored examples, value) pairs in their order."""

    name: str
    runs: Sequence[Sequence[tuple[int, float]]]


def curves_svg(curves: Sequence[Curve], x_label: str, label: str) -> str:
    """A standing-alone SVG of the curves, the legend in the order of their ends."""
    series = [_series(curve, f"s{number}") for number, curve in enumerate(curves)]
    chart = line_chart(series, label, x_label, lambda y: f"{y:.3g}")
    inner = str(chart).replace(
        '<svg class="chart"', '<svg class="chart" x="0" y="22" width="520" height="300"', 1
    )
    rules = "".join(
        f".s{n} path, line.s{n} {{ stroke: {colour}; {_DASHED if n >= len(_COLOURS) else ''} }}"
        f" .s{n} circle, .band.s{n} {{ fill: {colour}; }}"
        for n, colour in zip(range(len(series)), cycle(_COLOURS), strict=False)
    )
    legend = [
        f'<line class="{line.css}" x1="530" x2="552" y1="{y}" y2="{y}" stroke-width="2"/>'
        f'<text x="558" y="{y + 4}">{escape(line.name)}</text>'
        for line, y in zip(series, range(40, 40 + 18 * len(series), 18), strict=True)
    ]
    title = f'<text x="54" y="18" font-weight="600">{escape(label)}</text>'
    page = '<rect class="page" width="700" height="324"/>'
    return str(
        Markup("\n").join(
            Markup(part)
            for part in (
                '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 324" width="700" height="324">',
                f"<style>{_STYLE}{rules}</style>",
                page,
                title,
                inner,
                *legend,
                "</svg>\n",
            )
        )
    )


def _series(curve: Curve, css: str) -> Series:
    """Mean and deviation on common places, from where every run has a value up to the longest one's end."""
    begun = max(run[0][0] for run in curve.runs)
    ended = max(run[-1][0] for run in curve.runs)
    places = sorted({begun + (ended - begun) * k // _STEPS for k in range(_STEPS + 1)})
    points, band = [], []
    for place in places:
        values = [v for v in (_at(run, place) for run in curve.runs) if math.isfinite(v)]
        if values:
            middle, spread = mean(values), pstdev(values)
            points.append((float(place), middle))
            band.append((float(place), middle - spread, middle + spread))
    return Series(curve.name, css, tuple(points), tuple(band) if len(curve.runs) > 1 else ())


def _at(run: Sequence[tuple[int, float]], place: int) -> float:
    """A run's value once `place` examples are scored: the last one that it had by then."""
    at = bisect_right([scored for scored, _ in run], place)
    return run[at - 1][1] if at else math.nan
