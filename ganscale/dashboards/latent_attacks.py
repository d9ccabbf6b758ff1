"""Panel of attacks on a generator's latents: joint curves of generator and critic, and what the images become.

Legend: N latents, E budgets, R random steps, C channels, H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ganscale.dashboards.enlarging import DENSITY, enlarge, rgb
from ganscale.dashboards.figures import POINT, Canvas
from ganscale.dashboards.layout import (
    MARGIN,
    heading,
    heading_height,
    method_title,
    number,
)
from ganscale.dashboards.palette import INK, LINE, MUTED, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ganscale.explain.types import Explanation

SIDE = 84
MOST_LATENTS = 5
_CHART, _GAP = 230, 10
_COLUMNS = ("G(z)", "random step", "moved most", "fools D", "unmasked")


def latent_attack_panel(explanation: Explanation) -> np.ndarray:
    """Draw image change and logits over the step's length, logits over pixel distance, and images; uint8 [H, W, 3]."""
    values = explanation.values
    critic = "logits" in values
    picture = min(values["latent_images"].shape[-2:]) > 1
    shown = min(len(values["latent_images"]), MOST_LATENTS) if picture else 0
    lines, banner = _lines(explanation, shown), explanation.not_better_than_random
    top, charts = heading_height(lines=len(lines), banner=banner), 3 if critic else 1
    gallery = 24 + shown * (SIDE + 26) if shown else 0
    height = top + _CHART + 84 + gallery
    canvas = Canvas(2 * MARGIN + 3 * 330, height)
    y = heading(canvas, method_title(explanation.method), lines, banner=banner, of=explanation)
    boxes = [canvas.axes(MARGIN + 46 + 330 * place, y + 24, 264, _CHART) for place in range(charts)]
    _change_curves(canvas, boxes[0], explanation)
    if critic:
        _logit_curves(canvas, boxes[1], explanation)
        _joint_curves(canvas, boxes[2], explanation)
    y += _CHART + 78
    if shown:
        _gallery(canvas, y, explanation, shown)
        y += gallery
    return canvas.array()


def _change_curves(canvas: Canvas, axes: Axes, explanation: Explanation) -> None:
    values = explanation.values
    at = np.concatenate([[0.0], values["latent_budgets"].numpy()])
    _plot(axes, at, _with_start(values["image_change"][:, 0].numpy()), "moved most", "vermilion")
    _plot(axes, at, _with_start(values["random_image_change"].mean(dim=1).numpy()), "random", "grey", "--")
    canvas.label_axes(axes, title="G: how far the image moves", x="‖δ‖ in latent space", y="L2 distance")
    axes.legend(frameon=False, fontsize=11 * POINT, labelcolor=INK.light)


def _logit_curves(canvas: Canvas, axes: Axes, explanation: Explanation) -> None:
    values = explanation.values
    at, clean_N = np.concatenate([[0.0], values["latent_budgets"].numpy()]), values["clean_logits"].numpy()
    for place, (name, colour) in enumerate((("fool", "green"), ("unmask", "purple")), start=1):
        _plot(axes, at, _with_start(values["logits"][:, place].numpy(), clean_N), name, colour)
    _plot(axes, at, _with_start(values["random_logits"].mean(dim=1).numpy(), clean_N), "random", "grey", "--")
    canvas.label_axes(axes, title="D: what it says of the moved image", x="‖δ‖ in latent space", y="D(G(z + δ))")
    axes.legend(frameon=False, fontsize=11 * POINT, labelcolor=INK.light)


def _joint_curves(canvas: Canvas, axes: Axes, explanation: Explanation) -> None:
    values, clean_N = explanation.values, explanation.values["clean_logits"].numpy()
    reach = np.concatenate([[0.0], values["image_change"][:, 1].mean(dim=0).numpy()])
    _plot(axes, reach, _with_start(values["pixel_logits"].numpy(), clean_N), "attack on pixels", "blue")
    _plot(axes, reach, _with_start(values["logits"][:, 1].numpy(), clean_N), "attack on z", "green")
    random = np.concatenate([[0.0], values["random_image_change"].mean(dim=(0, 1)).numpy()])
    _plot(axes, random, _with_start(values["random_logits"].mean(dim=1).numpy(), clean_N), "random z", "grey", "--")
    canvas.label_axes(axes, title="Both: D's logit at equal pixel distance", x="L2 distance of the image", y="D(x)")
    axes.legend(frameon=False, fontsize=11 * POINT, labelcolor=INK.light)


def _with_start(value_NE: np.ndarray, start_N: np.ndarray | None = None) -> np.ndarray:
    start_N = np.zeros(len(value_NE)) if start_N is None else start_N
    return np.column_stack([start_N, value_NE])


def _plot(axes: Axes, at: np.ndarray, value_NE: np.ndarray, name: str, colour: str, style: str = "-") -> None:
    count, mean = len(value_NE), value_NE.mean(axis=0)
    half = 1.96 * value_NE.std(axis=0, ddof=1) / np.sqrt(count) if count > 1 else np.zeros_like(mean)
    shade = SERIES[colour].light
    axes.fill_between(at, mean - half, mean + half, color=shade, alpha=0.15, linewidth=0)
    axes.plot(at, mean, color=shade, linestyle=style, marker="o", markersize=3, linewidth=1.6, label=name)


def _gallery(canvas: Canvas, y: int, explanation: Explanation, shown: int) -> None:
    images = explanation.values["latent_images"]
    logits = explanation.values.get("logits")
    for place, title in enumerate(_COLUMNS[: images.shape[1]]):
        left = MARGIN + 90 + place * (SIDE + 40)
        canvas.text(left, y, title, size=12, bold=True, colour=MUTED.light)
    for row in range(shown):
        above = y + 22 + row * (SIDE + 26)
        canvas.text(MARGIN, above, f"latent {row + 1}", size=13, bold=True)
        for place in range(images.shape[1]):
            left = MARGIN + 90 + place * (SIDE + 40)
            pixels = enlarge(rgb(images[row, place].numpy()), side=SIDE)
            height, width = (edge / DENSITY for edge in pixels.shape[:2])
            canvas.box(left - 1, above - 1, width + 2, height + 2, line=LINE.light)
            canvas.image(left, above, pixels)
            if logits is not None:
                first = (explanation.values["clean_logits"][row], explanation.values["random_logits"][row, 0, -1])
                value = first[place] if place < len(first) else logits[row, place - 2, -1]
                canvas.text(left, above + SIDE + 3, f"D {number(float(value), signed=True)}", size=11)


def _lines(explanation: Explanation, shown: int) -> list[str]:
    count, budgets = len(explanation.inputs["z"]), explanation.values["latent_budgets"]
    images = f"; {shown} of them below at the largest, {float(budgets[-1]):g}" if shown else ""
    return [
        f"Steps of z of at most a given length, {count} latents{images}. Bands are 95 % of the mean over latents.",
        "The attack on pixels may move the image as far as the attack on z did: the gap is what G cannot reach.",
    ]
