"""Small images made large enough to see. No matplotlib: the trainer's first sample grid need not wait for its import.

Sizes are in CSS pixels; arrays that come out have ``DENSITY`` device pixels for each of them.

Legend: H height, W width, C channels.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

DENSITY = 2


def rgb(image_CHW: np.ndarray) -> np.ndarray:
    """Return float [C, H, W] in [-1, 1] as uint8 [H, W, 3]; gray is repeated, alpha is laid on white."""
    image = np.clip((np.asarray(image_CHW, dtype=np.float64) + 1) / 2, 0, 1)
    channels = image.shape[0]
    if channels == 2:  # two-channel data is no picture; show both, blue empty
        image = np.concatenate([image, np.zeros_like(image[:1])])
    if channels == 4:
        image = image[:3] * image[3:] + (1 - image[3:])
    if channels == 1:
        image = np.repeat(image, 3, axis=0)
    return np.rint(image.transpose(1, 2, 0) * 255).astype(np.uint8)


def factor(height: int, width: int, *, side: int) -> int:
    """Return the whole-number enlargement with which the longer edge fits ``side`` CSS pixels; at least 1."""
    return max(1, side * DENSITY // max(height, width))


def enlarge(image_HWC: np.ndarray, *, side: int, grid: np.ndarray | None = None) -> np.ndarray:
    """Bring uint8 [H, W, 3] to at most ``side`` CSS pixels, as device pixels.

    Small images grow by a whole factor, nearest neighbour, so that each pixel stays a square; larger ones shrink with
    an antialiasing filter. ``grid`` [H, W] of region numbers draws thin lines between regions (enlarged images only).
    """
    height, width = image_HWC.shape[:2]
    if max(height, width) > side * DENSITY:
        ratio = side * DENSITY / max(height, width)
        size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        return np.asarray(Image.fromarray(image_HWC).resize(size, Image.Resampling.LANCZOS))
    times = factor(height, width, side=side)
    large = image_HWC.repeat(times, axis=0).repeat(times, axis=1)
    if grid is None or times < 3:
        return large
    regions = grid.repeat(times, axis=0).repeat(times, axis=1)
    edge = np.zeros(regions.shape, dtype=bool)
    edge[:, 1:] |= regions[:, 1:] != regions[:, :-1]
    edge[1:, :] |= regions[1:, :] != regions[:-1, :]
    large = large.copy()
    large[edge] = (0.65 * large[edge] + 0.35 * 110).astype(np.uint8)
    return large
