"""Line charts as inline SVG: no script, colours from the page's variables, each point readable by pointer or reader."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from ganscale.dashboards.layout import number

_WIDTH, _HEIGHT = 480, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 38
_MOST_POINTS = 240
_DASHES = ("", "7 4", "2 3", "9 3 2 3")


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line: points (x, y) in order of x; a None breaks the line. ``colour`` is a role of the palette."""

    label: str
    colour: str
    points: Sequence[tuple[float, float | None]]


def line_chart(series: Sequence[Series], *, title: str, x: str, y: str, from_zero: bool = False) -> str:
    """Return one ``<svg>``: axes with round ticks, a line a series (solid, dashed, ...), a tooltip a point.

    ``from_zero`` keeps 0 on the upright axis, for amounts that are read as such.
    """
    thinned = [Series(label=s.label, colour=s.colour, points=_thin(s.points)) for s in series]
    known = [(px, py) for s in thinned for px, py in s.points if py is not None and math.isfinite(py)]
    if not known:
        return ""
    x_span = (min(0.0, *(p[0] for p in known)), max(p[0] for p in known))
    x_ticks = [tick for tick in ticks(*x_span) if x_span[0] <= tick <= x_span[1]]
    heights = [p[1] for p in known] + ([0.0] if from_zero else [])
    y_ticks = ticks(min(heights), max(heights))
    y_span = (y_ticks[0], y_ticks[-1])

    def place(px: float, py: float) -> tuple[float, float]:
        across = (px - x_span[0]) / ((x_span[1] - x_span[0]) or 1)
        up = (py - y_span[0]) / ((y_span[1] - y_span[0]) or 1)
        left = _LEFT + across * (_WIDTH - _LEFT - _RIGHT)
        return left, _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(_say(title, series))}">'
    ]
    parts += [_y_tick(*place(x_span[0], tick), tick) for tick in y_ticks]
    parts += [_x_tick(*place(tick, y_span[0]), tick) for tick in x_ticks]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x)}</text>')
    upright = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text class="axis" transform="translate(12 {upright}) rotate(-90)" text-anchor="middle">{escape(y)}</text>'
    )
    parts += [_line(s, dash, place) for s, dash in zip(thinned, _DASHES * len(thinned), strict=False)]
    return "".join([*parts, "</svg>"])


def swatch(colour: str, place: int) -> str:
    """Return the small line that a legend shows for the series at ``place``."""
    dash = _DASHES[place % len(_DASHES)]
    stroke = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<svg class="swatch" viewBox="0 0 28 10" aria-hidden="true"><line x1="1" y1="5" x2="27" y2="5" '
        f'class="line {colour}"{stroke}/></svg>'
    )


def ticks(low: float, high: float, *, wanted: int = 5) -> list[float]:
    """Return about ``wanted`` round numbers that span [low, high]; steps are 1, 2, 2.5 or 5 times a power of ten."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def _thin(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """Keep lowest and highest of each stretch, so that a thinned line still shows every spike."""
    points = list(points)
    if len(points) <= _MOST_POINTS:
        return points
    stretch = math.ceil(len(points) / (_MOST_POINTS // 2))
    kept: list[tuple[float, float | None]] = []
    for start in range(0, len(points), stretch):
        known = [point for point in points[start : start + stretch] if point[1] is not None]
        ends = {min(known, key=lambda p: p[1]), max(known, key=lambda p: p[1])} if known else {points[start]}
        kept += sorted(ends, key=lambda p: p[0])
    if kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def _say(title: str, series: Sequence[Series]) -> str:
    said = []
    for s in series:
        known = [(x, y) for x, y in s.points if y is not None]
        if known:
            said.append(f"{s.label} goes from {number(known[0][1])} to {number(known[-1][1])}")
    return f"{title}: " + "; ".join(said)


def _y_tick(left: float, y: float, tick: float) -> str:
    return (
        f'<line class="rule" x1="{left:.1f}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{left - 7:.1f}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>'
    )


def _x_tick(x: float, bottom: float, tick: float) -> str:
    return (
        f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom:.1f}" y2="{bottom + 4:.1f}"/>'
        f'<text class="tick" x="{x:.1f}" y="{bottom + 17:.1f}" text-anchor="middle">{_short(tick)}</text>'
    )


def _short(tick: float) -> str:
    return f"{tick:.6g}".replace("-", "−")


def _line(series: Series, dash: str, place: Callable[[float, float], tuple[float, float]]) -> str:
    stroke = f' stroke-dasharray="{dash}"' if dash else ""
    strokes: list[list[tuple[float, float]]] = [[]]
    dots = []
    for x, y in series.points:
        if y is None or not math.isfinite(y):
            strokes.append([])
            continue
        left, top = place(x, y)
        strokes[-1].append((left, top))
        words = f"{series.label} at {_short(x)}: {number(y)}"
        circle = f'<circle class="dot {series.colour}" cx="{left:.1f}" cy="{top:.1f}" r="4">'
        dots.append(f"{circle}<title>{escape(words)}</title></circle>")
    lines = [
        f'<polyline class="line {series.colour}"{stroke} points="'
        + " ".join(f"{a:.1f},{b:.1f}" for a, b in run)
        + '"/>'
        for run in strokes
        if len(run) > 1
    ]
    lone = " lone" if sum(map(len, strokes)) == 1 else ""
    return f'<g class="series{lone}">' + "".join(lines + dots) + "</g>"
