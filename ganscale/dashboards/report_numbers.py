"""The report's sections of numbers: progress curves from ``metrics.jsonl`` and evaluations with their floors."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from ganscale.dashboards.layout import measured_on, number
from ganscale.dashboards.page import details, note, table
from ganscale.dashboards.palette import role
from ganscale.dashboards.run_facts import RunFacts
from ganscale.dashboards.svg import Series, line_chart, swatch

_X = "thousands of real images seen (kimg)"

#: Title, y label, prefix or names of the scalars drawn together, and what to look for.
_CHARTS: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("Losses", "loss", ("loss/",), "Adversarial losses; they need not fall, they should not drift apart or jump."),
    ("D(real) and D(fake)", "logit", ("logits/",), "Mean raw logits. A gap that only grows means the critic has won."),
    (
        "Gradient norms",
        "L2 norm",
        ("grad_norm/",),
        "Of all gradients of a phase; near zero or growing without end is bad.",
    ),
    ("Penalty", "penalty", ("penalty",), "The critic's gradient penalty before its weight."),
    ("Throughput", "kimg/s", ("speed/kimg_per_s",), "Thousands of real images a second, all workers."),
)
_FROM_ZERO = ("Gradient norms", "Penalty", "Throughput")


def progress_section(facts: RunFacts) -> str:
    """Return the curves of all ticks, and the same numbers as a table."""
    if not facts.ticks:
        return note("Nothing was measured yet: metrics.jsonl is missing or empty. The first line comes after one tick.")
    parts = ['<div class="charts">']
    for title, y, names, words in _CHARTS:
        chart = _chart(facts, title, y, names, words)
        if chart:
            parts.append(chart)
    parts.append("</div>")
    parts.append(details("The curves as numbers", _tick_table(facts)))
    return "\n".join(parts)


def metrics_section(facts: RunFacts) -> str:
    """Return the newest evaluation with floors and stamps, and earlier ones beside it."""
    if not facts.evaluations:
        return note("This run was not evaluated yet.", f"ganscale evaluate {facts.name_for_commands}")
    newest = facts.evaluations[-1]
    untrained = newest.get("untrained") or {}
    head = [
        "metric",
        "value",
        "spread",
        "floor: real v real",
        *(["untrained", "of untrained"] if untrained else []),
        "better",
    ]
    rows = [
        [name, *_numbers(entry, untrained.get(name) if untrained else None, bool(untrained)), entry.get("better", "")]
        for name, entry in newest["values"].items()
    ]
    words = measured_on(newest["values"])
    shown = table(
        head,
        rows,
        caption=f"Measured at {newest['images'] / 1000:g} kimg{words}; read each value with its floor",
        numeric=range(1, len(head) - 1),
    )
    parts = [shown, details("How it was measured", _stamps(newest["values"]))]
    if len(facts.evaluations) > 1:
        parts.append(_history(facts))
    return "\n".join(parts)


def _chart(facts: RunFacts, title: str, y: str, names: tuple[str, ...], words: str) -> str:
    series = []
    for name in _matching(facts, names):
        points = [(tick["images"] / 1000, _value(tick, name)) for tick in facts.ticks]
        label = name.split("/", 1)[-1] if name.startswith(("loss/", "grad_norm/")) else _LABELS.get(name, name)
        series.append(Series(label=label, colour=role(name), points=points))
    drawn = line_chart(series, title=title, x=_X, y=y, from_zero=title in _FROM_ZERO) if series else ""
    if not drawn:
        return ""
    legend = "".join(
        f"<li>{swatch(s.colour, place)}{escape(s.label)} <b>{number(_last(s))}</b></li>"
        for place, s in enumerate(series)
    )
    return (
        f'<figure><h3>{escape(title)}</h3><ul class="legend" aria-label="Series and their last values">{legend}</ul>'
        f"{drawn}<figcaption>{escape(words)}</figcaption></figure>"
    )


_LABELS = {"logits/real": "D(real)", "logits/fake": "D(fake)", "speed/kimg_per_s": "kimg/s"}


def _matching(facts: RunFacts, names: tuple[str, ...]) -> list[str]:
    known: dict[str, None] = {}
    for tick in facts.ticks:
        known |= dict.fromkeys([*tick["scalars"], *(f"speed/{key}" for key in tick["timing"])])
    found = [
        name
        for name in known
        if any(name == wanted or (wanted.endswith("/") and name.startswith(wanted)) for wanted in names)
    ]
    return sorted(found, key=lambda name: (role(name) != "blue", name))


def _value(tick: Mapping[str, Any], name: str) -> float | None:
    group, _, rest = name.partition("/")
    return tick["timing"].get(rest) if group == "speed" else tick["scalars"].get(name)


def _last(series: Series) -> float | None:
    return next((y for _, y in reversed(series.points) if y is not None), None)


def _tick_table(facts: RunFacts) -> str:
    names = [name for _, _, wanted, _ in _CHARTS for name in _matching(facts, wanted)]
    every = max(1, len(facts.ticks) // 20)
    chosen = facts.ticks[::-1][::every][::-1]
    rows = [(f"{tick['images'] / 1000:g}", *(number(_value(tick, name)) for name in names)) for tick in chosen]
    caption = "Means over a tick" + (f"; every {every}th tick, all of them are in metrics.jsonl" if every > 1 else "")
    return table(("kimg", *names), rows, caption=caption, numeric=range(len(names) + 1))


def _numbers(entry: Mapping[str, Any], first: Mapping[str, Any] | None, with_untrained: bool) -> list[str]:
    cells = [number(entry["value"]), number(entry.get("spread")), number(entry.get("floor"))]
    if not with_untrained:
        return cells
    if first is None or first["value"] is None:
        return [*cells, "–", "–"]
    share = "–" if entry["value"] is None or first["value"] <= 0 else f"{entry['value'] / first['value']:.0%}"
    return [*cells, number(first["value"]), share]


def _stamps(values: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the stamps; what all metrics share is written once."""
    stamps = {name: entry.get("stamp") or {} for name, entry in values.items()}
    first = next(iter(stamps.values()))
    shared = {key: value for key, value in first.items() if all(s.get(key) == value for s in stamps.values())}
    parts = [table(("what", "value"), list(shared.items()), caption="The same for every metric")]
    rows = [
        (name, ", ".join(f"{k}: {v}" for k, v in stamp.items() if k not in shared)) for name, stamp in stamps.items()
    ]
    if any(words for _, words in rows):
        parts.append(table(("metric", "its own"), rows, caption="What differs"))
    return "\n".join(parts)


def _history(facts: RunFacts) -> str:
    names = list(facts.evaluations[-1]["values"])
    rows = [
        (f"{page['images'] / 1000:g}", *(number(page["values"].get(name, {}).get("value")) for name in names))
        for page in facts.evaluations
    ]
    return table(
        ("kimg", *names),
        rows,
        caption="Over training; compare only where the stamps are equal",
        numeric=range(len(names) + 1),
    )
