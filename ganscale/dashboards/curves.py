"""Panels of curves: deletion and insertion with their random band, distributions of the logits.

Legend: N samples, P curve points, R random orders.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from ganscale.dashboards.figures import POINT, Canvas
from ganscale.dashboards.layout import MARGIN, heading, heading_height, method_title, number
from ganscale.dashboards.palette import INK, MUTED, SERIES, role

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation
    from ganscale.training.records import Histogram

_WIDTH, _CHART = 420, 260


def faithfulness_panel(explanation: Explanation) -> np.ndarray:
    """Draw mean deletion and insertion curves with the middle 95 % of random orders; uint8 RGB [H, W, 3]."""
    values = explanation.values
    share = values["curve_share"].numpy()
    random_NRP = values["random_curves"].numpy()
    count = len(random_NRP)
    lines = [
        f"Mean f(x) over {count} samples while parts are removed (left) or brought back (right), most important first.",
        "A faithful map falls below the grey band on the left and rises above it on the right.",
    ]
    banner = explanation.not_better_than_random
    top = heading_height(lines=len(lines), banner=banner)
    canvas = Canvas(2 * MARGIN + 2 * (_WIDTH + 60), top + _CHART + 80)
    y = heading(
        canvas,
        f"{method_title(explanation.method)}: does the map show what matters?",
        lines,
        banner=banner,
        of=explanation,
    )
    drawn: list[Axes] = []
    for place, (name, curve, random) in enumerate(
        (
            ("deletion", values["deletion_curve"].numpy(), random_NRP),
            ("insertion", values["insertion_curve"].numpy(), random_NRP[..., ::-1]),
        )
    ):
        axes = canvas.axes(MARGIN + 50 + place * (_WIDTH + 60), y + 24, _WIDTH, _CHART)
        _band(axes, share, curve.mean(axis=0), random.mean(axis=0))
        verb = {"deletion": "removed", "insertion": "inserted"}[name]
        canvas.label_axes(axes, title=name.capitalize(), x=f"share of parts {verb}", y="f(x)" if place == 0 else "")
        score = explanation.scores.get(f"{name}_auc")
        if score is not None:
            words = f"area {number(score.value)}, random {number(score.control)} ({score.better} is better)"
            axes.set_title(words, fontsize=11 * POINT, color=MUTED.light, loc="right")
        drawn.append(axes)
    limits = [axes.get_ylim() for axes in drawn]
    for axes in drawn:  # one scale, so that the two can be compared
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    drawn[0].legend(frameon=False, fontsize=11 * POINT, labelcolor=INK.light)
    return canvas.array()


def logit_panel(real: Histogram, fake: Histogram, *, images: int) -> np.ndarray:
    """Draw the distributions of D(real) and D(fake) on one axis as densities; uint8 RGB [H, W, 3]."""
    canvas = Canvas(760, 380)
    axes = canvas.axes(70, 50, 660, 270)
    spans = []
    for histogram, name in ((real, "real"), (fake, "fake")):
        filled = np.flatnonzero(histogram.counts)
        if len(filled) == 0:
            continue
        cut = slice(filled[0], filled[-1] + 1)
        edges, counts = histogram.edges[filled[0] : filled[-1] + 2], histogram.counts[cut]
        density = counts / counts.sum() / np.diff(edges)
        colour = SERIES[role(name)].light
        label = {"real": "D(real)", "fake": "D(fake)"}[name]
        axes.stairs(density, edges, color=colour, fill=True, alpha=0.3)
        axes.stairs(density, edges, color=colour, linewidth=1.4, label=label)
        spans += [edges[0], edges[-1]]
    if spans:
        axes.set_xlim(min(spans), max(spans))
        axes.legend(frameon=False, fontsize=11 * POINT, labelcolor=INK.light)
    canvas.label_axes(axes, title=f"Logits of the critic at {images / 1000:g} kimg", x="logit", y="density")
    return canvas.array()


def _band(axes: Axes, share: np.ndarray, mean_P: np.ndarray, random_RP: np.ndarray) -> None:
    low, high = np.quantile(random_RP, (0.025, 0.975), axis=0)
    axes.fill_between(share, low, high, color=SERIES["grey"].light, alpha=0.25, linewidth=0, label="random, 95 %")
    axes.plot(
        share, random_RP.mean(axis=0), color=SERIES["grey"].light, linestyle="--", linewidth=1.4, label="random, mean"
    )
    axes.plot(share, mean_P, color=SERIES["blue"].light, linewidth=2, marker="o", markersize=3, label="this map")
    axes.set_xlim(0, 1)
