"""What an explanation cost, on its page: rows a second, who worked when, and how intervals narrowed with the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from ganscale.dashboards.layout import number
from ganscale.dashboards.page import figure
from ganscale.dashboards.svg import Series, line_chart, ticks

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

MOST_WORKERS = 32  # with a line of their own
_WIDTH, _LEFT, _RIGHT, _ROW, _BAR, _FOOT = 480, 70, 14, 20, 12, 36
_AXIS = "seconds since it began"


def cost_part(explanation: Explanation) -> str:
    """Return what is known of the cost: a sentence, the workers' timeline and the narrowing where they were recorded.

    Empty where nothing is known.
    """
    meta = explanation.meta
    cost = meta.get("cost", {})
    if "rows_forward" not in cost:
        return ""
    charts = _timeline(cost) + _narrowing(meta)
    return f"<p>{escape(_said(cost))}</p>\n" + (f'<div class="charts">{charts}</div>' if charts else "")


def _said(cost: Mapping[str, Any]) -> str:
    rows, back = cost["rows_forward"], cost.get("rows_backward", 0)
    seconds, worked, workers = cost.get("seconds"), cost["worker_seconds"], cost.get("workers", 0)
    passes = f"{rows:,} rows forward" + (f", {back:,} backward" if back else "")
    if not workers or not seconds:
        speed = f", {_whole(rows / worked)} forward a second" if worked > 0 and rows else ""
        return f"{passes}; {number(worked)} s of work in one process{speed}."
    at_work = worked / (workers * seconds)
    who = "One worker was" if workers == 1 else f"{workers} workers were"
    lost = cost.get("workers_replaced", 0)
    more = f" {lost} of them died and {'was' if lost == 1 else 'were'} replaced." if lost else ""
    return (
        f"{passes} in {number(seconds)} s, {_whole(rows / seconds)} forward a second. {who} at work "
        f"{100 * at_work:.0f} % of that time; the rest went into starting, waiting and putting together.{more}"
    )


def _whole(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 100 else number(amount)


def _timeline(cost: Mapping[str, Any]) -> str:
    """Return a bar a worker, filled while it computed; nothing where no workers were recorded."""
    processes = list(cost.get("timeline", {}).items())
    if not processes:
        return ""
    whole = max(cost.get("seconds", 0.0), *(spans[-1][1] for _, spans in processes))
    shown = processes[:MOST_WORKERS]
    tall = len(shown) * _ROW
    rows = [_row(place, process, spans, whole) for place, (process, spans) in enumerate(shown)]
    said = "; ".join(f"worker {place + 1} {number(_busy(spans))} s" for place, (_, spans) in enumerate(shown))
    label = f"Time at work out of {number(whole)} s: {said}"
    marks = "".join(_mark(tick, whole, tall) for tick in ticks(0, whole) if tick <= whole)
    axis = f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{tall + _FOOT - 2}" text-anchor="middle">{_AXIS}</text>'
    chart = (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {tall + _FOOT + 2}" role="img" aria-label="{escape(label)}">'
        f"{marks}{''.join(rows)}{axis}</svg>"
    )
    left = len(processes) - len(shown)
    more = f" {left} more are not drawn." if left else ""
    return figure(chart, f"When each worker computed; elsewhere it was being started or waited for chunks.{more}")


def _row(place: int, process: str, spans: Sequence[Sequence[float]], whole: float) -> str:
    top = place * _ROW + (_ROW - _BAR) / 2
    bars = "".join(
        f'<rect class="busy" x="{_across(begin, whole):.1f}" y="{top:.1f}" height="{_BAR}" '
        f'width="{max(0.8, _across(end, whole) - _across(begin, whole)):.1f}">'
        f"<title>{escape(process)}: {number(begin)} to {number(end)} s</title></rect>"
        for begin, end in spans
    )
    return f'<text x="{_LEFT - 7}" y="{top + 10:.1f}" text-anchor="end">worker {place + 1}</text>{bars}'


def _mark(tick: float, whole: float, tall: int) -> str:
    x = f"{_across(tick, whole):.1f}"
    line = f'<line class="rule" x1="{x}" x2="{x}" y1="0" y2="{tall + 3}"/>'
    return f'{line}<text x="{x}" y="{tall + 17}" text-anchor="middle">{tick:.6g}</text>'


def _across(seconds: float, whole: float) -> float:
    return _LEFT + seconds / (whole or 1.0) * (_WIDTH - _LEFT - _RIGHT)


def _busy(spans: Sequence[Sequence[float]]) -> float:
    return sum(end - begin for begin, end in spans)


def _narrowing(meta: Mapping[str, Any]) -> str:
    """Return how the widest interval narrowed as rows were drawn; nothing where no width was asked for."""
    points = meta.get("widest_by_rows", [])
    if len(points) < 2:
        return ""
    asked = [(points[0][0], meta["width"]), (points[-1][0], meta["width"])]
    series = [Series(label="widest", colour="blue", points=points), Series(label="asked", colour="grey", points=asked)]
    axes = {"x": "rows forward, without those of controls and scores", "y": "width, of the largest share"}
    chart = line_chart(series, title="Widest 95 % interval of any share", **axes, from_zero=True)
    return figure(chart, "The widest 95 % interval of any share, by rows; dashed, the width that was asked for.")
