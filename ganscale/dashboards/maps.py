"""Panel of an attribution: each sample as input, signed map, overlay, masked and faded, with its numbers.

Legend: N samples, C channels, H height, W width, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ganscale.dashboards.enlarging import DENSITY, enlarge, rgb
from ganscale.dashboards.figures import Canvas, blend, over_ground, signed_colours, strength
from ganscale.dashboards.gallery import colour_bar
from ganscale.dashboards.layout import (
    MARGIN,
    baseline_words,
    class_name,
    heading,
    heading_height,
    method_title,
    number,
    target_words,
)
from ganscale.dashboards.palette import DOWN, INK, LINE, MUTED, SERIES, UP

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

SIDE = 112  # CSS pixels of one picture's longer edge
MOST_SAMPLES = 8
KEPT = 0.2  # of the picture: what the masked one still shows
_CAPTION, _GAP, _BAR, _TICKS, _COLUMN_HEAD = 116, 8, 12, 62, 22
_ROW = SIDE + 14
_TOP = f"top {100 * KEPT:g} %"
_COLUMNS = ("input", "map", "overlay", _TOP, "map as alpha")


def is_picture(explanation: Explanation) -> bool:
    """Return whether the explained samples can be drawn as images (points of the plane and vectors cannot)."""
    x = explanation.inputs["x"]
    return x.ndim == 4 and min(x.shape[2:]) > 1


def attribution_panel(explanation: Explanation) -> np.ndarray:
    """Draw up to ``MOST_SAMPLES`` samples, a row each; uint8 RGB [H, W, 3].

    Input, signed map, overlay, the input with nothing but its most important part, and the input as opaque as the map
    is strong. Colours are centred at 0 with equal limits on both sides, one scale a sample, written beside its colour
    bar. Cells are outlined where the method weighs cells. Samples that are no pictures get bars, one a feature.
    """
    count = min(len(explanation.inputs["x"]), MOST_SAMPLES)
    picture = is_picture(explanation)
    width = max(MARGIN * 2 + _CAPTION + len(_COLUMNS) * (SIDE + _GAP) + _BAR + _TICKS, 860)
    lines, banner = _lines(explanation, count), explanation.not_better_than_random
    top = heading_height(lines=len(lines), banner=banner)
    height = top + _COLUMN_HEAD + count * _ROW + MARGIN
    canvas = Canvas(width, height)
    y = heading(canvas, method_title(explanation.method), lines, banner=banner, of=explanation)
    draw: Callable[..., None] = _picture_row if picture else _bar_row
    left = MARGIN + _CAPTION
    for place, title in enumerate(_COLUMNS if picture else (_shares_title(explanation),)):
        canvas.text(left + place * (SIDE + _GAP), y, title, size=12, bold=True, colour=MUTED.light)
    for row, sample in enumerate(_order(explanation, count)):
        row_y = y + _COLUMN_HEAD + row * _ROW
        _caption(canvas, MARGIN, row_y, explanation, sample)
        draw(canvas, left, row_y, explanation, sample)
    return canvas.array()


def _shares_title(explanation: Explanation) -> str:
    return "G(z), and the share of each number of z" if "images" in explanation.inputs else "share of each feature"


def signed_map(explanation: Explanation, sample: int) -> np.ndarray:
    """Return the map of one sample as float64 [H, W], channels summed; cell weights are spread over their cells."""
    cells = cells_of(explanation, sample)
    if cells is not None:
        return explanation.values["segment_weights"][sample].double().numpy()[cells]
    return explanation.values["attribution"][sample].double().sum(dim=0).numpy()


def regions_of(explanation: Explanation, sample: int) -> np.ndarray:
    """Return a sample's region numbers [H, W]: what the deletion curves take away one after the other."""
    segments = explanation.inputs["segments"].numpy()
    return segments[sample] if segments.ndim == 3 else segments  # superpixels are each sample's own


def cells_of(explanation: Explanation, sample: int) -> np.ndarray | None:
    """Return a sample's regions where the method weighs regions, None where it weighs pixels."""
    return regions_of(explanation, sample) if explanation.meta.get("weighs") == "cells" else None


def _order(explanation: Explanation, count: int) -> list[int]:
    """Return the first ``count`` samples, real ones before generated ones."""
    generated = explanation.inputs.get("generated")
    return sorted(range(count), key=lambda sample: generated is not None and bool(generated[sample]))


