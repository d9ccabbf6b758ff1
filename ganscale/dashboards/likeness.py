"""Panels of likeness: neighbours of each query, curves of membership, layers of generator and critic side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ganscale.dashboards.figures import POINT, Canvas
from ganscale.dashboards.gallery import Row, Tile, gallery
from ganscale.dashboards.layout import (
    MARGIN,
    heading,
    heading_height,
    method_title,
    number,
)
from ganscale.dashboards.palette import DIVERGING, INK, SERIES

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

_SIDE = 340
MOST_NEIGHBOURS = 7
_MEMBERSHIP = (
    ("nearest", "vermilion", "nearest generated"),
    ("searched", "purple", "searched latent"),
    ("critic", "blue", "critic's logit"),
)


def neighbours_panel(explanation: Explanation) -> np.ndarray:
    """Draw each query with its nearest images in the network's features, distances below; uint8 RGB [H, W, 3]."""
    values, rows = explanation.values, []
    generated = explanation.inputs.get("generated")
    for place, found in enumerate(values["neighbour_images"].numpy()):
        distance = values["features_distance"][place]
        tiles = [Tile(values=explanation.inputs["x"][place].numpy(), bold=True)]
        for rank, image in enumerate(found[:MOST_NEIGHBOURS]):
            tiles.append(Tile(values=image, words=number(float(distance[rank]))))
        fake = generated is not None and bool(generated[place])
        kind = "" if generated is None else "generated" if fake else "real"
        nearest = number(float(values["pixels_distance"][place, 0]))
        rows.append(Row(title=f"query {place + 1}", tiles=tiles, notes=(kind, f"nearest in pixels {nearest}")))
    meta = explanation.meta
    lines = [
        f"Nearest of {meta.get('gallery')} real images by what the {meta.get('of')} knows of them; distances below.",
        f"{meta.get('copies')} queries stand in the gallery pixel for pixel (a generated one that does is a copy).",
    ]
    columns = ("query", *(f"{rank + 1}." for rank in range(min(values["neighbour_images"].shape[1], MOST_NEIGHBOURS))))
    return gallery(explanation, rows, lines, columns=columns)


def membership_panel(explanation: Explanation) -> np.ndarray:
    """Draw the curves of both attacks with the band that chance stays in; uint8 RGB [H, W, 3]."""
    meta, values = explanation.meta, explanation.values
    lines = [
        f"{meta.get('members')} training images against {meta.get('others')} held out.",
        "Band: where chance stays, 95 % of the time; dotted: the same of the search, which sees fewer images.",
        "Above the band training images can be told; on the diagonal they cannot.",
    ]
    banner = explanation.not_better_than_random
    top = heading_height(lines=len(lines), banner=banner)
    canvas = Canvas(2 * MARGIN + 2 * (_SIDE + 90), top + _SIDE + 82)
    y = heading(canvas, method_title(explanation.method), lines, banner=banner, of=explanation)
    axes = canvas.axes(MARGIN + 50, y + 20, _SIDE, _SIDE)
    at = np.linspace(0, 1, 101)
    n, m = int(meta.get("members", 1)), int(meta.get("others", 1))
    low, high = _chance(at, n, m)
    axes.fill_between(at, low, high, color=SERIES["grey"].light, alpha=0.25, linewidth=0)
    if "roc_searched" in values:  # of fewer images, so that chance wanders further
        few = explanation.scores["searched_auc"].n // 2
        for edge in _chance(at, few, few):
            axes.plot(at, edge, color=SERIES["purple"].light, linestyle=":", linewidth=1)
    for name, colour, words in _MEMBERSHIP:
        if f"roc_{name}" in values:
            curve = values[f"roc_{name}"].numpy()
            area = number(explanation.scores[f"{name}_auc"].value)
            axes.plot(*curve.T, color=SERIES[colour].light, linewidth=1.6, label=f"{words}, AUC {area}")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    # the search's wide band of chance passes behind the legend
    plain = {"facecolor": "white", "edgecolor": "none", "framealpha": 0.85}
    axes.legend(**plain, fontsize=11 * POINT, labelcolor=INK.light, loc="lower right")
    canvas.label_axes(axes, title="Who was trained on?", x="held-out images flagged", y="training images flagged")
    bars = canvas.axes(MARGIN + 120 + _SIDE, y + 20, _SIDE, _SIDE)
    near, member = values["nearest_distance"].numpy(), values["is_member"].numpy()
    edges = np.histogram_bin_edges(near, bins=30)
    for own, colour, words in ((member, "vermilion", "trained on"), (~member, "grey", "held out")):
        bars.hist(near[own], bins=edges, density=True, alpha=0.5, color=SERIES[colour].light, label=words)
    bars.legend(frameon=False, fontsize=11 * POINT, labelcolor=INK.light)
    canvas.label_axes(bars, title="How near a generated image comes", x="L2 distance", y="density")
    return canvas.array()


def _chance(at: np.ndarray, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where the curve of n and m images of one kind stays at each place, 95 % of the time."""
    half = 1.96 * np.sqrt(at * (1 - at) * (1 / n + 1 / m))
    return np.clip(at - half, 0, 1), np.clip(at + half, 0, 1)


def alignment_panel(explanation: Explanation) -> np.ndarray:
    """Draw CKA of every pair of layers beside the shuffled pairs, and D's gradient by layer; uint8 RGB [H, W, 3]."""
    meta, values = explanation.meta, explanation.values
    g, d = meta.get("layers_generator", []), meta.get("layers_critic", [])
    lines = [
        "Debiased CKA of channel means on the same images: 1 the same up to rotation and scale, 0 unrelated.",
        "Right: length (L2) of D's gradient at the output of each generator layer, root mean square over latents.",
    ]
    banner = explanation.not_better_than_random
    top = heading_height(lines=len(lines), banner=banner)
    side = 250
    canvas = Canvas(2 * MARGIN + 3 * (side + 70) + 60, top + side + 126)
    y = heading(canvas, method_title(explanation.method), lines, banner=banner, of=explanation)
    for place, (name, title) in enumerate((("cka", "Same image"), ("cka_shuffled", "Control: another image"))):
        axes = canvas.axes(MARGIN + 100 + place * (side + 20), y + 20, side, side)
        shown = axes.imshow(values[name].numpy(), cmap=DIVERGING, vmin=-1, vmax=1, aspect="auto")
        axes.grid(visible=False)
        axes.set_xticks(range(len(d)), d, rotation=30, ha="right", fontsize=10 * POINT)
        axes.set_yticks(range(len(g)), g if place == 0 else [""] * len(g), fontsize=10 * POINT)
        for (i, j), value in np.ndenumerate(values[name].numpy()):
            if len(g) * len(d) <= 64:
                ink = "white" if abs(value) > 0.6 else INK.light
                axes.text(
                    j,
                    i,
                    f"{round(value, 2) + 0.0:.2f}".replace("-", "−"),
                    ha="center",
                    va="center",
                    fontsize=10 * POINT,
                    color=ink,
                )
        canvas.label_axes(axes, title=title, x="layer of D", y="layer of G" if place == 0 else "")
        if place:
            canvas.scale(axes, shown, words="CKA")
    bars = canvas.axes(MARGIN + 220 + 2 * (side + 20), y + 20, side - 30, side)
    bars.bar(range(len(g)), values["gradient_by_layer"].numpy(), color=SERIES["vermilion"].light)
    bars.set_xticks(range(len(g)), g, rotation=30, ha="right", fontsize=10 * POINT)
    canvas.label_axes(bars, title="Gradient of D in G", x="layer of G", y="L2 norm")
    return canvas.array()
