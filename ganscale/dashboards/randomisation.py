"""Panels of the tests of a map: how alike it stays as the network is shuffled, and what retraining without it costs.

Legend: S stages, N samples, C channels, H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ganscale.dashboards.enlarging import DENSITY, enlarge, rgb
from ganscale.dashboards.figures import POINT, Canvas, signed_colours
from ganscale.dashboards.layout import (
    MARGIN,
    heading,
    heading_height,
    method_title,
    target_words,
)
from ganscale.dashboards.palette import INK, LINE, MUTED, SERIES

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

_SIDE, _GAP, _CHART, _NAMES = 76, 8, 200, 52


def randomisation_panel(explanation: Explanation) -> np.ndarray:
    """Draw likeness over the stages above a strip of maps for each sample shown; uint8 RGB [H, W, 3]."""
    values, layers = explanation.values, explanation.meta["layers"]
    strips = values["stage_maps"] if explanation.inputs["x"].ndim == 4 else values["stage_maps"][:, :0]
    columns, rows = len(layers) + 2, strips.shape[1]
    lines = [
        f"{method_title(explanation.meta['of'])} of {target_words(explanation)}. Each map has a scale of its own.",
        "Layers are shuffled from the output back, each beside those before it.",
        "A map about this network falls below the grey line, the likeness of its own maps of slightly moved inputs.",
    ]
    banner = explanation.not_better_than_random
    top = heading_height(lines=len(lines), banner=banner)
    chart = _CHART + _NAMES
    body = chart + (22 + rows * (_SIDE + _GAP) if rows else 0)
    width = max(2 * MARGIN + columns * (_SIDE + _GAP), 860)
    canvas = Canvas(width, top + body + MARGIN)
    y = heading(canvas, method_title(explanation.method), lines, banner=banner, of=explanation)
    _curve(canvas, y, explanation)
    y += chart
    for column, name in enumerate(("input", "trained", *layers)):
        if rows:
            most = _step(canvas.width, columns) // 6
            words = name if len(name) <= most else f"…{name[1 - most :]}"
            canvas.text(
                MARGIN + column * _step(canvas.width, columns), y, words, size=11, bold=column < 2, colour=MUTED.light
            )
    for row in range(rows):
        _strip(canvas, y + 22 + row * (_SIDE + _GAP), explanation, row)
    return canvas.array()


def _step(width: int, columns: int) -> int:
    """Return how far columns of the strip stand apart: as far as names need, within the panel."""
    return min((width - 2 * MARGIN) // columns, _SIDE + 60)


def _curve(canvas: Canvas, y: int, explanation: Explanation) -> None:
    stages_SN = explanation.values["similarity"].numpy()
    moved = float(explanation.values["similarity_moved"].nanmean())
    axes = canvas.axes(MARGIN + 50, y + 20, canvas.width - 2 * MARGIN - 60, _CHART - 30)
    place = np.arange(len(stages_SN) + 1)
    whole_SN = np.concatenate([np.ones((1, stages_SN.shape[1])), stages_SN])
    axes.plot(place, whole_SN, color=SERIES["blue"].light, linewidth=0.6, alpha=0.4)
    mean_S = [1.0, *explanation.values["similarity"].nanmean(dim=1).tolist()]  # of the samples that have the stage
    axes.plot(place, mean_S, color=SERIES["blue"].light, linewidth=2, marker="o", markersize=4)
    axes.axhline(moved, color=SERIES["grey"].light, linestyle="--", linewidth=1.6)
    axes.text(place[-1], moved, "moved inputs ", ha="right", va="bottom", fontsize=11 * POINT, color=INK.light)
    axes.set_ylim(0, 1.05)
    axes.set_xticks(place, ["trained", *explanation.meta["layers"]], rotation=30, ha="right")
    canvas.label_axes(axes, title="Likeness to the trained network's map", x="", y="|rank correlation|")


def _strip(canvas: Canvas, y: int, explanation: Explanation, row: int) -> None:
    maps = explanation.values["stage_maps"][:, row].double().sum(dim=1).numpy()
    pictures = [rgb(explanation.inputs["x"][row].numpy())]
    for values in maps:  # a scale of its own each: a shuffled network's gradients may have any size
        limit = float(np.quantile(np.abs(values), 0.995)) or 1.0
        pictures.append(signed_colours(values, limit=limit))
    for column, picture in enumerate(pictures):
        pixels = enlarge(picture, side=_SIDE)
        left = MARGIN + column * _step(canvas.width, len(pictures))
        height, width = (edge / DENSITY for edge in pixels.shape[:2])
        canvas.box(left - 1, y - 1, width + 2, height + 2, line=LINE.light)
        canvas.image(left, y, pixels)


def retraining_panel(explanation: Explanation) -> np.ndarray:
    """Draw held-out accuracy over the share removed, by the map and at random; uint8 RGB [H, W, 3]."""
    values, meta = explanation.values, explanation.meta
    lines = [
        f"{method_title(meta['of'])}: networks trained anew without the regions that rank first; one dot a network.",
        "A map has found what tells the classes apart where accuracy falls faster than without random regions.",
    ]
    banner = explanation.not_better_than_random
    top = heading_height(lines=len(lines), banner=banner)
    canvas = Canvas(860, top + 300 + MARGIN)
    y = heading(canvas, method_title(explanation.method), lines, banner=banner, of=explanation)
    axes, share = canvas.axes(MARGIN + 50, y + 20, 760, 220), values["removed_share"].numpy()
    for name, colour, words in (
        ("accuracy_random", "grey", "random regions"),
        ("accuracy", "blue", "this map's first"),
    ):
        found_FR = values[name].numpy()
        axes.plot(share, found_FR.mean(axis=1), color=SERIES[colour].light, linewidth=2, label=words)
        axes.plot(share, found_FR, color=SERIES[colour].light, linestyle="none", marker="o", markersize=3)
    axes.axhline(meta["majority"], color=MUTED.light, linestyle=":", linewidth=1.2, label="the commonest class")
    axes.legend(frameon=False, fontsize=11 * POINT, labelcolor=INK.light)
    canvas.label_axes(axes, title="Held-out accuracy", x="share of regions removed", y="accuracy")
    return canvas.array()
