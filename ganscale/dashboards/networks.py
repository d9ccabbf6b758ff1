"""Panels of generator and critic side by side: maps and filters of their layers, and what single units do to the logit.

Legend: S shown channels, U units, h height, w width of a map or a filter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ganscale.dashboards.figures import POINT, Canvas
from ganscale.dashboards.gallery import Row, Tile, gallery
from ganscale.dashboards.layout import MARGIN, heading, heading_height, method_title, number
from ganscale.dashboards.palette import DOWN, MUTED, UP

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

MOST_UNITS = 24  # drawn of a layer
_CHART, _WIDTH = 170, 8


def side_by_side_panel(explanation: Explanation) -> np.ndarray:
    """Draw layers of one map size in a row, the generator's left and the critic's right; uint8 RGB [H, W, 3]."""
    meta = explanation.meta
    layers = {which: _layers(explanation, which) for which in "gd"}
    sizes = sorted({size for found in layers.values() for _, size in found})
    rows = [Row(title="the image", tiles=[Tile(values=explanation.values["shown_image"].numpy(), words="G(z)")])]
    for size in sizes:
        pairs = [[place for place, own in layers[which] if own == size] for which in "gd"]
        for step in range(max(len(pair) for pair in pairs)):
            places = [pair[step] if step < len(pair) else None for pair in pairs]
            names = [
                None if place is None else meta[key][place]
                for place, key in zip(places, ("layers_generator", "layers_critic"), strict=True)
            ]
            tiles, notes = [], []
            for which, place, name in zip("gd", places, names, strict=True):
                drawn, scale = _tiles(explanation, which, place)
                tiles += drawn
                if name is not None:
                    notes += [f"{which.upper()} {name}", f"±{scale}"]
            rows.append(Row(title=f"{size[0]} × {size[1]}", tiles=tiles, notes=notes))
    lines = [
        "The most varied channels of each layer on one image, beside the filters that make them.",
        "A layer's maps and its filters are each divided by their largest; ± at the left: by what (maps, filters).",
    ]
    shown = max((len(explanation.values[key]) for key in explanation.values if key.startswith("channels_")), default=1)
    columns = [
        words if place == 0 else ""
        for words in ("maps of G", "filters of G", "maps of D", "filters of D")
        for place in range(shown)
    ]
    return gallery(explanation, rows, lines, columns=columns)


def _layers(explanation: Explanation, which: str) -> list[tuple[int, tuple[int, int]]]:
    """Return place and map size of a network's drawn layers."""
    values, key = explanation.values, "layers_generator" if which == "g" else "layers_critic"
    places = [place for place in range(len(explanation.meta[key])) if f"maps_{which}{place}" in values]
    return [(place, tuple(values[f"maps_{which}{place}"].shape[1:])) for place in places]


def _tiles(explanation: Explanation, which: str, place: int | None) -> tuple[list[Tile | None], str]:
    """Return a layer's maps and filters as tiles, each kind over its largest value, and these two values."""
    values = explanation.values
    shown = max(len(values[key]) for key in values if key.startswith("channels_"))
    if place is None:
        return [None] * (2 * shown), ""
    tiles, scales = [], []
    channels = values[f"channels_{which}{place}"].tolist()
    for kind, mark in (("maps", "channel"), ("filters", "")):
        planes = values[f"{kind}_{which}{place}"].double().numpy()
        largest = max(float(np.abs(planes).max(initial=0)), 1e-30)
        drawn = [
            Tile(values=plane / largest, words=f"{mark} {channel}" if mark else "")
            for plane, channel in zip(planes, channels, strict=False)
        ]
        tiles += [*drawn, *[None] * (shown - len(drawn))]
        scales.append(number(largest) if len(planes) else "–")
    return tiles, ", ".join(scales)


def unit_logits_panel(explanation: Explanation) -> np.ndarray:
    """Draw for each generator layer what its units add to the critic's logit, as bars; uint8 RGB [H, W, 3]."""
    meta, values = explanation.meta, explanation.values
    layers = meta["layers_of_units"]
    lines = [
        f"D's logit with a unit minus without it (set to 0), mean of {meta['latents_of_units']} latents, with 95 %.",
        "Red: the unit makes pictures look more real to the critic, blue: less. A scale of its own for each layer.",
    ]
    banner = explanation.not_better_than_random
    top = heading_height(lines=len(lines), banner=banner)
    canvas = Canvas(900, top + (_CHART + 70) * len(layers) + 10)
    title = f"{method_title(explanation.method)}: units of G, logit of D"
    y = heading(canvas, title, lines, banner=banner, of=explanation)
    for place, name in enumerate(layers):
        effect, units = values[f"units_logit_{place}"].numpy(), values[f"units_{place}"].numpy()
        half = 1.96 * values[f"units_logit_error_{place}"].numpy()
        limit = 1.1 * float((np.abs(effect) + half).max()) or 1.0
        order = np.argsort(-np.abs(effect), kind="stable")[:MOST_UNITS]
        order = order[np.argsort(-effect[order], kind="stable")]
        width = min(canvas.width - 2 * MARGIN - 60, 40 + 34 * len(order))
        axes = canvas.axes(MARGIN + 56, y + 22 + place * (_CHART + 70), width, _CHART)
        colours = [UP if value >= 0 else DOWN for value in effect[order]]
        axes.bar(range(len(order)), effect[order], yerr=half[order], color=colours, ecolor=MUTED.light, capsize=2)
        axes.axhline(0, color=MUTED.light, linewidth=0.8)
        axes.set_ylim(-limit, limit)
        axes.set_xticks(range(len(order)), units[order], fontsize=10 * POINT)
        few = f": the {len(order)} strongest of {len(effect)}" if len(order) < len(effect) else ""
        canvas.label_axes(axes, title=f"{name}{few}", x="unit", y="change of D(G(z))")
    return canvas.array()
