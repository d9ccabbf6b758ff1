"""Panel of the fair shares of a generator's layers: a waterfall from all layers off to all on.

Legend: L layers, N latents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ganscale.dashboards.figures import POINT, Canvas
from ganscale.dashboards.layout import MARGIN, heading, heading_height, method_title, number, target_words
from ganscale.dashboards.palette import INK, LINE, MUTED

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

_ROW, _WIDTH, _NAMES = 36, 560, 150
_UP, _DOWN, _END = "#b2182b", "#2166ac", "#8a939d"  # the ends of the diverging colours; what is no share is grey


def shares_panel(explanation: Explanation) -> np.ndarray:
    """Draw one bar a layer, in order of use, that begins where the one above ends; uint8 RGB [H, W, 3]."""
    values, meta = explanation.values, explanation.meta
    share_L, error_L = values["layer_shares"].numpy(), values["layer_shares_error"].numpy()
    empty, full = (float(values["coalition_values"][place]) for place in (0, -1))
    words = {"mean": "its mean over latents", "zero": "zero"}[meta["off"]]
    lines = [
        f"Explained: {target_words(explanation)}; mean over {len(explanation.inputs['z'])} latents, bands: 95 %.",
        f"A layer that is off puts out {words}. Red raises the target, blue lowers it; the bars add up to all on.",
    ]
    banner = explanation.not_better_than_random
    top, tall = heading_height(lines=len(lines), banner=banner), _ROW * (len(share_L) + 2)
    canvas = Canvas(860, top + tall + 80)
    title = f"{method_title(explanation.method)}: what each layer adds"
    y = heading(canvas, title, lines, banner=banner, of=explanation)
    axes = canvas.axes(MARGIN + _NAMES, y + 10, _WIDTH, tall)
    edges = np.concatenate([[empty], empty + np.cumsum(share_L)])
    half_L = 1.96 * np.nan_to_num(error_L)  # one latent has no error
    low, high = min((edges[1:] - half_L).min(), empty, 0.0), max((edges[1:] + half_L).max(), empty, 0.0)
    room = (high - low) or 1.0
    plain = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # below a number, which the line at 0 may cross
    style = {"va": "center", "fontsize": 11 * POINT, "color": INK.light, "bbox": plain}
    for row, (start, share, half) in enumerate(zip(edges[:-1], share_L, half_L, strict=True), start=1):
        axes.barh(row, share, left=start, height=0.6, color=_UP if share >= 0 else _DOWN)
        axes.plot([start + share] * 2, [row - 0.3, row + 1.3], color=LINE.light, linewidth=1, zorder=0)
        if half:
            axes.errorbar(start + share, row, xerr=half, color=INK.light, linewidth=1, capsize=3)
        at = max(start, start + share + half) + 0.015 * room
        axes.text(at, row, number(float(share), signed=True), **style)
    for row, value in ((0, empty), (len(share_L) + 1, full)):
        axes.barh(row, value, height=0.6, color=_END)
        at = max(value, 0.0) + 0.015 * room
        axes.text(at, row, number(value, signed=True), **style)
    names = ["all layers off", *meta["layers"], "all on"]
    axes.set_yticks(range(len(names)), names, fontsize=11 * POINT)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(low - 0.05 * room, high + 0.2 * room)
    axes.axvline(0, color=MUTED.light, linewidth=0.8)
    canvas.label_axes(axes, title="", x="target", y="")
    return canvas.array()
