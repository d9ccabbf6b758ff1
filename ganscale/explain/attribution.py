"""What attribution methods share: inputs, baseline, players, and the rounds that measure how far a map can be trusted.

Round 0 computes the maps (a method's own chunks), and the same maps again for their controls: of slightly moved inputs
(max-sensitivity) and of a network whose weights were shuffled. Round 1 removes and inserts players in the map's order,
in the shuffled network's and in random ones, one chunk a sample. Legend: N samples, M players, C channels, H height,
W width, D features, R random orders, P curve points.
"""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ganscale.explain import faithfulness
from ganscale.explain.base import SCORING, Explainer, Meter, Options
from ganscale.explain.cells import cell_sums, compose, grid_segments, make_baseline, spread, width_of
from ganscale.explain.errors import ExplainOptionError
from ganscale.explain.inpainting import Inpainting, draw_later
from ganscale.explain.latent_path import PRIOR_DRAWS
from ganscale.explain.plan import Chunk, Partial, Request, first_rows
from ganscale.explain.shuffling import has_weights, shuffled_weights
from ganscale.explain.subject import Subject, are_images, check_callable, check_range
from ganscale.explain.superpixels import slic_segments
from ganscale.explain.types import Explanation, Score

SLIC_FROM = 64  # pixels a side: on smaller images superpixels follow noise, and a grid is as good
TWIN = 1 << 16  # parts of the k-th control's chunks begin at (k + 1) TWIN; its streams are those of the map itself
SHAKE = 0.02  # of the range's width: how far an input is moved for max-sensitivity


class AttributionOptions(Options):
    """Options of every attribution: what stands for "absent", the regions, and how much is measured beside the map.

    Baseline auto is the low end of the range, zero where there is none; of a latent it is ``prior``, the mean over
    draws of the normal prior, for methods that can take it.
    """

    baseline: (
        Literal["auto", "low", "mid", "mean", "blur", "zero", "prior"] | Annotated[float, Field(allow_inf_nan=False)]
    ) = Field(
        "auto", description="what stands for an absent part; auto: low of the range, or draws of a latent's prior"
    )
    fill: Literal["baseline", "generator"] = Field(
        "baseline", description="what is put in place of cells that are absent: that, or what the generator draws there"
    )
    bank: Annotated[int, Field(ge=2, le=8192)] = Field(
        256, description="fill=generator: images it made, of which the best fitting is taken"
    )
    cells: Annotated[int, Field(ge=2, le=64)] = Field(7, description="cells a side of an image")
    regions: Literal["auto", "grid", "slic"] = Field(
        "grid", description="squares, or as many superpixels (slic); auto: slic from 64 pixels a side"
    )
    curve_points: Annotated[int, Field(ge=2, le=4096)] = Field(16, description="points of a deletion curve")
    shakes: Annotated[int, Field(ge=0, le=14)] = Field(
        2, description="moved copies of each sample, whose maps are compared with its own"
    )
    shuffled_network: bool = Field(True, description="make the map of a network with shuffled weights as a control")


@dataclass(frozen=True, kw_only=True, slots=True)
class Maps:
    """The result of round 0: maps like x, their sums per player, and f at both ends (float64 [N]).

    ``weights_NM`` ranks the players. ``effects_NM`` is what the method predicts that f loses with each of them; None
    where the weights say so themselves (gradients alone do not: they are sensitivities).
    """

    attribution: Tensor
    weights_NM: np.ndarray
    fx_N: np.ndarray
    baseline_N: np.ndarray
    effects_NM: np.ndarray | None = None
    values: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def made_N(self) -> np.ndarray:
        """Return which samples have a map, bool [N]: a control may fail for some."""
        return np.isfinite(self.weights_NM).all(axis=1) & np.isfinite(self.fx_N + self.baseline_N)

    @property
    def predicted_NM(self) -> np.ndarray:
        """Return the effects, or the weights where they are the effects."""
        return self.weights_NM if self.effects_NM is None else self.effects_NM


