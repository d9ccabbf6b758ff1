"""Panel of attributions of vectors over many samples: a dot a sample, one row a number of the vector.

Legend: N samples, D numbers of a sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ganscale.dashboards.figures import POINT, Canvas
from ganscale.dashboards.layout import MARGIN, heading, heading_height, method_title, target_words
from ganscale.dashboards.palette import DIVERGING, LINE, MUTED

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

LEAST_SAMPLES, MOST_ROWS = 8, 12
_ROW, _WIDTH, _BINS = 34, 640, 60


def beeswarm_panel(explanation: Explanation) -> np.ndarray | None:
    """Draw the shares of the strongest numbers, coloured by the number's own value; uint8 RGB [H, W, 3].

    None where the samples are no vectors, or fewer than ``LEAST_SAMPLES``.
    """
    shares_ND = explanation.values["attribution"].double().flatten(1).numpy()
    if explanation.inputs["x"].ndim != 2 or len(shares_ND) < LEAST_SAMPLES:
        return None
    x_ND = explanation.inputs["x"].double().numpy()
    order = np.argsort(-np.abs(shares_ND).mean(axis=0), kind="stable")[:MOST_ROWS]
    lines = [
        f"Explained: {target_words(explanation)}; {len(x_ND)} samples, a dot each.",
        "A dot's place is what the number adds, its colour what the number is: red high, blue low, white zero.",
        f"The {len(order)} of {shares_ND.shape[1]} numbers whose shares are largest in the mean, the first on top.",
    ]
    banner = explanation.not_better_than_random
    top, tall = heading_height(lines=len(lines), banner=banner), _ROW * len(order)
    canvas = Canvas(860, top + tall + 80)
    y = heading(canvas, f"{method_title(explanation.method)}: over all samples", lines, banner=banner, of=explanation)
    axes = canvas.axes(MARGIN + 60, y + 10, _WIDTH, tall)
    limit = float(np.abs(x_ND[:, order]).max()) or 1.0
    shown = None
    for row, number in enumerate(order):
        height = row + 0.8 * _beside(shares_ND[:, number], float(np.abs(shares_ND).max()))
        shown = axes.scatter(
            shares_ND[:, number], height, c=x_ND[:, number], cmap=DIVERGING, vmin=-limit, vmax=limit, s=16
        )
        shown.set_edgecolor(LINE.light)
        shown.set_linewidth(0.4)
    name = "z" if explanation.target.of_generator else "x"
    axes.set_yticks(range(len(order)), [f"{name}[{number}]" for number in order], fontsize=11 * POINT)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.axvline(0, color=MUTED.light, linewidth=0.8)
    canvas.label_axes(axes, title="", x="share of f(x) − f(baseline)", y="")
    assert shown is not None
    canvas.scale(axes, shown, words=f"the number in {name}")
    return canvas.array()


def _beside(shares_N: np.ndarray, limit: float) -> np.ndarray:
    """Return how far up or down each dot moves, in (-1/2, 1/2), so that dots of about one place lie side by side."""
    bins = np.floor((shares_N / max(limit, 1e-30) + 1) / 2 * _BINS).astype(int)
    moved, most = np.zeros(len(shares_N)), max(np.bincount(bins).max(), 6)
    for place in np.unique(bins):
        own = np.flatnonzero(bins == place)
        moved[own] = (np.arange(len(own)) - (len(own) - 1) / 2) / most
    return moved
