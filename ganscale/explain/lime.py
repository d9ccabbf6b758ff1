"""LIME, vectorised and mergeable (Ribeiro et al. 2016, arXiv:1602.04938, section 3.4).

A linear model of f over random coalitions, each present with probability one half, weighted by how near the coalition
is to the whole sample: sqrt(exp(-d^2 / kernel_width^2)) of the cosine distance d = 1 - sqrt(share present), as the
authors' package does. The ridge of 1 is theirs too; 0 is ordinary least squares.

Legend: M players, n coalitions of a chunk.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ganscale.explain.coalitions import Moments
from ganscale.explain.plan import Chunk
from ganscale.explain.surrogate import SurrogateExplainer, SurrogateOptions, drawn_size, split


class LimeOptions(SurrogateOptions):
    """Of the linear model and its weights. Regions are superpixels from 64 pixels a side, a grid below."""

    kernel_width: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        0.25, description="width of the kernel that weighs coalitions, in cosine distance"
    )
    ridge: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        1.0, description="penalty on squared weights; 0: none"
    )
    regions: Literal["auto", "grid", "slic"] = Field(
        "auto", description="squares, or as many superpixels (slic); auto: slic from 64 pixels a side"
    )


class Lime(SurrogateExplainer):
    """What each region adds, in a linear model of f near the sample."""

    name = "lime"
    summary = "what regions add in a linear model near the sample, by a weighted fit over random coalitions"
    Options = LimeOptions
    options: LimeOptions

    def blocks(self) -> list[tuple[str, int, int]]:
        """Return the drawn coalitions in blocks."""
        total = self.options.num_coalitions
        return split("drawn", total, drawn_size(total), first=True)

    def coalitions(self, chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
        """Return coalitions of a chunk, bool [n, M], and their weights [n]; the very first is the whole sample."""
        _, start, stop = chunk.work["block"]
        present = chunk.rng(self.request.seed).random((stop - start, self.players)) < 0.5
        present[: 1 if start == 0 else 0] = True
        distance_n = 1 - np.sqrt(present.mean(axis=1))
        return present, np.exp(-0.5 * (distance_n / self.options.kernel_width) ** 2)

    def fit(self, moments: Moments, empty: float, full: float) -> tuple[np.ndarray, float]:
        """Return weights and intercept of the weighted ridge regression; the intercept is not penalised."""
        return moments.ridge(self.options.ridge)