class AttributionExplainer(Explainer):
    """Base of the methods that share f(x) - f(baseline) out among pixels, cells or features.

    Subclasses write ``first_round``, ``attribute`` and ``collect``.
    """

    Options = AttributionOptions
    options: AttributionOptions
    primary = ("deletion_auc", "insertion_auc")
    many_passes = True
    takes_prior: ClassVar[bool] = False  # whether several draws of the prior may stand for what is absent
    weighs = "cells"  # what the method itself gives weights to; recorded in meta

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        self.x = request.inputs["x"]
        self.range_warnings = check_range(self.x, subject.value_range)
        self.draws = self._prior_draws()
        self.baseline = make_baseline(self.x, self._one_baseline(), subject.value_range)
        check_range(self.baseline, subject.value_range)
        self.segments = self._segments()
        self.players = int(self.segments.max()) + 1
        self.inpainting = self._inpainting()

    @property
    def per_sample(self) -> bool:
        """Whether every sample has regions of its own, ``segments`` [N, H, W]."""
        return self.options.regions != "grid" and self.x.ndim == 4 and self.segments.shape == self.x[:, 0].shape

    @property
    def samples_apart(self) -> bool:
        """Whether samples are explained apart: all are, unless their mean stands for what is absent."""
        return self.options.baseline != "mean"

    def first(self, count: int) -> AttributionExplainer:
        """Return this explainer for its first ``count`` samples alone, whose regions are there already."""
        part = copy.copy(self)
        part.request = first_rows(self.request, type(self), count)
        part.x, part.baseline = self.x[:count], self.baseline[:count]
        part.segments = self.segments[:count] if self.per_sample else self.segments
        part.range_warnings = check_range(part.x, self.subject.value_range)
        return part

    def is_control(self, chunk: Chunk) -> bool:
        """Whether a chunk of round 0 makes one of the control maps."""
        return chunk.part >= TWIN

    def segments_of(self, row: int) -> Tensor:
        """Return which player each element of sample ``row`` belongs to."""
        return self.segments[row] if self.per_sample else self.segments

    def sums(self, maps: Tensor, first: int = 0) -> np.ndarray:
        """Sum maps of the samples from ``first`` on over their players: float64 [n, M]."""
        if not self.per_sample:
            return cell_sums(maps, self.segments)
        rows = (cell_sums(maps[row : row + 1], self.segments[first + row]) for row in range(len(maps)))
        return np.concatenate(list(rows))

    def spread(self, weights_NM: np.ndarray) -> Tensor:
        """Share each player's weight evenly over its elements: maps like x with the same sums."""
        if not self.per_sample:
            return spread(weights_NM, self.segments, self.x)
        rows = range(len(self.x))
        return torch.cat([spread(weights_NM[r : r + 1], self.segments[r], self.x[r : r + 1]) for r in rows])

    @abstractmethod
    def first_round(self) -> list[Chunk]:
        """Return the chunks that compute the maps."""

    @abstractmethod
    def attribute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return the arrays of one chunk of round 0."""

    @abstractmethod
    def collect(self, partial: Partial) -> Maps:
        """Return the maps of a folded round 0."""

    def refuse(self, chunk: Chunk, data: dict[str, Any]) -> None:
        """Raise where a chunk's maps cannot be an answer; not asked of controls."""

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Check the callable and list round 0 with its controls, then one scoring chunk a sample, then nothing."""
        if previous is None:
            for words in self.range_warnings:
                warnings.warn(words, stacklevel=2)
            check_callable(self.subject, self.x, self.baseline[:1], gradient=self.needs_gradient)
            own = self.first_round()
            chunks = [replace(chunk, part=chunk.part + (k + 1) * TWIN) for k in range(self._twins()) for chunk in own]
            return own + [replace(chunk, index=len(own) + place) for place, chunk in enumerate(chunks)]
        if previous.round > 0:
            return []
        maps, other = self.maps_of(previous), self.maps_of(previous, self.options.shakes)
        return [
            Chunk(
                round=1,
                index=row,
                explanation=row,
                part=SCORING,
                work={
                    "weights": maps.weights_NM[row],
                    "effects": maps.predicted_NM[row],
                    "other": None if other is None or not other.made_N[row] else other.weights_NM[row],
                },
            )
            for row in range(len(self.x))
        ]

    def maps_of(self, partial: Partial, twin: int = -1) -> Maps | None:
        """Return the maps that a folded round 0 holds: those asked for (-1), or the ``twin``-th control's.

        NaN for the samples for which that control failed; None where it was not asked for.
        """
        low = (twin + 1) * TWIN
        items = [item for item in partial.items if item[0] == 0 and low <= item[2] < low + TWIN]
        if not items:
            return None
        items = [(number, explanation, part - low, data) for number, explanation, part, data in items]
        return self.twin(twin).collect(replace(partial, items=tuple(items)))

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Run an attribution chunk or a control's (round 0), or a scoring chunk (round 1).

        What is not finite in a control is NaN: samples for which it is lack that control.
        """
        if chunk.round > 0:
            return faithfulness.measure(self, chunk, meter)
        twin, part = chunk.part // TWIN - 1, chunk.part % TWIN
        if twin < 0:
            data = self.attribute(chunk, meter)
            self.refuse(chunk, data)
            return data
        is_other = twin == self.options.shakes
        meter.tolerant = True
        with shuffled_weights(self.subject.module, seed=self.request.seed) if is_other else nullcontext():
            return self.twin(twin).attribute(replace(chunk, part=part), meter)

    def evaluate(self, row: int, present_nM: np.ndarray, meter: Meter) -> np.ndarray:
        """Return f of sample ``row`` with the given players present, float64 [n]."""
        x, baseline, segments = self.x[row], self.baseline[row], self.segments_of(row)
        if self.draws is not None:
            return self._expect(x, present_nM, segments, meter)
        best_n = None if self.inpainting is None else self.inpainting.best(x, present_nM, segments)

        def build(part: slice) -> Tensor:
            absent = baseline if best_n is None else self.inpainting.bank[best_n[part]].to(x.dtype)
            return compose(x, absent, present_nM[part], segments)

        return meter.evaluate(self.subject.fn, len(present_nM), build)

    def finish(self, partial: Partial) -> Explanation:
        """Assemble maps, curves and scores."""
        maps = self.maps_of(partial)
        moved = [self.maps_of(partial, twin) for twin in range(self.options.shakes)]
        found = [data for _, _, data in partial.of_round(1)]
        points = self.options.curve_points
        curves, measured, words = faithfulness.scores_of(maps, moved, found, request=self.request, points=points)
        words += self._lacking(partial, moved)
        weights = {"attribution": maps.attribution, "segment_weights": torch.from_numpy(maps.weights_NM)}
        explained = self.explanation(
            partial,
            values={**weights, **maps.values, **curves},
            inputs={
                **self.request.inputs,
                "baseline": self.baseline,
                "segments": self.segments,
                **({} if self.draws is None else {"prior_draws": self.draws}),
            },
            scores={**measured, **maps.scores},
            meta={
                "warnings": [*self.range_warnings, *maps.meta.get("warnings", []), *words],
                "players": self.players,
                "baseline": str(self.options.baseline) if self.draws is None else "prior",
                "fill": self.options.fill,
                "weighs": self.weighs if are_images(self.x) else "features",
                **{key: value for key, value in maps.meta.items() if key != "warnings"},
            },
        )
        if self.inpainting is not None:  # not among the rows: how many processes drew it is the cluster's affair
            explained.meta["cost"]["images_drawn_by_each_process"] = self.options.bank
        return explained

    def _lacking(self, partial: Partial, moved: list[Maps]) -> list[str]:
        """Say for how many samples a control failed."""
        shuffled = self.maps_of(partial, self.options.shakes)
        both = {"a network with shuffled weights": [shuffled] if shuffled else [], "moved inputs": moved}
        made = {what: np.all([one.made_N for one in maps], axis=0) for what, maps in both.items() if maps}
        return [
            f"{what}: no finite map for {(~made_N).sum()} of {len(made_N)} samples, which have no such control"
            for what, made_N in made.items()
            if not made_N.all()
        ]

    def _prior_draws(self) -> Tensor | None:
        """Return the draws [R, D] that stand for what is absent of a latent; None where one baseline does."""
        asked, can = self.options.baseline, self.takes_prior and self.subject.domain == "z" and self.x.ndim == 2
        if asked == "prior" and not can:
            rule = f"be another one than prior for {self.name} of {self.subject.name}"
            raise ExplainOptionError("baseline", rule, asked, "prior is for the latent of integrals and fair shares")
        if not can or asked not in ("auto", "prior"):
            return None
        rng = np.random.default_rng(np.random.SeedSequence(self.request.seed, spawn_key=(0, SCORING + 4)))
        return torch.from_numpy(rng.standard_normal((PRIOR_DRAWS, *self.x.shape[1:]))).to(self.x.dtype)

    def _inpainting(self) -> Inpainting | None:
        if self.options.fill == "baseline":
            return None
        rng = np.random.default_rng(np.random.SeedSequence(self.request.seed, spawn_key=(0, SCORING + 5)))
        return Inpainting(draw_later(self.subject, self.options.bank, tuple(self.x.shape[1:]), rng))

    def _one_baseline(self) -> str | float:
        return "zero" if self.draws is not None else self.options.baseline

    def _expect(self, x: Tensor, present_nM: np.ndarray, segments: Tensor, meter: Meter) -> np.ndarray:
        """Return the mean of f over the draws, float64 [n]."""
        many = len(self.draws)

        def build(part: slice) -> Tensor:
            row = np.arange(part.start, part.stop)
            return compose(x, self.draws[row % many], present_nM[row // many], segments)

        f = meter.evaluate(self.subject.fn, len(present_nM) * many, build)
        return f.reshape(len(present_nM), many).mean(axis=1)

    def _segments(self) -> Tensor:
        shape, regions = tuple(self.x.shape[1:]), self.options.regions
        grid = grid_segments(shape, self.options.cells)
        if regions == "auto":
            regions = "slic" if len(shape) == 3 and min(shape[1:]) >= SLIC_FROM else "grid"
        if regions == "grid":
            return grid
        if grid.ndim != 2:
            raise ExplainOptionError("regions", "be grid or auto where samples are no images", regions, "leave it out")
        bounds = [self.subject.value_range or (float(x.min()), float(x.max()) + 1e-12) for x in self.x]  # its own
        count = int(grid.max()) + 1
        return torch.stack([slic_segments(x, count, value_range=b) for x, b in zip(self.x, bounds, strict=True)])

    def _twins(self) -> int:
        """Return how many maps are made as controls: of moved inputs, then of the shuffled network."""
        return self.options.shakes + (self.options.shuffled_network and has_weights(self.subject.module))

    def twin(self, number: int) -> AttributionExplainer:
        """Return this explainer over inputs moved a little (within the range), or itself."""
        if not 0 <= number < self.options.shakes:
            return self
        rng = np.random.default_rng(np.random.SeedSequence(self.request.seed, spawn_key=(number, SCORING + 3)))
        bounds, twin = self.subject.value_range, copy.copy(self)
        step = torch.from_numpy(rng.uniform(-SHAKE, SHAKE, self.x.shape)) * width_of(self.x, bounds)
        moved = self.x + step.to(self.x.dtype)
        twin.x = moved.clamp(*bounds) if bounds else moved
        twin.baseline = make_baseline(twin.x, self._one_baseline(), bounds)
        return twin
