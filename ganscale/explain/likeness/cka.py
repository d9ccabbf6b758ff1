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
        (z, w), (q, r) = (self.z[a], self.z[b]), (self.q[i], self.q[j])
        return _unbiased(self.n, self.zz[a, b], (z, w), (q, r), self.qq[i, j], z @ self.zq[a, j] + w @ self.zq[b, i])

    def _over_pairs(self, value: Callable[[slice, slice, int, int], float]) -> np.ndarray:
        edges = np.concatenate([[0], np.cumsum(self.widths)])
        parts = [slice(start, end) for start, end in pairwise(edges)]
        return np.array([[value(a, b, i, j) for j, b in enumerate(parts)] for i, a in enumerate(parts)])


def debiased_of_orders(g: list[np.ndarray], d: list[np.ndarray], orders: list[np.ndarray]) -> np.ndarray:
    """Return debiased CKA of layers ``g`` with layers ``d`` whose rows come in each of the orders, [R, L_G, L_D].

    All layers are [n, C_l] with n of at least 4. What a layer sums to by itself is the same in any order.
    """
    g, d = ([np.asarray(layer, dtype=np.float64) for layer in layers] for layers in (g, d))
    of_g, of_d = ([(Sums.of_rows([x]), (x**2).sum(axis=1)) for x in layers] for layers in (g, d))
    own_g, own_d = (np.sqrt([max(s._hsic(*[slice(None)] * 2, 0, 0), 0) for s, _ in of]) for of in (of_g, of_d))
    hsic = np.empty((len(orders), len(g), len(d)))
    for place, order in enumerate(orders):
        for j, (y, (t, r)) in enumerate(zip(d, of_d, strict=True)):
            y, r = y[order], r[order]
            for i, (x, (s, q)) in enumerate(zip(g, of_g, strict=True)):
                mixed = (x @ s.z) @ r + (y @ t.z) @ q
                hsic[place, i, j] = _unbiased(s.n, x.T @ y, (s.z, t.z), (s.q[0], t.q[0]), q @ r, mixed)
    return _over(hsic, np.outer(own_g, own_d))


def _unbiased(
    n: int, cross: np.ndarray, z: tuple[np.ndarray, ...], q: tuple[float, ...], qq: float, mixed: float
) -> float:
    """Return HSIC from Gram matrices without their diagonals: K_ij = x_i . x_j, K_ii = q_i."""
    sum_k, sum_l = ((a**2).sum() - b for a, b in zip(z, q, strict=True))
    trace, between = (cross**2).sum() - qq, z[0] @ cross @ z[1] - mixed + qq
    return (trace + sum_k * sum_l / ((n - 1) * (n - 2)) - 2 * between / (n - 2)) / (n * (n - 3))


def _normalised(hsic_LL: np.ndarray) -> np.ndarray:
    own = np.sqrt(np.maximum(np.diag(hsic_LL), 0))
    return _over(hsic_LL, np.outer(own, own))


def _over(hsic: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.divide(hsic, scale, out=np.zeros_like(hsic), where=scale > 1e-300)
