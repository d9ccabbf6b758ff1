"""Walks through latent space as an animated GIF: all directions at once, there and back.

Legend: K directions, R random directions, S steps of a walk, C channels, H height, W width.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ganscale.dashboards.enlarging import DENSITY, enlarge, rgb
from ganscale.dashboards.figures import Canvas
from ganscale.dashboards.layout import MARGIN, method_title
from ganscale.dashboards.palette import MUTED, SERIES

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

TRAVERSAL_GIF = "traversal.gif"
SIDE, ACROSS, FRAME_MS = 96, 5, 180
_GAP, _ABOVE, _HEAD = 12, 20, 30


def traversal_gif(explanation: Explanation, path: Path) -> Path | None:
    """Write the walks of an explanation that has some as ``path``; None where they are no pictures.

    Every frame shows all directions, and the random ones as the control, at the same distance from the base latent.
    """
    values = explanation.values
    if "traversal" not in values or min(values["traversal"].shape[-2:]) == 1:
        return None
    names = explanation.meta.get("class_names", [])
    walks = [
        (names[k] if k < len(names) else f"direction {k + 1}", "blue", w) for k, w in enumerate(values["traversal"])
    ]
    walks += [(f"random {r + 1}", "grey", w) for r, w in enumerate(values.get("traversal_random", []))]
    sigmas = values["sigmas"].tolist()
    there = [
        _frame(explanation, [(title, colour, walk[step].numpy()) for title, colour, walk in walks], sigma)
        for step, sigma in enumerate(sigmas)
    ]
    frames = [Image.fromarray(frame).quantize(128, dither=Image.Dither.NONE) for frame in there + there[-2:0:-1]]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0, optimize=False)
    return path


def _frame(explanation: Explanation, tiles: list[tuple[str, str, np.ndarray]], sigma: float) -> np.ndarray:
    rows = -(-len(tiles) // ACROSS)
    across = min(len(tiles), ACROSS)
    width = max(2 * MARGIN + across * (SIDE + _GAP), 380)
    canvas = Canvas(width, 2 * MARGIN + _HEAD + rows * (SIDE + _ABOVE + _GAP))
    away = f"{sigma:+.2g} σ".replace("-", "−") if sigma else "0 σ"
    canvas.text(MARGIN, MARGIN, method_title(explanation.method), size=15, bold=True)
    canvas.text(width - MARGIN, MARGIN + 2, away, size=14, colour=MUTED.light, align="right")
    for place, (title, colour, image) in enumerate(tiles):
        row, column = divmod(place, ACROSS)
        x, y = MARGIN + column * (SIDE + _GAP), MARGIN + _HEAD + row * (SIDE + _ABOVE + _GAP)
        canvas.text(x, y, title, size=12, bold=True, colour=SERIES[colour].light)
        canvas.image(x, y + _ABOVE, enlarge(rgb(image), side=SIDE))
    return canvas.array()[::DENSITY, ::DENSITY].copy()
