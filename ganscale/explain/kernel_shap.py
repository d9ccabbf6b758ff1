"""KernelSHAP, vectorised and mergeable (Lundberg and Lee 2017, arXiv:1705.07874, theorem 2).

Shapley values are the weights of a linear model of f over coalitions, fitted with the kernel's weights under the
constraint that they sum to f(x) - f(baseline). Where all coalitions fit into the budget they are enumerated, and the
result is exact. Otherwise the coalitions of one player and of all but one, which weigh most, are all evaluated (so the
fit is never singular), and the sizes between are drawn.

Legend: M players, n coalitions of a chunk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from ganscale.explain.coalitions import (
    Moments,
    all_coalitions,
    border_coalitions,
    draw_coalitions,
    kernel_weights,
)
from ganscale.explain.plan import Chunk
from ganscale.explain.surrogate import SurrogateExplainer, SurrogateOptions, drawn_size, split


class KernelShapOptions(SurrogateOptions):
    """How coalitions are drawn."""

    paired: bool = Field(True, description="each sampled coalition comes with its complement")


class KernelShap(SurrogateExplainer):
    """Fair shares of f(x) - f(baseline) among cells or features."""

    name = "kernel-shap"
    summary = "fair shares of regions, by a weighted fit over coalitions; exact where they can all be tried"
    Options = KernelShapOptions
    options: KernelShapOptions
    least_rows = 4

    @property
    def enumerates(self) -> bool:
        """Whether all 2^M - 2 coalitions fit into the budget."""
        return self.players < 31 and 2**self.players - 2 <= self.options.num_coalitions

    def blocks(self) -> list[tuple[str, int, int]]:
        """Return all coalitions, or the border ones and then the drawn ones in even blocks (pairs stay together)."""
        if self.enumerates:
            return split("all", 2**self.players - 2, first=True)
        drawn = self.options.num_coalitions - 2 * self.players
        return split("border", 2 * self.players, first=True) + split("drawn", drawn, drawn_size(drawn), first=False)

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

    def weighed(self, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the parts with the kernel's mass between the borders shared by those rows that were drawn."""
        drawn, planned = sum(data["drawn"] for data in parts), self.options.num_coalitions - 2 * self.players
        if self.enumerates or drawn == planned:
            return parts
        growth = planned / drawn
        return [data | {"moments": data["moments"] * growth} if data["drawn"] else data for data in parts]

    def fit(self, moments: Moments, empty: float, full: float) -> tuple[np.ndarray, float]:
        """Return the weights that sum to f(x) - f(baseline), over the intercept f(baseline)."""
        return moments.solve(empty, full), empty
