"""Panel of what editing each layer does: a matrix of layers and effects, and curves over the amount of the edit.

Legend: L layers, E effects, A amounts of an edit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps

from ganscale.dashboards.figures import POINT, Canvas
from ganscale.dashboards.layout import (
    MARGIN,
    heading,
    heading_height,
    method_title,
    number,
)
from ganscale.dashboards.palette import DIVERGING, INK, MUTED

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

_CHART, _NAMES, _CELL, _ROW, _COLUMN_NAMES = 260, 120, 104, 34, 96
_JUDGED = {"pixels": "pixels", "features": "features", "critic": "critic's logit", "class": "verdicts changed"}
_UNITS = {"unit_effect_pixels": "pixels\n(one unit)", "unit_effect_of_chance_pixels": "pixels\n(random unit)"}


def effects_panel(explanation: Explanation) -> np.ndarray:
    """Draw layers down and effects across, and where an edit has amounts its curve; uint8 RGB [H, W, 3].

    Each column has a scale of its own, as pixels, logits and verdicts have.
    """
    layers, columns, matrix_LE = _effects(explanation)
    lines = [
        "Mean effect over all latents of editing one layer, as a number and as a colour.",
        "Each column has its own scale: red the most that any layer does, white nothing, blue as much the other way.",
    ]
    if "effect_features" in explanation.values:
        lines.append("Features are the classifier's own: 1 is as far as to another latent's picture.")
    if "unit_effect_pixels" in explanation.values:
        lines.append("One unit: the layer's most varied ones, each taken away alone, beside as many random ones.")
    banner, curve = explanation.not_better_than_random, "curve_pixels" in explanation.values
    top = heading_height(lines=len(lines), banner=banner)
    tall, wide = max(_ROW * len(layers), 120), _CELL * len(columns)
    width, below = max(2 * MARGIN + _NAMES + wide + 90, 860), tall + _COLUMN_NAMES
    canvas = Canvas(width, top + below + (_CHART + 64 if curve else 0) + 12)
    title = f"{method_title(explanation.method)}: what each layer does"
    y = heading(canvas, title, lines, banner=banner, of=explanation)
    _matrix(canvas, (MARGIN + _NAMES, y + 8, wide, tall), layers, columns, matrix_LE)
    if curve:
        _curves(canvas, (MARGIN + _NAMES, y + below), explanation)
    return canvas.array()


def _effects(explanation: Explanation) -> tuple[list[str], list[str], np.ndarray]:
    """Return the layers, the names of the effects and the effects [L, E]."""
    values, meta = explanation.values, explanation.meta
    if "share_mixed" in values:
        names = [f"share with\n{meta['part']}".replace(" of the channels", ""), "share with\nall of it"]
        return meta["layers"], names, np.stack([values["share_mixed"].numpy(), values["share_whole"].numpy()], axis=1)
    found = [
        (f"{words}\n({way})", values[f"effect_{key}"][:, place].numpy())
        for place, way in enumerate(meta["edits"])
        for key, words in _JUDGED.items()
        if f"effect_{key}" in values
    ]
    for key, name in _UNITS.items():
        if key in values:  # a layer of one unit has none
            there = values["units"].numpy() >= 0
            found.append((name, np.ma.array(values[key].numpy(), mask=~there).mean(axis=1).filled(np.nan)))
    return meta["layers"], [name for name, _ in found], np.stack([column for _, column in found], axis=1)


def _matrix(
    canvas: Canvas, box: tuple[float, float, float, float], layers: list[str], columns: list[str], matrix_LE: np.ndarray
) -> None:
    most_E = np.nanmax(np.abs(matrix_LE), axis=0)
    axes = canvas.axes(*box)
    scaled = matrix_LE / np.where(most_E > 0, most_E, 1.0)
    shown = axes.imshow(scaled, cmap=colormaps[DIVERGING], vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    axes.grid(visible=False)
    axes.set_xticks(range(len(columns)), columns, fontsize=10 * POINT)
    axes.set_yticks(range(len(layers)), layers, fontsize=11 * POINT)
    for (row, column), value in np.ndenumerate(matrix_LE):
        ink = "white" if abs(scaled[row, column]) > 0.6 else INK.light
        of_critic = columns[column].startswith(_JUDGED["critic"])
        words = "–" if np.isnan(value) else number(float(value), signed=of_critic)
        axes.text(column, row, words, ha="center", va="center", fontsize=10 * POINT, color=ink)
    canvas.scale(axes, shown, words="of the column's most")


def _curves(canvas: Canvas, corner: tuple[float, float], explanation: Explanation) -> None:
    values = explanation.values
    axes = canvas.axes(*corner, 520, _CHART)
    amounts, layers = values["curve_amounts"].numpy(), explanation.meta["layers"]
    colours = colormaps["viridis"](np.linspace(0, 0.85, len(layers)))
    for place, (name, colour) in enumerate(zip(layers, colours, strict=True)):
        mean, half = values["curve_pixels"][place].numpy(), 1.96 * values["curve_error"][place].numpy()
        axes.fill_between(amounts, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)
        axes.plot(amounts, mean, color=colour, marker="o", markersize=3, linewidth=1.6, label=name)
    noise = explanation.meta["shown_edit"] == "noise"
    words = "noise, in standard deviations of a channel" if noise else "share of the layer's variation taken away"
    canvas.label_axes(axes, title="As the edit grows (bands: 95 %)", x=words, y="change of pixels (rms)")
    axes.set_ylim(bottom=0)
    beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "labelcolor": INK.light}
    axes.legend(frameon=False, fontsize=10 * POINT, **beside)
    axes.xaxis.label.set_color(MUTED.light)
