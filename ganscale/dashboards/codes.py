"""Panels of codes: what survives the encoder, how codes lie, and which number of a code serves which factor.

Legend: M images judged, D numbers of a code, F factors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps

from ganscale.dashboards.figures import POINT, Canvas
from ganscale.dashboards.gallery import Row, Tile, gallery
from ganscale.dashboards.layout import (
    MARGIN,
    class_name,
    heading,
    heading_height,
    method_title,
    number,
)
from ganscale.dashboards.palette import INK, SERIES

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

_SIDE = 340


def reconstruction_panel(explanation: Explanation) -> np.ndarray:
    """Draw images, their reconstruction and error, and the same of principal components; uint8 RGB [H, W, 3]."""
    values, rows = explanation.values, []
    for place, image in enumerate(values["reconstructed"].numpy()):
        ours, pca = values["reconstruction"][place].numpy(), values["pca_reconstruction"][place].numpy()
        quality = number(float(values["psnr_of_each"][place]))
        tiles = (
            Tile(values=image),
            Tile(values=ours, words=f"{quality} dB"),
            Tile(values=(ours - image).mean(axis=0).astype(np.float64)),
            Tile(values=pca),
            Tile(values=(pca - image).mean(axis=0).astype(np.float64)),
        )
        rows.append(Row(title=f"image {place + 1}", tiles=tiles))
    meta = explanation.meta
    lines = [
        "{judged} images through {code} numbers; beside it {components} principal components.".format_map(meta),
        "Errors: red is too bright, blue too dark; one scale a row.",
    ]
    columns = ("image", "decoded", "error", "PCA", "error of PCA")
    return gallery(explanation, rows, lines, columns=columns)


def code_map_panel(explanation: Explanation) -> np.ndarray:
    """Draw codes along their first two principal axes and the variance along each axis; uint8 RGB [H, W, 3]."""
    values = explanation.values
    lines = ["Each dot is the code of one image on the first two principal axes of the codes."]
    banner = explanation.not_better_than_random
    top = heading_height(lines=len(lines), banner=banner)
    canvas = Canvas(2 * MARGIN + 2 * (_SIDE + 105), top + _SIDE + 70)
    y = heading(canvas, f"{method_title(explanation.method)}: map of the codes", lines, banner=banner, of=explanation)
    axes = canvas.axes(MARGIN + 50, y + 20, _SIDE, _SIDE)
    at, labels = values["code_map"].numpy(), values.get("code_labels")
    known = labels is not None and bool((labels >= 0).any())
    if known:
        for label in np.unique(labels.numpy()):
            own = labels.numpy() == label
            colour = colormaps["tab10"](int(label) % 10) if label >= 0 else SERIES["grey"].light
            axes.scatter(
                *at[own].T, s=10, color=colour, label=class_name(explanation, int(label)), alpha=0.8, linewidths=0
            )
        beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "labelcolor": INK.light, "handletextpad": 0.1}
        axes.legend(frameon=False, fontsize=10 * POINT, **beside)
    else:
        axes.scatter(*at.T, s=10, color=SERIES["blue"].light, alpha=0.8, linewidths=0)
    share = values["code_share"].numpy()
    canvas.label_axes(axes, title="Codes", x=f"first axis, {share[0]:.0%} of the variance", y="second axis")
    bars = canvas.axes(MARGIN + 190 + _SIDE, y + 20, _SIDE, _SIDE)
    bars.bar(np.arange(len(share)) + 1, np.cumsum(share), color=SERIES["blue"].light)
    bars.set_ylim(0, 1.02)
    canvas.label_axes(bars, title="Variance held by the first axes", x="axes", y="share")
    return canvas.array()


def factor_matrix_panel(explanation: Explanation) -> np.ndarray:
    """Draw how much each number of the code serves each factor, beside the shuffled code; uint8 RGB [H, W, 3]."""
    values = explanation.values
    lines, banner = _matrix_lines(explanation), explanation.not_better_than_random
    top = heading_height(lines=len(lines), banner=banner)
    canvas = Canvas(2 * MARGIN + 2 * (_SIDE + 90), top + _SIDE + 82)
    y = heading(canvas, method_title(explanation.method), lines, banner=banner, of=explanation)
    pairs = (("factor_importance", "This code"), ("shuffled_importance", "Control: the code of another image"))
    most = max(float(values[name].max()) for name, _ in pairs)
    factors = _factors(explanation)
    for place, (name, title) in enumerate(pairs):
        axes = canvas.axes(MARGIN + 92 + place * (_SIDE + 24), y + 20, _SIDE, _SIDE)
        shown = axes.imshow(values[name].numpy().T, cmap="Blues", vmin=0, vmax=most, aspect="auto")
        axes.grid(visible=False)
        axes.set_yticks(range(len(factors)), factors if place == 0 else [""] * len(factors))
        axes.xaxis.get_major_locator().set_params(integer=True)
        canvas.label_axes(axes, title=title, x="number of the code", y="factor" if place == 0 else "")
        if place:
            canvas.scale(axes, shown, words="importance")
    return canvas.array()


def _factors(explanation: Explanation) -> list[str]:
    count = explanation.values["factor_importance"].shape[1]
    names = explanation.meta.get("names", {}).get("factors", [])
    return names if len(names) == count else [f"z[{place}]" for place in range(count)]


def _matrix_lines(explanation: Explanation) -> list[str]:
    codes, factors = explanation.values["factor_importance"].shape
    return [
        f"{codes} numbers of the code, {factors} factors, {explanation.meta.get('known')} images with known factors.",
        "A row shows what boosted trees use to tell one factor, summing to 1; disentangled: one dark cell a column.",
    ]
