"""uint8 pixels at the edges, float32 in [-1, 1] inside, grids and PNG files.

Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ganscale.files import written_aside

if TYPE_CHECKING:
    import torch


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Map uint8 0..255 to float32 [-1, 1] of the same shape: ``value / 127.5 - 1``."""
    import torch

    assert images.dtype == torch.uint8, images.dtype
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Map floats [-1, 1] to uint8 0..255 of the same shape, rounded to nearest and clamped; inverse of ``to_float``."""
    import torch

    return images.detach().to(torch.float32).add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def image_grid(images: torch.Tensor | np.ndarray, columns: int | None = None, *, padding: int = 2) -> np.ndarray:
    """Lay uint8 ``[N, C, H, W]`` out row by row on white, ``padding`` pixels apart and around.

    ``columns`` defaults to the square root of N, rounded up. Returns uint8 ``[H', W']`` for C = 1 and ``[H', W', C]``
    for C = 3 or 4. Raises ``ValueError`` for other dtypes or channels.
    """
    pixels = np.asarray(images.detach().cpu() if hasattr(images, "detach") else images)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3, 4) or len(pixels) == 0:
        raise ValueError(
            f"images must be uint8 [N, 1|3|4, H, W], got {pixels.dtype} {list(pixels.shape)}; use to_uint8"
        )
    count, channels, height, width = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = np.full(
        (rows * (height + padding) + padding, columns * (width + padding) + padding, channels), 255, dtype=np.uint8
    )
    for index, image in enumerate(pixels):
        top = padding + (index // columns) * (height + padding)
        left = padding + (index % columns) * (width + padding)
        grid[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return grid[:, :, 0] if channels == 1 else grid


def scatter_image(points: torch.Tensor | np.ndarray, *, extent: float, size: int = 256) -> np.ndarray:
    """Draw points of the plane as a gray picture, uint8 ``[size, size]``: black where points fall, on white.

    ``points`` is ``[N, 2]`` (or ``[N, 2, 1, 1]``); the picture shows [-extent, extent] on both axes, y upwards.
    Darkness grows with the count in a pixel and saturates at three. Points outside are left out.
    """
    plane = np.asarray(points.detach().cpu() if hasattr(points, "detach") else points, dtype=np.float64).reshape(-1, 2)
    cells = np.floor((plane + extent) / (2 * extent) * size)
    cells = cells[((cells >= 0) & (cells < size)).all(axis=1)].astype(np.int64)
    counts = np.zeros((size, size), dtype=np.int64)
    np.add.at(counts, (size - 1 - cells[:, 1], cells[:, 0]), 1)
    return (255 - np.minimum(counts, 3) * 85).astype(np.uint8)


def save_png(path: str | Path, array: np.ndarray) -> Path:
    """Write uint8 ``[H, W]`` or ``[H, W, 3|4]`` as PNG: aside, then renamed, so that no reader sees half a file.

    Makes the folder where it is missing and returns the path. Raises ``OSError`` as the file system does.
    """
    from PIL import Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        Image.fromarray(np.ascontiguousarray(array)).save(aside, format="PNG")
    return path
