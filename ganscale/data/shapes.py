"""Drawn figures whose every factor and every pixel's owner is known: the truth that explanations are held to.

Each image holds one figure on black. Its factors are independent and uniform: the kind, the place, the size, the angle,
the brightness and, in colour, the hue. Nothing is stored: an image is drawn from its factors when it is read, at any
size, so that the mask of a figure is its geometry and no annotation.

Legend: n images, N samples in the set, F factors, K kinds, C channels, H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ganscale.config import DataConfig
from ganscale.data.dataset import Dataset, Kind, Split, fingerprint
from ganscale.data.keyed import keyed_permutation, keyed_uniform
from ganscale.errors import ConfigError

if TYPE_CHECKING:
    import torch

KINDS = ("ellipse", "square", "triangle", "cross")
#: Factor -> its range. Angles stay below the smallest symmetry of a kind, so that each names one picture.
RANGES = {
    "x": (-1.0, 1.0),  # of the room that the largest figure leaves, from left to right
    "y": (-1.0, 1.0),  # from top to bottom
    "size": (0.3, 0.55),  # circumradius in halves of the shorter side
    "angle": (-0.7, 0.7),  # radians, clockwise
    "brightness": (0.5, 1.0),
    "hue": (0.0, 0.8),  # below 1: red does not come twice
}
SATURATION = 0.85
FLATNESS = 0.55  # of the ellipse: its short axis over its long one
BAR = 0.36  # of the cross: the width of its bars over their length
NUM_IMAGES = {"train": 9_000, "held-out": 1_000}
VERSION = "1"  # of the drawing; part of the fingerprint


class Shapes(Dataset):
    """One figure an image, drawn from independent factors; labels are the kinds.

    ``factors`` is float64 [N, F] in the order of ``factor_names`` ("kind" first, as a whole number; "hue" only where
    there is colour); ``masks`` says which pixels are the figure.
    """

    kind: Kind = "image"

    def __init__(self, split: Split, *, shape: tuple[int, int, int], num: int, seed: int) -> None:
        super().__init__()
        self.name, self.split, self.shape = "shapes", split, shape
        self.class_names = KINDS
        self.factor_names = ("kind", *(name for name in RANGES if name != "hue" or shape[0] > 1))
        part = 0 if split == "train" else 1
        kinds = (np.arange(num) % len(KINDS))[keyed_permutation(num, seed, part, purpose="shapes kinds")]
        drawn = keyed_uniform(num * len(RANGES), seed, part, purpose="shapes factors").reshape(num, len(RANGES))
        low, high = np.array(list(RANGES.values())).T
        every = np.column_stack([kinds, low + (high - low) * drawn])
        self.factors = every[:, : len(self.factor_names)].copy()
        self.labels = kinds.astype(np.int64)
        self.num_files = 0
        self.policy = f"{num} figures drawn at {shape[1]}x{shape[2]} with {shape[0]} channels, version {VERSION}"
        self.fingerprint = fingerprint(self.name, split, {"seed": str(seed)}, self.policy)

    def read(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return uint8 ``[n, C, H, W]`` and the kinds, int64 ``[n]``; see ``Dataset.read``."""
        import torch

        images = draw(self.factors[indices], self.shape)
        return torch.from_numpy(images), torch.from_numpy(self.labels[indices])

    def masks(self, indices: np.ndarray) -> np.ndarray:
        """Return bool ``[n, K, H, W]``: the pixels of each kind, so all of an image's figure in its own kind's map."""
        inside = distance(self.factors[indices], self.shape[1:]) < 0
        own = self.labels[indices][:, None] == np.arange(len(KINDS))
        return own[:, :, None, None] & inside[:, None]


def open_shapes(config: DataConfig, *, split: Split) -> Shapes:
    """shapes: drawn ellipses, squares, triangles and crosses with known masks and factors; generated from data.seed."""
    if config.channels == 2 or min(config.resolution) < 16:
        got = f"{config.channels} channels at {config.resolution[0]}x{config.resolution[1]}"
        remedy = "use --set data.channels=1 --set data.resolution=28"
        raise ConfigError("data.channels and data.resolution", "be 1, 3 or 4 and at least 16 for shapes", got, remedy)
    shape = (config.channels, *config.resolution)
    return Shapes(split, shape=shape, num=NUM_IMAGES[split], seed=config.seed)


def draw(factors_nF: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the figures of these factors (``Shapes.factor_names``; a missing hue is red), uint8 ``[n, C, H, W]``.

    A pixel's share of the figure falls from 1 to 0 across its edge, one pixel wide; it is above a half exactly inside.
    """
    channels = shape[0]
    cover = np.clip(0.5 - distance(factors_nF, shape[1:]), 0.0, 1.0)[:, None]
    brightness = factors_nF[:, 5, None, None, None]
    if channels == 1:
        return np.rint(255 * cover * brightness).astype(np.uint8)
    hue = factors_nF[:, 6] if factors_nF.shape[1] > 6 else np.zeros(len(factors_nF))
    colour = _rgb(hue)[:, :, None, None] * brightness
    images = np.rint(255 * cover * colour).astype(np.uint8)
    if channels == 4:
        images = np.concatenate([images, np.full_like(images[:, :1], 255)], axis=1)
    return np.ascontiguousarray(images)


def distance(factors_nF: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return how far each pixel's centre lies outside the figure, in pixels, float64 ``[n, H, W]``; negative inside.

    Exact at the edge and inside it, a lower bound farther out.
    """
    height, width = size
    unit = min(size) / 2
    kind, x, y, radius, angle = (factors_nF[:, place, None, None] for place in range(5))
    room = RANGES["size"][1] * unit + 1  # what the largest figure needs to either side of its centre
    across = np.arange(width)[None, None, :] + 0.5 - width / 2 - x * (width / 2 - room)
    down = np.arange(height)[None, :, None] + 0.5 - height / 2 - y * (height / 2 - room)
    cosine, sine, radius = np.cos(angle), np.sin(angle), radius * unit
    u, v = cosine * across + sine * down, cosine * down - sine * across
    found = np.empty((len(factors_nF), height, width))
    for place, shape in enumerate((_ellipse, _square, _triangle, _cross)):
        own = kind[:, 0, 0] == place
        found[own] = shape(u[own], v[own], radius[own])
    return found


def _ellipse(u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    a, b = radius, FLATNESS * radius
    level = np.hypot(u / a, v / b)
    steepness = np.maximum(np.hypot(u / a**2, v / b**2), 1e-9)
    return level * (level - 1) / steepness  # to first order the distance, and zero exactly on the edge


def _square(u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - radius / np.sqrt(2)


def _triangle(u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    slope = np.sqrt(3) / 2
    return np.maximum(v, np.abs(u) * slope - v / 2) - radius / 2


def _cross(u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    along = radius / np.hypot(1, BAR)  # so that the bars' corners lie on the circle
    u, v = np.abs(u), np.abs(v)
    return np.minimum(
        np.maximum(u - along, v - BAR * along),
        np.maximum(v - along, u - BAR * along),
    )


def _rgb(hue_n: np.ndarray) -> np.ndarray:
    """Return the colours of these hues at full brightness and ``SATURATION``, float64 [n, 3]."""
    place = (hue_n[:, None] * 6 + np.array([0.0, 4.0, 2.0])) % 6
    pure = np.clip(np.abs(place - 3) - 1, 0, 1)
    return 1 - SATURATION * (1 - pure)
