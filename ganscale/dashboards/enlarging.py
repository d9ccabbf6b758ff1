"""Small images made large enough to see. No matplotlib: the trainer's first sample grid need not wait for its import.

Sizes are in CSS pixels; arrays that come out have ``DENSITY`` device pixels for each of them.

Legend: H height, W width, C channels.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

DENSITY = 2
DAMAGED = (OSError, ValueError, SyntaxError)  # what PIL raises for a file that is no whole picture


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
    an antialiasing filter. ``grid`` [H, W] of region numbers draws lines between regions.
    """
    height, width = image_HWC.shape[:2]
    if max(height, width) > side * DENSITY:
        ratio = side * DENSITY / max(height, width)
        size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        large = np.array(Image.fromarray(image_HWC).resize(size, Image.Resampling.LANCZOS))
    else:
        times = factor(height, width, side=side)
        large = image_HWC.repeat(times, axis=0).repeat(times, axis=1)
    return large if grid is None else _outlined(large, grid)


def _outlined(image_HWC: np.ndarray, grid_HW: np.ndarray) -> np.ndarray:
    """Draw lines between the regions of a grid of any size, one device pixel wide, darker or lighter than the image."""
    rows, columns = (np.arange(size) * of // size for size, of in zip(image_HWC.shape[:2], grid_HW.shape, strict=True))
    regions = grid_HW[np.ix_(rows, columns)]
    edge = np.zeros(regions.shape, dtype=bool)
    edge[:, 1:] |= regions[:, 1:] != regions[:, :-1]
    edge[1:, :] |= regions[1:, :] != regions[:-1, :]
    drawn = image_HWC.copy()
    ground = image_HWC[edge].astype(np.float64)
    line = np.where(ground.mean(axis=-1, keepdims=True) > 100, 40.0, 220.0)
    drawn[edge] = np.rint(0.65 * ground + 0.35 * line).astype(np.uint8)
    return drawn
