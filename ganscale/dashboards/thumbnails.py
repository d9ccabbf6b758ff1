"""The small picture that stands for an explanation in the index of its run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ganscale.dashboards.enlarging import DENSITY
from ganscale.files import written_aside

THUMBNAIL = "thumbnail.png"
WIDTH, HEIGHT = 160, 100  # CSS pixels
_HEADING = 84  # CSS pixels of a panel that hold title and notes: too small to read, once it is shrunk
_CUT = 480  # CSS pixels of the panel that are shown across


def write_thumbnail(panels: Mapping[str, np.ndarray], directory: Path) -> Path | None:
    """Write the upper left part of the first panel, below its heading, as ``thumbnail.png``; None without panels."""
    if not panels:
        return None
    panel = next(iter(panels.values()))[_HEADING * DENSITY :]
    across = min(_CUT * DENSITY, panel.shape[1])
    cut = panel[: across * HEIGHT // WIDTH, :across]
    page = np.full((across * HEIGHT // WIDTH, across, 3), 255, dtype=np.uint8)
    page[: cut.shape[0]] = cut
    small = Image.fromarray(page).resize((WIDTH * DENSITY, HEIGHT * DENSITY), Image.Resampling.LANCZOS)
    path = directory / THUMBNAIL
    with written_aside(path) as aside:
        small.quantize(128, dither=Image.Dither.NONE).save(aside, format="PNG")
    return path
