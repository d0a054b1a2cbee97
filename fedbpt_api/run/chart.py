"""Line charts as inline SVG: no scripts, no fonts, colours by CSS class so that themes apply."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

_WIDTH, _HEIGHT = 520.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 54.0, 14.0, 12.0, 46.0


@dataclass(frozen=True, slots=True)
class Series:
    """One line.

    Attributes:
        name: For the tooltips.
        css: CSS class of its group, which gives the colour.
        points: (x, y) pairs; a y that is not finite leaves a gap.
        band: (x, lower, upper) of an area that is shaded behind it.
    """

    name: str
    css: str
    points: tuple[tuple[float, float], ...]
    band: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class _Frame:
    """Maps data to pixels."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def ticks(low: float, high: float, most: int) -> tuple[float, ...]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`, at most `most` + 1.

    Raises:
        ValueError: Not low < high, both finite.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"no ticks between {low} and {high}")
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    steps = [factor * power for factor in (0.5, 1.0, 2.0, 5.0, 10.0)]
    at = next(i for i in range(1, len(steps)) if steps[i] >= raw * (1 - 1e-9))
    # The range may lie between two multiples; those of the next finer step are then still few enough.
    return _multiples(steps[at], low, high) or _multiples(steps[at - 1], low, high)


def _multiples(step: float, low: float, high: float) -> tuple[float, ...]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(i * step for i in range(first, last + 1))


def line_chart(
    series: Sequence[Series], label: str, x_label: str, y_format: Callable[[float], str]
) -> Markup:
    """The SVG of a line chart; later series are drawn over earlier ones.

    Args:
        series: The lines.
        label: What it shows, for screen readers.
        x_label: Title of the horizontal axis.
        y_format: Text of a value on the vertical axis.

    Returns:
        An `<svg>` element; empty where there is nothing to draw.
    """
    places = [place for line in series for place in line.points]
    places += [(x, y) for line in series for x, *ends in line.band for y in ends]
    known = [(x, y) for x, y in places if math.isfinite(x) and math.isfinite(y)]
    if not known:
        return Markup("")
    frame = _frame(known)
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">').format(
            _WIDTH, _HEIGHT, label
        ),
        *_grid(frame, x_label, y_format),
        *(_band(line, frame) for line in series if line.band),
        *(_line(line, frame, y_format) for line in series),
        Markup("</svg>"),
    ]
    return Markup("\n").join(parts)


def _frame(known: Sequence[tuple[float, float]]) -> _Frame:
    x_low, x_high = min(x for x, _ in known), max(x for x, _ in known)
    y_low, y_high = min(y for _, y in known), max(y for _, y in known)
    x_low = 0.0 if x_low >= 0 else x_low
    x_high = max(x_high, x_low + 1.0)  # scored examples: whole ones
    spread, size = y_high - y_low, max(abs(y_low), abs(y_high), 0.1)
    padding = 0.06 * spread if spread > 1e-9 * size else 0.05 * size  # rounding is no difference
    return _Frame(x_low, x_high, y_low - padding, y_high + padding)


def _grid(frame: _Frame, x_label: str, y_format: Callable[[float], str]) -> list[Markup]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for value in ticks(frame.y_low, frame.y_high, 5):
        y = frame.y(value)
        line = Markup('<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>')
        parts.append(line.format(_LEFT, right, y, y))
        text = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>')
        parts.append(text.format(_LEFT - 8, y + 4, y_format(value)))
    for value in ticks(frame.x_low, frame.x_high, 5):
        text = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>')
        parts.append(text.format(frame.x(value), bottom + 18, f"{value:,.0f}"))
    axis = Markup('<line class="axis" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>')
    parts.append(axis.format(_LEFT, right, bottom, bottom))
    title = Markup('<text class="title" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>')
    parts.append(title.format((_LEFT + right) / 2, _HEIGHT - 8, x_label))
    return parts


def _band(line: Series, frame: _Frame) -> Markup:
    upper = [(x, high) for x, _, high in line.band]
    lower = [(x, low) for x, low, _ in reversed(line.band)]
    corners = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in (*upper, *lower))
    return Markup('<polygon class="band {}" points="{}"/>').format(line.css, corners)


def _line(line: Series, frame: _Frame, y_format: Callable[[float], str]) -> Markup:
    path, pen_down = [], False
    dots = []
    for x, y in line.points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen_down = False
            continue
        px, py = frame.x(x), frame.y(y)
        path.append(f"{'L' if pen_down else 'M'}{px:.1f} {py:.1f}")
        pen_down = True
        dot = Markup('<circle cx="{:.1f}" cy="{:.1f}"><title>{}: {} at {}</title></circle>')
        dots.append(dot.format(px, py, line.name, y_format(y), f"{x:,.0f}"))
    group = Markup('<g class="series {}"><path d="{}"/>{}</g>')
    return group.format(line.css, " ".join(path), Markup("").join(dots))
