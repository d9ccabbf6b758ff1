"""Linear centred kernel alignment from statistics that add up (Kornblith et al. 2019, arXiv:1905.00414).

The debiased form (Song et al. 2012, JMLR 13, eq. 5, as used for CKA) is near 0 for independent features, where the
plain one grows with width over samples. All features of all layers share one set of sums.

Legend: n rows, C features of all layers together, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """Sums over rows z [C] and the squared lengths q [L] of their parts: n, z, z z', q, q q', z q'."""

    widths: tuple[int, ...]
    n: int
    z: np.ndarray
    zz: np.ndarray
    q: np.ndarray
    qq: np.ndarray
    zq: np.ndarray

    @classmethod
    def of_rows(cls, layers: list[np.ndarray]) -> Sums:
        """Return the sums of features [n, C_l] of each layer, in float64."""
        layers = [np.asarray(layer, dtype=np.float64) for layer in layers]
        rows = np.concatenate(layers, axis=1)
        power = np.stack([(layer**2).sum(axis=1) for layer in layers], axis=1)
        return cls(
            widths=tuple(layer.shape[1] for layer in layers),
            n=len(rows),
            z=rows.sum(axis=0),
            zz=rows.T @ rows,
            q=power.sum(axis=0),
            qq=power.T @ power,
            zq=rows.T @ power,
        )

    def __add__(self, other: Sums) -> Sums:
        assert self.widths == other.widths
        parts = {name: getattr(self, name) + getattr(other, name) for name in ("n", "z", "zz", "q", "qq", "zq")}
        return Sums(widths=self.widths, **parts)

    def alignment(self) -> np.ndarray:
        """Return plain CKA of every pair of layers [L, L]; 0 where a layer does not vary."""
        centred = self.zz - np.outer(self.z, self.z) / self.n
        return _normalised(self._over_pairs(lambda a, b, i, j: (centred[a, b] ** 2).sum()))

    def debiased(self) -> np.ndarray:
        """Return debiased CKA of every pair of layers [L, L]; needs at least 4 rows."""
        assert self.n >= 4, self.n
        return _normalised(self._over_pairs(self._hsic))

    def _hsic(self, a: slice, b: slice, i: int, j: int) -> float:
        n, cross = self.n, self.zz[a, b]
        # Gram matrices without their diagonals: K_ij = x_i . x_j, K_ii = q_i
        trace = (cross**2).sum() - self.qq[i, j]
        sum_k = (self.z[a] ** 2).sum() - self.q[i]
        sum_l = (self.z[b] ** 2).sum() - self.q[j]
        between = self.z[a] @ cross @ self.z[b] - self.z[a] @ self.zq[a, j] - self.z[b] @ self.zq[b, i] + self.qq[i, j]
        return (trace + sum_k * sum_l / ((n - 1) * (n - 2)) - 2 * between / (n - 2)) / (n * (n - 3))

    def _over_pairs(self, value: Callable[[slice, slice, int, int], float]) -> np.ndarray:
        edges = np.concatenate([[0], np.cumsum(self.widths)])
        parts = [slice(start, end) for start, end in pairwise(edges)]
        return np.array([[value(a, b, i, j) for j, b in enumerate(parts)] for i, a in enumerate(parts)])


def _normalised(hsic_LL: np.ndarray) -> np.ndarray:
    own = np.sqrt(np.maximum(np.diag(hsic_LL), 0))
    scale = np.outer(own, own)
    return np.divide(hsic_LL, scale, out=np.zeros_like(hsic_LL), where=scale > 1e-300)
