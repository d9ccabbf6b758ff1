"""KernelSHAP, vectorised and mergeable (Lundberg and Lee 2017, arXiv:1705.07874, theorem 2).

Shapley values are the weights of a linear model of f over coalitions, fitted with the kernel's weights under the
constraint that they sum to f(x) - f(baseline). Each chunk returns the fit's sufficient statistics in float64, never
its rows; sums of them in chunk order give the fit, and leaving out one chunk at a time gives its standard error. Where
all coalitions fit into the budget they are enumerated, and the result is exact.

Legend: N samples, M players, n coalitions of a chunk, Z coalition matrix (1 = present).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from ganscale.explain import scores
from ganscale.explain.attribution import AttributionExplainer, AttributionOptions, Maps
from ganscale.explain.base import SCORING, Meter
from ganscale.explain.cells import spread
from ganscale.explain.errors import ExplainInputError, ExplainOptionError
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.subject import Subject
from ganscale.explain.types import Score

ROWS_A_CHUNK = 126  # coalitions; with the two ends 128 rows, two full micro-batches of the default size
LEAST_PARTS = 8  # chunks a sample, so that leaving one out says something


class KernelShapOptions(AttributionOptions):
    """``num_coalitions``: evaluations a sample; ``paired``: each sampled coalition comes with its complement."""

    num_coalitions: Annotated[int, Field(ge=2, le=10_000_000)] = 1024
    paired: bool = True


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

    def solve(self, empty: float, full: float) -> np.ndarray:
        """Return the weights [M] that fit y - empty and sum to full - empty (least squares with a Lagrange
        multiplier).
        """
        ones = np.ones(len(self.zy))
        both = np.linalg.solve(self.zz, np.stack([self.zy - empty * self.z1, ones], axis=1))
        free_M, direction_M = both[:, 0], both[:, 1]
        return free_M - direction_M * (free_M.sum() - (full - empty)) / direction_M.sum()

    def r_squared(self, weights_M: np.ndarray, empty: float) -> float:
        """Return the weighted share of y's variance that empty + Z.weights explains; NaN where y does not vary."""
        total = self.yy - self.y1**2 / self.weight
        if total <= 1e-12 * max(self.yy, np.finfo(float).tiny):
            return float("nan")
        centred_zy = self.zy - empty * self.z1
        centred_yy = self.yy - 2 * empty * self.y1 + empty**2 * self.weight
        residual = centred_yy - 2 * weights_M @ centred_zy + weights_M @ self.zz @ weights_M
        return float(1 - residual / total)