def _lines(explanation: Explanation, count: int) -> list[str]:
    sign = {"real": "real", "fake": "generated"}[explanation.target.sign]
    pulls = f"towards {sign}" if explanation.target.kind == "critic" else "f(x) up"
    away = "away from it" if explanation.target.kind == "critic" else "f(x) down"
    total = len(explanation.inputs["x"])
    shown = f"{count} of {total} samples" if count < total else f"{total} sample{'' if total == 1 else 's'}"
    lines = [
        f"Explained: {target_words(explanation)}.",
        f"An absent part is {baseline_words(explanation)}. {shown}.",
        f"Red pulls {pulls}, blue pulls {away}, white does nothing. One scale a sample, equal on both sides of 0."
        if explanation.meta.get("signed", True)
        else "Red: f(x) reacts to small changes here, either way; white: it does not. One scale a sample.",
    ]
    if is_picture(explanation):
        top = f"{_TOP.capitalize()}: the input where its regions have the largest shares, either way."
        lines.append(f"{top} Map as alpha: the input, as opaque as the map is strong.")
    return lines


def _caption(canvas: Canvas, x: int, y: int, explanation: Explanation, sample: int) -> None:
    generated = explanation.inputs.get("generated")
    words, colour = f"sample {sample + 1}", INK.light
    if generated is not None:
        fake = bool(generated[sample])
        words, colour = ("generated", SERIES["vermilion"].light) if fake else ("real", SERIES["blue"].light)
    canvas.text(x, y, words, size=13, bold=True, colour=colour)
    y += 19
    labels = explanation.inputs.get("labels")
    if labels is not None and int(labels[sample]) >= 0:
        canvas.text(x, y, class_name(explanation, int(labels[sample])), size=12, colour=MUTED.light)
        y += 17
    for name, key in (("f(x)", "fx"), ("f(base)", "f_baseline"), ("R²", "r_squared_of_each")):
        if key in explanation.values:
            value = number(float(explanation.values[key][sample]), signed=name != "R²")
            canvas.text(x, y, f"{name} {value}", size=12)
            y += 17


def _picture_row(canvas: Canvas, x: int, y: int, explanation: Explanation, sample: int) -> None:
    image = rgb(explanation.inputs["x"][sample].numpy())
    values, cells = signed_map(explanation, sample), cells_of(explanation, sample)
    limit = limit_of(values, cells)
    pictures = (
        enlarge(image, side=SIDE),
        enlarge(signed_colours(values, limit=limit), side=SIDE, grid=cells),
        enlarge(blend(image, values, limit=limit), side=SIDE, grid=cells),
        over_ground(image, most_important(explanation, sample), side=SIDE),
        over_ground(image, strength(values, limit=limit), side=SIDE),
    )
    for place, pixels in enumerate(pictures):
        left = x + place * (SIDE + _GAP)
        height, width = (edge / DENSITY for edge in pixels.shape[:2])
        canvas.box(left - 1, y - 1, width + 2, height + 2, line=LINE.light)
        canvas.image(left, y, pixels)
    colour_bar(canvas, x + len(pictures) * (SIDE + _GAP), y, pictures[1].shape[0] // DENSITY, limit)


def limit_of(values_HW: np.ndarray, cells: np.ndarray | None) -> float:
    """Return the value of the strongest colour: the largest of cells; of pixels one that few are beyond."""
    return float(np.abs(values_HW).max() if cells is not None else np.quantile(np.abs(values_HW), 0.995))


def most_important(explanation: Explanation, sample: int) -> np.ndarray:
    """Return bool [H, W]: the ``KEPT`` part of the regions that f owes most to, either way."""
    weights = np.abs(explanation.values["segment_weights"][sample].double().numpy())
    first = np.argsort(-weights, kind="stable")[: max(1, round(KEPT * len(weights)))]
    return np.isin(regions_of(explanation, sample), first[weights[first] > 0])


def _bar_row(canvas: Canvas, x: int, y: int, explanation: Explanation, sample: int) -> None:
    shares = explanation.values["attribution"][sample].double().flatten().numpy()
    left, name = x + 30, "x"
    if explanation.target.of_generator:  # a bar is a number of the latent, beside the image that it is drawn to
        name = "z"
        if "images" in explanation.inputs:
            pixels = enlarge(rgb(explanation.inputs["images"][sample].numpy()), side=SIDE)
            canvas.image(x, y, pixels)
            left += pixels.shape[1] // DENSITY + 28
    axes = canvas.axes(left, y, canvas.width - MARGIN - 10 - left, SIDE - 22)
    colours = [UP if share >= 0 else DOWN for share in shares]
    axes.bar(np.arange(len(shares)), shares, color=colours)
    limit = float(np.abs(shares).max()) or 1.0
    axes.set_ylim(-1.1 * limit, 1.1 * limit)
    axes.axhline(0, color=MUTED.light, linewidth=0.8)
    if len(shares) <= 12:
        axes.set_xticks(np.arange(len(shares)), [f"{name}{index + 1}" for index in range(len(shares))])
