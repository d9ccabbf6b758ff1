"""Coalitions of players, drawn or enumerated, and the mergeable statistics of a linear fit over them.

Legend: n coalitions, M players, Z coalition matrix (1 = present), W weights, y the function's values.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np

WELL_CONDITIONED = 1e6  # largest eigenvalue over the least: a solution of doubles keeps ten digits


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """Sufficient statistics of a weighted linear fit of y on Z: they add up over chunks.

    ``zz`` [M, M] = Z'WZ, ``zy`` [M] = Z'Wy, ``z1`` [M] = Z'W1, and the scalars y'Wy, 1'Wy, 1'W1.
    """

    zz: np.ndarray
    zy: np.ndarray
    z1: np.ndarray
    yy: float
    y1: float
    weight: float

    @classmethod
    def of_rows(cls, present_nM: np.ndarray, y_n: np.ndarray, weight_n: np.ndarray) -> Moments:
        """Sum over rows, in float64."""
        z = present_nM.astype(np.float64)
        weighted = z * weight_n[:, None]
        return cls(
            zz=weighted.T @ z,
            zy=weighted.T @ y_n,
            z1=weighted.sum(axis=0),
            yy=float(weight_n @ y_n**2),
            y1=float(weight_n @ y_n),
            weight=float(weight_n.sum()),
        )

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            zz=self.zz + other.zz,
            zy=self.zy + other.zy,
            z1=self.z1 + other.z1,
            yy=self.yy + other.yy,
            y1=self.y1 + other.y1,
            weight=self.weight + other.weight,
        )

    def __mul__(self, factor: float) -> Moments:
        return Moments(
            zz=self.zz * factor,
            zy=self.zy * factor,
            z1=self.z1 * factor,
            yy=self.yy * factor,
            y1=self.y1 * factor,
            weight=self.weight * factor,
        )

    def solve(self, empty: float, full: float) -> np.ndarray:
        """Return the weights [M] that fit y - empty and sum to full - empty (least squares with a Lagrange
        multiplier).
        """
        ones = np.ones(len(self.zy))
        both = np.linalg.solve(self.zz, np.stack([self.zy - empty * self.z1, ones], axis=1))
        free_M, direction_M = both[:, 0], both[:, 1]
        return free_M - direction_M * (free_M.sum() - (full - empty)) / direction_M.sum()

    def ridge(self, penalty: float) -> tuple[np.ndarray, float]:
        """Return weights [M] and intercept that minimise the weighted squares plus ``penalty`` * |weights|^2.

        Of several equally good fits (a player that never varies) the shortest.
        """
        centred_zz = self.zz - np.outer(self.z1, self.z1) / self.weight
        centred_zy = self.zy - self.z1 * (self.y1 / self.weight)
        matrix = centred_zz + penalty * np.eye(len(self.zy))
        if np.trace(matrix) < WELL_CONDITIONED * penalty:  # one solution, found many times faster than the shortest is
            weights_M = np.linalg.solve(matrix, centred_zy)
        else:
            weights_M = np.linalg.lstsq(matrix, centred_zy, rcond=None)[0]
        return weights_M, float((self.y1 - self.z1 @ weights_M) / self.weight)

    def r_squared(self, weights_M: np.ndarray, empty: float) -> float:
        """Return the weighted share of y's variance that empty + Z.weights explains; NaN where y does not vary."""
        total = self.yy - self.y1**2 / self.weight
        if total <= 1e-12 * max(self.yy, np.finfo(float).tiny):
            return float("nan")
        centred_zy = self.zy - empty * self.z1
        centred_yy = self.yy - 2 * empty * self.y1 + empty**2 * self.weight
        residual = centred_yy - 2 * weights_M @ centred_zy + weights_M @ self.zz @ weights_M
        return float(1 - residual / total)


def kernel_weights(players: int) -> np.ndarray:
    """Return the Shapley kernel's mass by coalition size s = 0 ... M, all coalitions of a size together.

    (M - 1) / (s (M - s)), and 0 at the two ends, which enter the fit as its constraint (Lundberg and Lee 2017, theorem
    2).
    """
    size = np.arange(1, players)
    return np.concatenate([[0.0], (players - 1) / (size * (players - size)), [0.0]])


def coalitions_in_binary(players: int, start: int, stop: int) -> np.ndarray:
    """Return coalitions ``start`` ... ``stop`` - 1 of all 2^M, bool [n, M]: player j is bit j of the number."""
    return (np.arange(start, stop)[:, None] >> np.arange(players)) & 1 == 1


def all_coalitions(players: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Return coalitions ``start`` ... ``stop`` - 1 of the 2^M - 2 proper ones, bool [n, M], and their weights."""
    present = coalitions_in_binary(players, start + 1, stop + 1)  # 0 is the empty coalition, 2^M - 1 the full one
    return present, (kernel_weights(players) / _choices(players))[present.sum(axis=1)]


def border_coalitions(players: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Return some of the 2 M coalitions of one player or all but one, in pairs: bool [n, M], and their weights."""
    number_n = np.arange(start, stop)
    alone = number_n[:, None] // 2 == np.arange(players)
    present = np.where(number_n[:, None] % 2 == 0, alone, ~alone)
    return present, np.full(
        len(present), 1 / players
    )  # the mass (M - 1) / (M - 1) of a size, shared by its M coalitions


def draw_coalitions(players: int, count: int, *, paired: bool, rng: np.random.Generator) -> np.ndarray:
    """Draw coalitions of 2 ... M - 2 players with the Shapley kernel's probabilities: bool [count, M].

    Sizes are drawn systematically (one uniform number for the whole chunk), members uniformly. Paired: the second half
    holds the complements of the first, which cancels the odd part of the sampling error.
    """
    draws = -(-count // 2) if paired else count
    mass = kernel_weights(players)[2:-2]
    edges = np.cumsum(mass / mass.sum())
    position = (np.arange(draws) + rng.random()) / draws
    size_n = np.minimum(np.searchsorted(edges, position, side="right") + 2, players - 2)
    rank = rng.random((draws, players)).argsort(axis=1).argsort(axis=1)
    present = rank < size_n[:, None]
    return np.concatenate([present, ~present])[:count] if paired else present


def jackknife_error(left_out: np.ndarray) -> np.ndarray:
    """Return the delete-one jackknife's standard error along axis 0 (Efron 1982, eq. 3.2)."""
    parts = len(left_out)
    return np.sqrt((parts - 1) * left_out.var(axis=0))


def _choices(players: int) -> np.ndarray:
    return np.array([float(comb(players, size)) for size in range(players + 1)])
