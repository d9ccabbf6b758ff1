"""Panel of units and concepts: how well each unit of the dissected layer fits each concept, and how many do by layer.

Legend: U units, K concepts, L layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ganscale.dashboards.figures import POINT, Canvas
from ganscale.dashboards.layout import MARGIN, heading, heading_height, method_title, number
from ganscale.dashboards.palette import INK

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

MOST_UNITS = 48
_ROW, _NAMES, _LEAST, _UNIT, _COUNT = 26, 130, 360, 16, 52


def concepts_panel(explanation: Explanation) -> np.ndarray:
    """Draw concepts down and the best units across, then the units of each layer by concept; uint8 RGB [H, W, 3]."""
    values, meta = explanation.values, explanation.meta
    seen = [meta["concepts"].index(name) for name in meta["seen"]]
    iou_UK, control_UK = (values[key].numpy()[:, seen] for key in ("iou", "iou_permuted"))
    order = _order(iou_UK / iou_UK.max(axis=0).clip(1e-9)) if seen else np.arange(0)
    of = f"{len(order)} of {len(iou_UK)}" if len(order) < len(iou_UK) else f"all {len(order)}"
    lines = [
        f"IoU on held-out latents of {of} units of {meta['layer']} with each concept; a row is over its largest.",
        "Below: units that fit a concept better than any unit does the masks of other images; in brackets the reverse.",
    ]
    banner = explanation.not_better_than_random
    top, tall = heading_height(lines=len(lines), banner=banner), max(_ROW * len(seen), 60)
    wide, counted = max(_UNIT * len(order), _LEAST), _COUNT * 2 * len(meta["layers"])
    canvas = Canvas(max(2 * MARGIN + _NAMES + max(wide + 90, counted), 860), top + 3 * tall + 250)
    y = heading(canvas, f"{method_title(explanation.method)}: units and concepts", lines, banner=banner, of=explanation)
    most_K = np.maximum(iou_UK.max(axis=0, initial=1e-9), control_UK.max(axis=0, initial=1e-9))
    names = [f"{meta['concepts'][k]}, {number(float(most))}" for k, most in zip(seen, most_K, strict=True)]
    for place, (matrix, title) in enumerate(((iou_UK, "Own masks"), (control_UK, "Control: masks of other images"))):
        axes = canvas.axes(MARGIN + _NAMES, y + 22 + place * (tall + 44), wide, tall)
        shown = axes.imshow(
            (matrix[order] / most_K).T, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest"
        )
        axes.grid(visible=False)
        axes.set_yticks(range(len(names)), names, fontsize=11 * POINT)
        axes.set_xticks(range(len(order)), order if place else [""] * len(order), rotation=90, fontsize=9 * POINT)
        canvas.label_axes(axes, title=title, x="unit" if place else "", y="")
        canvas.scale(axes, shown, words="of the row")
    _counts(canvas, (MARGIN + _NAMES, y + 2 * tall + 134), explanation, seen, counted, tall)
    return canvas.array()


def _order(fit_UK: np.ndarray) -> np.ndarray:
    """Return the units by the concept that they fit best in its row, the best fit of each first."""
    best, value = fit_UK.argmax(axis=1), fit_UK.max(axis=1)
    chosen = np.argsort(-value, kind="stable")[:MOST_UNITS]
    return chosen[np.lexsort((-value[chosen], best[chosen]))]


def _counts(
    canvas: Canvas, corner: tuple[int, int], explanation: Explanation, seen: list[int], wide: int, tall: int
) -> None:
    values, meta = explanation.values, explanation.meta
    own, control = (values[key].numpy()[:, seen].T for key in ("units_by_layer", "units_by_layer_permuted"))
    axes = canvas.axes(*corner, wide, tall)
    axes.imshow(own, cmap="Blues", vmin=0, vmax=max(own.max(initial=0), 1), aspect="auto", interpolation="nearest")
    axes.grid(visible=False)
    sizes = meta["units_in_layers"]
    axes.set_xticks(
        range(len(sizes)),
        [f"{name}\n({size})" for name, size in zip(meta["layers"], sizes, strict=True)],
        fontsize=10 * POINT,
    )
    axes.set_yticks(range(len(seen)), [meta["concepts"][k] for k in seen], fontsize=11 * POINT)
    for (row, column), count in np.ndenumerate(own):
        ink = "white" if count > 0.5 * max(own.max(), 1) else INK.light
        words = f"{count} ({control[row, column]})"
        axes.text(column, row, words, ha="center", va="center", fontsize=10 * POINT, color=ink)
    canvas.label_axes(axes, title="Units by layer", x="layer (units)", y="")
