"""Panels of classes: what a classifier takes for each, where it fails on generated images, and the ways between.

Legend: K classes, T points of a way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ganscale.dashboards.figures import Canvas
from ganscale.dashboards.gallery import LEAST_WIDTH, Row, Tile, gallery
from ganscale.dashboards.layout import (
    MARGIN,
    heading,
    heading_height,
    method_title,
    number,
)
from ganscale.dashboards.palette import INK, MUTED

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

MOST_CLASSES = 16


def class_wall(explanation: Explanation) -> np.ndarray:
    """Draw for each class the pictures found or drawn for it, and the real images nearest to them."""
    values, names = explanation.values, explanation.meta["class_names"]
    images, shares = values["class_images"].double().numpy(), values["class_probability"].numpy()
    real = values["class_nearest"].double().numpy() if "class_nearest" in values else None
    rows = []
    for k in range(min(len(names), MOST_CLASSES)):
        tiles = [
            Tile(values=image, words=number(float(share))) for image, share in zip(images[k], shares[k], strict=True)
        ]
        if real is not None:
            tiles += [Tile(values=image, words="real") for image in real[k]]
        hit, plain = float(values["hits"][k]), float(values["hits_of_draws"][k])
        rows.append(Row(title=names[k], tiles=tiles, notes=(f"hits {hit:.0%}", f"plain draws {plain:.0%}")))
    if explanation.meta.get("way") == "draw":
        lines = [
            "For each class the first pictures drawn at its label, with the probability that the classifier gives it."
        ]
    else:
        lines = [
            "For each class the generator's pictures that the classifier is surest of, with the probability it gives."
        ]
    if real is not None:
        lines.append("Right: the nearest real image of each, in pixels.")
    return gallery(explanation, rows, lines)


def probe_panel(explanation: Explanation) -> np.ndarray:
    """Draw the matrix of meant against predicted classes, each row to 100 %."""
    values, meta = explanation.values, explanation.meta
    matrix, names = values["probe_matrix"].double().numpy(), meta["class_names"]
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    lines = [
        f"{meta['draws']} generated images; meant: the {meta['meant_by']}.",
        f"Sure (0.9 or more) and not as meant: {meta['sure_and_wrong']:.1%} of them.",
    ]
    banner, side = explanation.not_better_than_random, max(300, 34 * len(names))
    top = heading_height(lines=len(lines), banner=banner)
    canvas = Canvas(max(LEAST_WIDTH, side + 320), top + side + 130)
    y = heading(canvas, method_title(explanation.method), lines, banner=banner, of=explanation)
    axes = canvas.axes(MARGIN + 130, y + 8, side, side)
    shown = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.grid(False)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(
        range(len(names)), [f"{name} ({int(total)})" for name, total in zip(names, matrix.sum(axis=1), strict=True)]
    )
    for (row, column), value in np.ndenumerate(share):
        if value >= 0.005:
            colour = "#ffffff" if value > 0.5 else INK.light
            axes.text(column, row, f"{value:.0%}", ha="center", va="center", fontsize=7, color=colour)
    canvas.label_axes(axes, title="", x="the classifier's verdict", y="meant (how many)")
    canvas.scale(axes, shown, words="share of the row")
    axes.xaxis.label.set_color(MUTED.light)
    return canvas.array()


def ways_panel(explanation: Explanation) -> np.ndarray:
    """Draw ways from one verdict to another, with the probability of both ends below each picture."""
    values, names = explanation.values, explanation.meta["class_names"]
    rows = []
    for place, images in enumerate(values["way_images"].double().numpy()):
        first, last = values["way_ends"][place].tolist()
        shares = values["way_probability"][place].numpy()
        tiles = [
            Tile(values=image, words=f"{100 * a:.0f} | {100 * b:.0f}")
            for image, a, b in zip(images, *shares, strict=True)
        ]
        third = float((np.maximum(*shares) < 0.5).mean())
        rows.append(
            Row(title=names[first], tiles=tiles, notes=(f"→ {names[last]}", f"neither above half: {third:.0%}"))
        )
    lines = ["Ways through latent space from one verdict to another; below: percent of the two ends' classes."]
    return gallery(explanation, rows, lines)
