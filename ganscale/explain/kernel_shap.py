"""KernelSHAP, vectorised and mergeable (Lundberg and Lee 2017, arXiv:1705.07874, theorem 2).

Shapley values are the weights of a linear model of f over coalitions, fitted with the kernel's weights under the
constraint that they sum to f(x) - f(baseline). Each chunk returns the fit's sufficient statistics in float64, never
its rows; sums of them in chunk order give the fit. Where all coalitions fit into the budget they are enumerated, and
the result is exact. Otherwise the coalitions of one player and of all but one, which weigh most, are all evaluated (so
the fit is never singular), the sizes between are drawn, and leaving out one drawn chunk at a time gives the standard
error.

Legend: N samples, M players, n coalitions of a chunk.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from ganscale.explain import scores
from ganscale.explain.attribution import AttributionExplainer, AttributionOptions, Maps
from ganscale.explain.base import SCORING, Meter
from ganscale.explain.cells import spread
from ganscale.explain.coalitions import (
    Moments,
    all_coalitions,
    border_coalitions,
    draw_coalitions,
    jackknife_error,
    kernel_weights,
)
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
        """Return for every sample the same split of its coalitions into chunks: (kind, start, stop) each."""
        if self.enumerates:
            blocks = _blocks("all", 2**self.players - 2, ROWS_A_CHUNK)
        else:
            drawn = self.options.num_coalitions - 2 * self.players
            size = min(ROWS_A_CHUNK, -(-drawn // LEAST_PARTS))
            blocks = _blocks("border", 2 * self.players, ROWS_A_CHUNK) + _blocks("drawn", drawn, size + size % 2)
        places = [(row, part) for row in range(len(self.x)) for part in range(len(blocks))]
        return [
            Chunk(round=0, index=index, explanation=row, part=part, work={"block": blocks[part]})
            for index, (row, part) in enumerate(places)
        ]

    def coalitions(self, chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
        """Return the coalitions of a chunk, bool [n, M], and their weights in the fit [n]."""
        kind, start, stop = chunk.work["block"]
        if kind == "all":
            return all_coalitions(self.players, start, stop)
        if kind == "border":
            return border_coalitions(self.players, start, stop)
        rng = chunk.rng(self.request.seed)
        present = draw_coalitions(self.players, stop - start, paired=self.options.paired, rng=rng)
        between = kernel_weights(self.players)[2:-2].sum()  # the mass that all drawn rows share
        drawn = self.options.num_coalitions - 2 * self.players
        return present, np.full(len(present), between / drawn)

    def attribute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Evaluate one chunk's coalitions and both ends; return statistics only."""
        present, weight_n = self.coalitions(chunk)
        ends = np.stack([np.ones(self.players, dtype=bool), np.zeros(self.players, dtype=bool)])
        y_n = self.evaluate(chunk.explanation, np.concatenate([ends, present]), meter)
        moments = Moments.of_rows(present, y_n[2:], weight_n)
        drawn = len(present) if chunk.work["block"][0] == "drawn" else 0
        return {"moments": moments, "full": y_n[0], "empty": y_n[1], "count": len(present), "drawn": drawn}

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
            rest = _leave_one_out(parts)
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


def _blocks(kind: str, total: int, size: int) -> list[tuple[str, int, int]]:
    return [(kind, start, min(start + size, total)) for start in range(0, total, size)]


def _leave_one_out(parts: list[dict[str, Any]]) -> list[Moments]:
    """Return the sums without one drawn chunk each; the other drawn ones take over its mass."""
    fixed = _sum([data["moments"] for data in parts if not data["drawn"]])
    drawn = [data for data in parts if data["drawn"]]
    total = sum(data["drawn"] for data in drawn)
    rest = [(drawn[:left] + drawn[left + 1 :], total / (total - data["drawn"])) for left, data in enumerate(drawn)]
    return [fixed + _sum([data["moments"] for data in others]) * growth for others, growth in rest]


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
