"""What KernelSHAP and LIME share: a weighted linear fit of f over coalitions, from statistics that add up over chunks.

Each chunk returns the fit's sufficient statistics in float64, never its rows; sums of them in chunk order give the fit.
Leaving out one drawn chunk at a time gives the standard errors.

Legend: N samples, M players, n coalitions of a chunk.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from ganscale.explain import scores
from ganscale.explain.attribution import TWIN, AttributionExplainer, AttributionOptions, Maps
from ganscale.explain.base import SCORING, Meter
from ganscale.explain.coalitions import Moments, jackknife_error
from ganscale.explain.errors import ExplainInputError, ExplainOptionError
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.subject import Subject
from ganscale.explain.types import Score

ROWS_A_CHUNK = 128
ROWS_A_STEP = 32  # chunks are multiples of it, so that passes of so many rows, or of a divisor, are rarely padded
ENDS = 2  # rows of a sample's first chunk beside its coalitions: everything present, and nothing
FIRST_PARTS = 4  # drawn parts before an interval is believed
LEAST_PARTS = 8  # chunks a sample, so that leaving one out says something


class SurrogateOptions(AttributionOptions):
    """Options of the methods that draw coalitions."""

    num_coalitions: Annotated[int, Field(ge=2, le=10_000_000)] = Field(1024, description="evaluations a sample")


class SurrogateExplainer(AttributionExplainer):
    """Base of the fits over coalitions. Subclasses write ``blocks``, ``coalitions`` and ``fit``."""

    Options = SurrogateOptions
    options: SurrogateOptions
    takes_prior = True
    least_rows = 2  # coalitions a player, below which the fit may be singular

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        self._fits: dict[tuple[int, int], tuple[dict[str, Any], list[dict[str, Any]]]] = {}  # shared with its copies
        if self.players < 2:
            raise ExplainInputError(
                "inputs", "have at least 2 cells or features", self.players, "explain larger inputs"
            )
        least = self.least_rows * self.players
        if not self.enumerates and self.options.num_coalitions < least:
            raise ExplainOptionError(
                "num_coalitions",
                f"be at least {self.least_rows} times the {self.players} players",
                self.options.num_coalitions,
                f"use num_coalitions={least} or fewer cells",
            )

    @property
    def enumerates(self) -> bool:
        """Whether nothing is drawn: then there are no standard errors."""
        return False

    @abstractmethod
    def blocks(self) -> list[tuple[str, int, int]]:
        """Return how each sample's coalitions are split into chunks: (kind, start, stop) each; "drawn" is random."""

    @abstractmethod
    def coalitions(self, chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
        """Return the coalitions of a chunk, bool [n, M], and their weights in the fit [n]."""

    @abstractmethod
    def fit(self, moments: Moments, empty: float, full: float) -> tuple[np.ndarray, float]:
        """Return the weights [M] and the intercept of the linear model."""

    def weighed(self, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return a sample's parts with the weights that they have where drawing was stopped early."""
        return parts

    def first_round(self) -> list[Chunk]:
        """Return for every sample the same split of its coalitions into chunks."""
        blocks = self.blocks()
        places = [(row, part) for row in range(len(self.x)) for part in range(len(blocks))]
        return [
            Chunk(round=0, index=index, explanation=row, part=part, work={"block": blocks[part]})
            for index, (row, part) in enumerate(places)
        ]

    def sweep_of(self, chunk: Chunk) -> int | None:
        """Return the sweep of a chunk: 0 for what is not drawn and the first drawn parts, then one for each part."""
        if self.enumerates:
            return 0
        kinds = [kind for kind, _, _ in self.blocks()]
        return max(0, chunk.part % TWIN - kinds.index("drawn") - FIRST_PARTS + 1)

    def interval_widths(self, partial: Partial) -> list[float]:
        """Return for each sample the widest 95 % interval of any share over the largest share of its map."""
        maps = self.collect(partial)
        largest_N = np.abs(maps.weights_NM).max(axis=1)
        widest_N = 2 * scores.Z95 * maps.values["segment_errors"].numpy().max(axis=1)
        return np.divide(widest_N, largest_N, out=np.zeros(len(largest_N)), where=largest_N > 0).tolist()

    def attribute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Evaluate one chunk's coalitions, the first chunk also both ends; return statistics only."""
        present, weight_n = self.coalitions(chunk)
        if chunk.part > 0:
            y_n, ends = self.evaluate(chunk.explanation, present, meter), {}
        else:
            both = np.stack([np.ones(self.players, dtype=bool), np.zeros(self.players, dtype=bool)])
            found = self.evaluate(chunk.explanation, np.concatenate([both, present]), meter)
            y_n, ends = found[2:], {"full": found[0], "empty": found[1]}
        drawn = len(present) if chunk.work["block"][0] == "drawn" else 0
        return {"moments": Moments.of_rows(present, y_n, weight_n), "count": len(present), "drawn": drawn, **ends}

    def collect(self, partial: Partial) -> Maps:
        """Solve the fit of every sample from its summed statistics."""
        fits = [self._fit_once(row, parts) for row, parts in enumerate(_by_sample(partial, len(self.x)))]
        weights_NM = np.stack([fit["weights"] for fit in fits])
        r_squared_N = np.array([fit["r_squared"] for fit in fits])
        error_N = np.array([fit["r_squared_error"] for fit in fits])
        half = 0.0 if self.enumerates else scores.Z95 * float(np.sqrt((error_N**2).sum())) / len(fits)
        value, counts = float(r_squared_N.mean()), [fit["coalitions"] for fit in fits]
        return Maps(
            attribution=self.spread(weights_NM),
            weights_NM=weights_NM,
            fx_N=np.array([fit["full"] for fit in fits]),
            baseline_N=np.array([fit["empty"] for fit in fits]),
            values={
                "segment_errors": torch.from_numpy(np.stack([fit["errors"] for fit in fits])),
                "intercept": torch.tensor([fit["intercept"] for fit in fits], dtype=torch.float64),
                "r_squared_of_each": torch.from_numpy(r_squared_N),
            },
            scores={
                "r_squared": Score(
                    value=value,
                    low=value - half,
                    high=value + half,
                    control=float(np.mean([fit["r_squared_random"] for fit in fits])),
                    n=len(fits),
                    better="higher",
                    margin_of="value",
                    constant=0.0,
                )
            },
            meta={"enumerated": self.enumerates, "coalitions": counts[0] if len({*counts}) == 1 else counts},
        )

    def _fit_once(self, row: int, parts: list[dict[str, Any]]) -> dict[str, Any]:
        key = (row, id(parts[0]))  # one a map: a sweep adds parts behind the first, which is kept beside the fit
        fit, of = self._fits.get(key, (None, []))
        if fit is None or [*map(id, of)] != [*map(id, parts)]:
            fit = self._fit(row, parts)
            self._fits[key] = fit, parts
        return fit

    def _fit(self, row: int, parts: list[dict[str, Any]]) -> dict[str, Any]:
        full, empty = parts[0]["full"], parts[0]["empty"]
        parts = self.weighed(parts)
        total = sum_of([data["moments"] for data in parts])
        weights_M, intercept = self.fit(total, empty, full)
        r_squared = total.r_squared(weights_M, intercept)
        errors_M, r_squared_error = np.zeros(self.players), 0.0
        if not self.enumerates and sum(data["drawn"] > 0 for data in parts) > 1:
            rest = _leave_one_out(parts)
            fits = [self.fit(one, empty, full) for one in rest]
            errors_M = jackknife_error(np.stack([weights for weights, _ in fits]))
            fitted = [one.r_squared(*fit) for one, fit in zip(rest, fits, strict=True)]
            r_squared_error = float(jackknife_error(np.array(fitted)))
        rng = np.random.default_rng(np.random.SeedSequence(self.request.seed, spawn_key=(row, SCORING + 2)))
        shuffled = [weights_M[rng.permutation(self.players)] for _ in range(scores.RANDOM_ORDERS)]
        return {
            "weights": weights_M,
            "intercept": intercept,
            "errors": errors_M,
            "r_squared": r_squared,
            "r_squared_error": r_squared_error,
            "r_squared_random": float(np.mean([total.r_squared(other, intercept) for other in shuffled])),
            "full": full,
            "empty": empty,
            "coalitions": sum(data["count"] for data in parts),
        }


def split(kind: str, total: int, size: int = ROWS_A_CHUNK, *, first: bool) -> list[tuple[str, int, int]]:
    """Return blocks of at most ``size`` coalitions; the ``first`` one of a sample leaves room for the ends."""
    short = ENDS if first and size >= ROWS_A_STEP else 0
    starts = [0, *range(size - short, total, size)]
    return [(kind, start, stop) for start, stop in zip(starts, [*starts[1:], total], strict=True)]


def drawn_size(total: int) -> int:
    """Return how many coalitions a chunk draws of ``total``: an even number."""
    size = min(ROWS_A_CHUNK, -(-total // LEAST_PARTS))
    return size - size % ROWS_A_STEP if size >= ROWS_A_STEP else size + size % 2


def sum_of(moments: Sequence[Moments]) -> Moments:
    """Add statistics up, in order."""
    total = moments[0]
    for one in moments[1:]:
        total = total + one
    return total


def _leave_one_out(parts: list[dict[str, Any]]) -> list[Moments]:
    """Return the sums without one drawn chunk each; the other drawn ones take over its mass."""
    fixed = [data["moments"] for data in parts if not data["drawn"]]
    drawn = [data for data in parts if data["drawn"]]
    total = sum(data["drawn"] for data in drawn)
    rest = [(drawn[:left] + drawn[left + 1 :], total / (total - data["drawn"])) for left, data in enumerate(drawn)]
    return [sum_of([*fixed, sum_of([data["moments"] for data in others]) * growth]) for others, growth in rest]


def _by_sample(partial: Partial, count: int) -> list[list[dict[str, Any]]]:
    found: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    for explanation, _, data in partial.of_round(0):
        found[explanation].append(data)
    return found
