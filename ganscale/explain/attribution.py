"""What attribution methods share: inputs, baseline, players, and the second round that measures faithfulness.

Round 0 computes the maps (a method's own chunks); round 1 removes and inserts players in the map's order and in random
ones, one chunk a sample. Legend: N samples, M players, C channels, H height, W width, D features, R random orders, P
curve points.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ganscale.explain import scores
from ganscale.explain.base import SCORING, Explainer, Meter, Options
from ganscale.explain.cells import compose, grid_segments, make_baseline
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.subject import Subject, check_callable, check_range
from ganscale.explain.types import Explanation, Score

INFIDELITY_MASKS = 64


class AttributionOptions(Options):
    """Options of every attribution: what stands for "absent", and the grid of cells.

    ``baseline``: auto (the low end of the range; zero where there is none), low, mid, mean, blur, zero, or a number.
    ``cells``: cells a side for images; vectors have one player a feature. ``curve_points``: points of deletion curves.
    """

    baseline: Literal["auto", "low", "mid", "mean", "blur", "zero"] | Annotated[float, Field(allow_inf_nan=False)] = (
        "auto"
    )
    cells: Annotated[int, Field(ge=2, le=64)] = 7
    curve_points: Annotated[int, Field(ge=2, le=4096)] = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Maps:
    """The result of round 0: maps like x, their sums per player, and f at both ends (float64 [N])."""

    attribution: Tensor
    weights_NM: np.ndarray
    fx_N: np.ndarray
    baseline_N: np.ndarray
    values: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)


class AttributionExplainer(Explainer):
    """Base of the methods that share f(x) - f(baseline) out among pixels, cells or features.

    Subclasses write ``first_round``, ``attribute`` and ``collect``.
    """

    Options = AttributionOptions
    options: AttributionOptions
    primary = ("deletion_auc", "insertion_auc")
    weighs = "cells"  # what the method itself gives weights to; recorded in meta

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        self.x = request.inputs["x"]
        self.range_warnings = check_range(self.x, subject.value_range)
        self.segments = grid_segments(tuple(self.x.shape[1:]), self.options.cells)
        self.players = int(self.segments.max()) + 1
        self.baseline = make_baseline(self.x, self.options.baseline, subject.value_range)
        check_range(self.baseline, subject.value_range)

    @abstractmethod
    def first_round(self) -> list[Chunk]:
        """Return the chunks that compute the maps."""

    @abstractmethod
    def attribute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return the arrays of one chunk of round 0."""

    @abstractmethod
    def collect(self, partial: Partial) -> Maps:
        """Return the maps of a folded round 0."""

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Check the callable and list round 0, then one scoring chunk a sample, then nothing."""
        if previous is None:
            for words in self.range_warnings:
                warnings.warn(words, stacklevel=2)
            check_callable(self.subject, self.x, self.baseline[:1], gradient=self.needs_gradient)
            return self.first_round()
        if previous.round > 0:
            return []
        weights_NM = self.collect(previous).weights_NM
        return [
            Chunk(round=1, index=row, explanation=row, part=SCORING, work={"weights": weights_NM[row]})
            for row in range(len(self.x))
        ]

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Run an attribution chunk (round 0) or a scoring chunk (round 1)."""
        return self.attribute(chunk, meter) if chunk.round == 0 else self.measure(chunk, meter)

    def evaluate(self, row: int, present_nM: np.ndarray, meter: Meter) -> np.ndarray:
        """Return f of sample ``row`` with the given players present, float64 [n]."""
        x, baseline = self.x[row], self.baseline[row]
        return meter.evaluate(
            self.subject.fn, len(present_nM), lambda part: compose(x, baseline, present_nM[part], self.segments)
        )

    def measure(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return the curves and the infidelity of one sample, with their random controls.

        Inserting in an order is deleting in its reverse, read backwards: one set of random orders is the control of
        both.
        """
        rng, weights_M = chunk.rng(self.request.seed), chunk.work["weights"]
        best_first = np.argsort(-weights_M, kind="stable")
        random_orders = [rng.permutation(self.players) for _ in range(scores.RANDOM_ORDERS)]
        counts_P = scores.removal_counts(self.players, self.options.curve_points)
        orders = [best_first, best_first[::-1], *random_orders]
        inner = np.concatenate([scores.deletion_masks(order, counts_P[1:-1]) for order in orders])
        removed = rng.random((INFIDELITY_MASKS, self.players)) < 0.5
        ends = np.stack([np.ones(self.players, dtype=bool), np.zeros(self.players, dtype=bool)])
        f_n = self.evaluate(chunk.explanation, np.concatenate([ends, inner, ~removed]), meter)
        full, empty, f_n = f_n[0], f_n[1], f_n[2:]
        middle = f_n[: len(inner)].reshape(len(orders), len(counts_P) - 2)
        curves = np.pad(middle, ((0, 0), (1, 1)), constant_values=((0, 0), (full, empty)))
        drop_n = full - f_n[len(inner) :]
        shuffled = [weights_M[rng.permutation(self.players)] for _ in range(scores.RANDOM_ORDERS)]
        return {
            "deletion": curves[0],
            "insertion": curves[1][::-1].copy(),
            "random": curves[2:],
            "infidelity": scores.infidelity(weights_M, removed, drop_n),
            "infidelity_random": np.array([scores.infidelity(other, removed, drop_n) for other in shuffled]),
        }

    def finish(self, partial: Partial) -> Explanation:
        """Assemble maps, curves and scores."""
        maps, found = self.collect(partial), [data for _, _, data in partial.of_round(1)]
        counts_P = scores.removal_counts(self.players, self.options.curve_points)
        deletion, insertion, random = (
            np.stack([data[key] for data in found]) for key in ("deletion", "insertion", "random")
        )
        random_area_NR = scores.area(random, counts_P)
        rng = np.random.default_rng(np.random.SeedSequence(self.request.seed, spawn_key=(0, SCORING + 1)))
        random_gini_R = scores.gini(rng.standard_normal((scores.RANDOM_ORDERS, self.players)))
        curves = {"deletion_curve": deletion, "insertion_curve": insertion, "random_curves": random}
        ends = {"fx": maps.fx_N, "f_baseline": maps.baseline_N, "curve_share": counts_P / counts_P[-1]}
        weights = {"attribution": maps.attribution, "segment_weights": torch.from_numpy(maps.weights_NM)}
        infidelity_N = np.array([data["infidelity"] for data in found])
        return self.explanation(
            partial,
            values={
                **weights,
                **maps.values,
                **{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in (curves | ends).items()},
            },
            inputs={**self.request.inputs, "baseline": self.baseline, "segments": self.segments},
            scores={
                "deletion_auc": scores.against_random(scores.area(deletion, counts_P), random_area_NR, better="lower"),
                "insertion_auc": scores.against_random(
                    scores.area(insertion, counts_P), random_area_NR, better="higher"
                ),
                "infidelity": Score(
                    value=float(infidelity_N.mean()),
                    control=float(np.mean([data["infidelity_random"] for data in found])),
                    n=len(found),
                    better="lower",
                ),
                "completeness_gap": scores.completeness(maps.weights_NM, maps.fx_N, maps.baseline_N),
                "gini": scores.against_random(
                    scores.gini(maps.weights_NM), np.tile(random_gini_R, (len(found), 1)), better="higher"
                ),
                **maps.scores,
            },
            meta={
                "warnings": [
                    *self.range_warnings,
                    *maps.meta.get("warnings", []),
                    *_misfits(infidelity_N, maps.scores),
                ],
                "players": self.players,
                "baseline": str(self.options.baseline),
                "fill": "baseline",
                "weighs": self.weighs if self.segments.ndim == 2 else "features",
                **{key: value for key, value in maps.meta.items() if key != "warnings"},
            },
        )


def _misfits(infidelity_N: np.ndarray, found: dict[str, Score]) -> list[str]:
    """Say in words where the map ranks the parts but its sizes predict nothing: both controls below are absolute."""
    words = []
    if infidelity_N.mean() >= 1:
        words.append("infidelity is 1 or more: the map's sizes predict changes of the output no better than zeros")
    if "r_squared" in found and found["r_squared"].value < 0:
        words.append("R² is below 0: the linear surrogate fits worse than a constant; read the order, not the sizes")
    return words
