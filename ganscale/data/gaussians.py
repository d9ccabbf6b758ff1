"""Mixtures of Gaussians in the plane: data whose modes are known, for proofs that a generator finds all of them.

The networks see ``point / SCALE``, which has unit variance on each axis; ``to_units`` undoes that. With 25 Gaussians
the scale is 2.828..., the one of the toy experiments of Gulrajani et al. 2017 (arXiv:1704.00028).

Legend: n points read, N points in the set, K modes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ganscale.config import DataConfig
from ganscale.data.dataset import Dataset, Kind, Split, fingerprint
from ganscale.data.keyed import keyed_normal, keyed_permutation
from ganscale.errors import ConfigError

if TYPE_CHECKING:
    import torch

SCALE = 2.0 * math.sqrt(2.0)  # of gaussians-25: the root mean square of {-4, -2, 0, 2, 4}
SIGMA_25, SIGMA_8 = 0.05, 0.02
NUM_POINTS = {"train": 100_000, "held-out": 20_000}


def grid_centers() -> np.ndarray:
    """Return the centres of gaussians-25, float64 ``[25, 2]``: a 5 x 5 grid of step 2 around the origin."""
    axis = np.arange(-4.0, 5.0, 2.0)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)


def ring_centers() -> np.ndarray:
    """Return the centres of gaussians-8, float64 ``[8, 2]``: a ring of radius 2."""
    angle = np.arange(8) * (2.0 * np.pi / 8)
    return 2.0 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)


class GaussianPoints(Dataset):
    """Points drawn around ``centers`` (float64 [K, 2]) with spread ``sigma``, both in units; read as ``units / scale``.

    Every mode has the same share (give or take one point); labels are the modes. Shape (2, 1, 1), float32.
    """

    kind: Kind = "points"

    def __init__(
        self, name: str, split: Split, *, centers: np.ndarray, sigma: float, scale: float, num: int, seed: int
    ) -> None:
        super().__init__()
        self.name, self.split, self.shape = name, split, (2, 1, 1)
        self.centers, self.sigma, self.scale = centers, sigma, scale
        self.class_names = tuple(f"({x:.3g}, {y:.3g})" for x, y in centers)
        part = 0 if split == "train" else 1
        modes = np.arange(num, dtype=np.int64) % len(centers)
        self.labels = modes[keyed_permutation(num, seed, part, purpose=f"{name} modes")]
        noise = keyed_normal(2 * num, seed, part, purpose=f"{name} noise").reshape(num, 2)
        self._points = ((centers[self.labels] + sigma * noise) / scale).astype(np.float32).reshape(num, 2, 1, 1)
        self.num_files = 0
        self.policy = f"{num} points, {len(centers)} modes of sigma {sigma}, divided by {scale:.6g}"
        self.fingerprint = fingerprint(name, split, {"seed": str(seed)}, self.policy)

    def read(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32 ``[n, 2, 1, 1]`` and the modes, int64 ``[n]``; see ``Dataset.read``."""
        import torch

        return torch.from_numpy(self._points[indices]), torch.from_numpy(self.labels[indices])

    def to_units(self, points: np.ndarray) -> np.ndarray:
        """Bring points as a generator makes them (any shape, two numbers a point) back to units, float64 ``[N, 2]``."""
        return np.asarray(points, dtype=np.float64).reshape(-1, 2) * self.scale


def open_gaussians_25(config: DataConfig, *, split: Split) -> GaussianPoints:
    """gaussians-25: points of the plane, a 5 x 5 grid of step 2, sigma 0.05; generated from data.seed."""
    return _open("gaussians-25", config, split, grid_centers(), SIGMA_25, SCALE)


def open_gaussians_8(config: DataConfig, *, split: Split) -> GaussianPoints:
    """gaussians-8: points of the plane, a ring of radius 2, sigma 0.02; generated from data.seed."""
    return _open("gaussians-8", config, split, ring_centers(), SIGMA_8, math.sqrt(2.0))


def _open(
    name: str, config: DataConfig, split: Split, centers: np.ndarray, sigma: float, scale: float
) -> GaussianPoints:
    got = f"{config.channels} channels at {config.resolution[0]}x{config.resolution[1]}"
    if config.channels != 2 or tuple(config.resolution) != (1, 1):
        raise ConfigError(
            "data.channels and data.resolution",
            f"be 2 and 1 for {name}",
            got,
            "use --set data.channels=2 --set data.resolution=1",
        )
    num = NUM_POINTS[split]
    return GaussianPoints(name, split, centers=centers, sigma=sigma, scale=scale, num=num, seed=config.seed)
