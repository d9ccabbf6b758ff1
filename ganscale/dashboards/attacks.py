"""Panels of an attack: how verdicts fall as the budget grows, and what the samples look like that changed them.

Legend: N samples, E budgets, A attacks, C channels, H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ganscale.dashboards.enlarging import DENSITY, enlarge, rgb
from ganscale.dashboards.figures import POINT, Canvas, signed_colours
from ganscale.dashboards.gallery import colour_bar
from ganscale.dashboards.layout import (
    MARGIN,
    heading,
    heading_height,
    method_title,
    number,
    target_words,
)
from ganscale.dashboards.palette import INK, LINE, MUTED, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ganscale.explain.types import Explanation

SIDE = 84  # CSS pixels of one picture's longer edge
MOST_SAMPLES = 8
MOST_ENLARGED = 10  # times the difference is drawn larger than it is, as far as the colours reach
_LINES = (("noise", "grey", "--"), ("FGSM", "purple", "-"), ("PGD", "vermilion", "-"))
_WIDTH, _CHART, _GAP, _CAPTION = 360, 260, 8, 150


def attack_curves_panel(explanation: Explanation) -> np.ndarray:
    """Draw the share of verdicts that hold and the mean margin over the budget, one line an attack; uint8 [H, W, 3].

    Bands are 95 % of the mean over samples (Wilson's for shares).
    """
    values = explanation.values
    budgets_E = values["budgets"].numpy()
    lines, banner = _lines(explanation), explanation.not_better_than_random
    top = heading_height(lines=len(lines), banner=banner)
    width = 2 * MARGIN + 2 * (_WIDTH + 60)
    canvas = Canvas(width, top + _CHART + 90)
    y = heading(canvas, method_title(explanation.method), lines, banner=banner, of=explanation)
    norm = {"linf": "largest change of a pixel", "l2": "L2 length"}.get(explanation.meta.get("norm", ""), "norm")
    unit = f"budget: {norm}, {explanation.meta.get('budgets_in', '')}"
    held = canvas.axes(MARGIN + 50, y + 24, _WIDTH, _CHART)
    margin = canvas.axes(MARGIN + 110 + _WIDTH, y + 24, _WIDTH, _CHART)
    clean_N = values["clean_margins"].numpy()
    for place, (name, colour, style) in enumerate(_LINES):
        held_NE = np.column_stack([clean_N >= 0, values["verdict_held"].numpy()[:, place]])
        margin_NE = np.column_stack([clean_N, values["margins"].numpy()[:, place]])
        at = np.concatenate([[0.0], budgets_E])
        _curve(held, at, held_NE.mean(axis=0), wilson(held_NE), name, SERIES[colour].light, style)
        _curve(margin, at, margin_NE.mean(axis=0), _mean_band(margin_NE), name, SERIES[colour].light, style)
    held.set_ylim(-0.03, 1.03)
    margin.axhline(0, color=MUTED.light, linewidth=0.8)
    for axes in (held, margin):
        axes.set_xscale("symlog", linthresh=float(budgets_E[0]), base=2)
        axes.set_xticks([0, *budgets_E], ["0", *(f"{budget:g}" for budget in budgets_E)])
        axes.minorticks_off()
        axes.set_xlim(-0.1 * budgets_E[0], 1.1 * budgets_E[-1])
    canvas.label_axes(held, title="Verdicts that hold", x=unit, y="share of samples")
    canvas.label_axes(margin, title="Margin (below 0: the verdict changed)", x=unit, y="mean margin")
    held.legend(frameon=False, fontsize=11 * POINT, labelcolor=INK.light)
    return canvas.array()


def attack_examples_panel(explanation: Explanation) -> np.ndarray:
    """Draw samples before and after PGD and the difference, enlarged; uint8 [H, W, 3]."""
    values, x = explanation.values, explanation.inputs["x"]
    if x.ndim != 4 or min(x.shape[2:]) == 1:
        return attack_curves_panel(explanation)
    count = min(len(x), MOST_SAMPLES)
    low, high = explanation.meta.get("value_range") or (-1.0, 1.0)
    unit = 2 / (high - low)  # pictures are drawn in [-1, 1]
    differences = unit * (values["adversarial"] - x)[:count].double().sum(dim=1).numpy()
    times = max(1, min(MOST_ENLARGED, int(1 / max(np.abs(differences).max(), 1e-12))))
    enlarged, name = (f"{times} times enlarged, ", f"{times} × difference") if times > 1 else ("", "difference")
    lines = [
        f"{count} of {len(x)} samples at the smallest budget at which PGD changed the verdict (else the largest).",
        f"Difference: {enlarged}red adds, blue takes away, white is no change; one scale for all.",
    ]
    banner = explanation.not_better_than_random
    top = heading_height(lines=len(lines), banner=banner)
    blocks = 2 if count > 4 else 1
    rows = -(-count // blocks)
    block = _CAPTION + 3 * (SIDE + _GAP) + 76
    canvas = Canvas(max(2 * MARGIN + blocks * block, 860), top + 22 + rows * (SIDE + 14) + MARGIN)
    y = heading(
        canvas, f"{method_title(explanation.method)}: what changed the verdict", lines, banner=banner, of=explanation
    )
    for column in range(blocks):
        for place, title in enumerate(("before", "after PGD", name)):
            left = MARGIN + column * block + _CAPTION + place * (SIDE + _GAP)
            canvas.text(left, y, title, size=12, bold=True, colour=MUTED.light)
    for sample in range(count):
        column, row = divmod(sample, rows)
        left, above = MARGIN + column * block, y + 22 + row * (SIDE + 14)
        _caption(canvas, left, above, explanation, sample)
        before, after = x[sample].double().numpy(), values["adversarial"][sample].double().numpy()
        pictures = (
            rgb((before - low) * unit - 1),
            rgb((after - low) * unit - 1),
            signed_colours(times * differences[sample], limit=1.0),
        )
        for place, pixels in enumerate(pictures):
            large = enlarge(pixels, side=SIDE)
            height, width = (edge / DENSITY for edge in large.shape[:2])
            at = left + _CAPTION + place * (SIDE + _GAP)
            canvas.box(at - 1, above - 1, width + 2, height + 2, line=LINE.light)
            canvas.image(at, above, large)
        colour_bar(canvas, left + _CAPTION + 3 * (SIDE + _GAP), above, round(height), 1 / times)
    return canvas.array()


def wilson(held_NE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Wilson's 95 % interval of the share of ones in each column (Wilson 1927), low and high [E]."""
    count, share, z = len(held_NE), held_NE.mean(axis=0), 1.96
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return middle - half, middle + half


def _mean_band(value_NE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count, mean = len(value_NE), value_NE.mean(axis=0)
    half = 1.96 * value_NE.std(axis=0, ddof=1) / np.sqrt(count) if count > 1 else np.zeros_like(mean)
    return mean - half, mean + half


def _curve(axes: Axes, at: np.ndarray, mean: np.ndarray, band: tuple, name: str, colour: str, style: str) -> None:
    axes.fill_between(at, *band, color=colour, alpha=0.15, linewidth=0)
    axes.plot(at, mean, color=colour, linestyle=style, marker="o", markersize=3, linewidth=1.6, label=name)


def _lines(explanation: Explanation) -> list[str]:
    meta, count = explanation.meta, len(explanation.values["clean_margins"])
    what = "the classifier's verdict" if meta.get("attacked") == "classifier" else target_words(explanation)
    side = (
        "" if meta.get("attacked") == "classifier" else f"; its verdict turns at {number(meta.get('threshold', 0.0))}"
    )
    words = [
        f"Attacked: {what}{side}. {count} samples; bands are 95 % of the mean over samples.",
        "Noise has the norm of the attacks. PGD's line above FGSM's, or FGSM's above that of noise: masked gradients.",
    ]
    return words + [f"⚠ {text}" for text in meta.get("warnings", [])][:3]


def _caption(canvas: Canvas, x: int, y: int, explanation: Explanation, sample: int) -> None:
    values, generated = explanation.values, explanation.inputs.get("generated")
    words, colour = f"sample {sample + 1}", INK.light
    if generated is not None:
        fake = bool(generated[sample])
        words, colour = ("generated", SERIES["vermilion"].light) if fake else ("real", SERIES["blue"].light)
    canvas.text(x, y, words, size=13, bold=True, colour=colour)
    budget = float(values["shown_budget"][sample])
    place = int((values["budgets"] == budget).nonzero()[0])
    clean, after = float(values["clean_margins"][sample]), float(values["margins"][sample, 2, place])
    verdict = "verdict changed" if after < 0 else "verdict holds"
    for line, text in enumerate(
        (f"budget {budget:g}", f"margin {number(clean, signed=True)}", f"→ {number(after, signed=True)}", verdict)
    ):
        canvas.text(x, y + 19 + 17 * line, text, size=12, colour=MUTED.light)