class KernelShap(AttributionExplainer):
    """Fair shares of f(x) - f(baseline) among cells or features."""

    name = "kernel-shap"
    summary = "fair shares of regions, by a weighted fit over coalitions; exact where they can all be tried"
    Options = KernelShapOptions
    options: KernelShapOptions

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        if self.players < 2:
            raise ExplainInputError(
                "inputs", "have at least 2 cells or features", self.players, "explain larger inputs"
            )
        if not self.enumerates and self.options.num_coalitions < 4 * self.players:
            raise ExplainOptionError(
                "num_coalitions",
                f"be at least 4 times the {self.players} players",
                self.options.num_coalitions,
                f"use num_coalitions={4 * self.players} or fewer cells",
            )

    @property
    def enumerates(self) -> bool:
        """Whether all 2^M - 2 coalitions fit into the budget."""
        return self.players < 31 and 2**self.players - 2 <= self.options.num_coalitions

    def first_round(self) -> list[Chunk]:
        """Return for every sample the same split of its coalitions into chunks."""
        total = 2**self.players - 2 if self.enumerates else self.options.num_coalitions
        size = ROWS_A_CHUNK if self.enumerates else min(ROWS_A_CHUNK, -(-total // LEAST_PARTS))
        size += size % 2  # pairs stay together
        bounds = [(start, min(start + size, total)) for start in range(0, total, size)]
        places = [(row, part) for row in range(len(self.x)) for part in range(len(bounds))]
        return [
            Chunk(round=0, index=index, explanation=row, part=part, work={"rows": bounds[part]})
            for index, (row, part) in enumerate(places)
        ]

    def attribute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Evaluate one chunk's coalitions and both ends; return statistics only."""
        start, stop = chunk.work["rows"]
        if self.enumerates:
            present, weight_n = all_coalitions(self.players, start, stop)
        else:
            present = draw_coalitions(
                self.players, stop - start, paired=self.options.paired, rng=chunk.rng(self.request.seed)
            )
            weight_n = np.ones(len(present))
        ends = np.stack([np.ones(self.players, dtype=bool), np.zeros(self.players, dtype=bool)])
        y_n = self.evaluate(chunk.explanation, np.concatenate([ends, present]), meter)
        moments = Moments.of_rows(present, y_n[2:], weight_n)
        return {"moments": moments, "full": y_n[0], "empty": y_n[1], "count": len(present)}

    def collect(self, partial: Partial) -> Maps:
        """Solve the fit of every sample from its summed statistics."""
        fits = [self._fit(row, data) for row, data in enumerate(_by_sample(partial, len(self.x)))]
        weights_NM = np.stack([fit["weights"] for fit in fits])
        r_squared_N = np.array([fit["r_squared"] for fit in fits])
        error_N = np.array([fit["r_squared_error"] for fit in fits])
        half = 0.0 if self.enumerates else scores.Z95 * float(np.sqrt((error_N**2).sum())) / len(fits)
        value = float(r_squared_N.mean())
        return Maps(
            attribution=spread(weights_NM, self.segments, self.x),
            weights_NM=weights_NM,
            fx_N=np.array([fit["full"] for fit in fits]),
            baseline_N=np.array([fit["empty"] for fit in fits]),
            values={"segment_errors": torch.from_numpy(np.stack([fit["errors"] for fit in fits]))},
            scores={
                "r_squared": Score(
                    value=value,
                    low=value - half,
                    high=value + half,
                    control=float(np.mean([fit["r_squared_random"] for fit in fits])),
                    n=len(fits),
                    better="higher",
                )
            },
            meta={"enumerated": self.enumerates, "coalitions": fits[0]["coalitions"]},
        )

    def _fit(self, row: int, parts: list[dict[str, Any]]) -> dict[str, Any]:
        moments = [data["moments"] for data in parts]
        full, empty = parts[0]["full"], parts[0]["empty"]
        total = _sum(moments)
        weights_M = total.solve(empty, full)
        r_squared = total.r_squared(weights_M, empty)
        errors_M, r_squared_error = np.zeros(self.players), 0.0
        if not self.enumerates:
            rest = [_sum(moments[:left] + moments[left + 1 :]) for left in range(len(moments))]
            fits = [one.solve(empty, full) for one in rest]
            errors_M = jackknife_error(np.stack(fits))
            fitted = [one.r_squared(fit, empty) for one, fit in zip(rest, fits, strict=True)]
            r_squared_error = float(jackknife_error(np.array(fitted)))
        rng = np.random.default_rng(np.random.SeedSequence(self.request.seed, spawn_key=(row, SCORING + 2)))
        shuffled = [weights_M[rng.permutation(self.players)] for _ in range(scores.RANDOM_ORDERS)]
        return {
            "weights": weights_M,
            "errors": errors_M,
            "r_squared": r_squared,
            "r_squared_error": r_squared_error,
            "r_squared_random": float(np.mean([total.r_squared(other, empty) for other in shuffled])),
            "full": full,
            "empty": empty,
            "coalitions": sum(data["count"] for data in parts),
        }


def all_coalitions(players: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Return coalitions number ``start`` ... ``stop`` - 1 of the 2^M - 2 proper ones, [n, M] bool, and their kernel
    weights.
    """
    number_n = np.arange(start, stop) + 1  # in binary: 0 is the empty coalition, 2^M - 1 the full one
    present = (number_n[:, None] >> np.arange(players)) & 1 == 1
    size_n = present.sum(axis=1)
    weight_by_size = [0.0, *((players - 1) / (comb(players, s) * s * (players - s)) for s in range(1, players))]
    return present, np.array(weight_by_size)[size_n]


def draw_coalitions(players: int, count: int, *, paired: bool, rng: np.random.Generator) -> np.ndarray:
    """Draw coalitions with the Shapley kernel's probabilities: bool [count, M], so that each row weighs 1.

    Sizes are drawn systematically (one uniform number for the whole chunk), members uniformly. Paired: the second half
    holds the complements of the first, which cancels the odd part of the sampling error.
    """
    draws = -(-count // 2) if paired else count
    size_mass = 1 / (np.arange(1, players) * (players - np.arange(1, players)))
    edges = np.cumsum(size_mass / size_mass.sum())
    position = (np.arange(draws) + rng.random()) / draws
    size_n = np.minimum(np.searchsorted(edges, position, side="right") + 1, players - 1)
    rank = rng.random((draws, players)).argsort(axis=1).argsort(axis=1)
    present = rank < size_n[:, None]
    return np.concatenate([present, ~present])[:count] if paired else present


def jackknife_error(left_out: np.ndarray) -> np.ndarray:
    """Return the delete-one jackknife's standard error along axis 0 (Efron 1982, eq. 3.2)."""
    parts = len(left_out)
    return np.sqrt((parts - 1) * left_out.var(axis=0))


def _sum(moments: list[Moments]) -> Moments:
    total = moments[0]
    for one in moments[1:]:
        total = total + one
    return total


def _by_sample(partial: Partial, count: int) -> list[list[dict[str, Any]]]:
    found: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    for explanation, _, data in partial.of_round(0):
        found[explanation].append(data)
    return found
