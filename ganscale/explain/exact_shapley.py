"""Shapley values by their definition (Shapley 1953), over all 2^M coalitions: the truth for up to 12 players.

Legend: N samples, M players, n coalitions of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import factorial
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ganscale.explain.attribution import AttributionExplainer, AttributionOptions, Maps
from ganscale.explain.base import Meter
from ganscale.explain.coalitions import coalitions_in_binary
from ganscale.explain.errors import ExplainInputError
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.subject import Subject

MOST_PLAYERS = 12
ROWS_A_CHUNK = 512


class ExactShapleyOptions(AttributionOptions):
    """Three cells a side by default: 9 players, 512 evaluations a sample."""

    cells: Annotated[int, Field(ge=2, le=64)] = Field(3, description="cells a side of an image")


class ExactShapley(AttributionExplainer):
    """Fair shares by brute force."""

    name = "exact-shapley"
    summary = "fair shares of up to 12 regions or features, by trying every coalition"
    Options = ExactShapleyOptions
    options: ExactShapleyOptions
    takes_prior = True

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        if self.players > MOST_PLAYERS:
            raise ExplainInputError(
                "inputs",
                f"have at most {MOST_PLAYERS} cells or features for exact-shapley",
                self.players,
                "use fewer cells, or kernel-shap",
            )

    def first_round(self) -> list[Chunk]:
        """Return for every sample its coalitions in blocks."""
        return chunks_of_coalitions(range(len(self.x)), self.players, ROWS_A_CHUNK)

    def attribute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return the chunk's contribution to every player's value, and the ends where the chunk holds them."""
        present = coalitions_in_binary(self.players, *chunk.work["coalitions"])
        y_n = self.evaluate(chunk.explanation, present, meter)
        share_nM = shares_of_coalitions(present)
        return {"sum": share_nM.T @ y_n, "first": y_n[0], "last": y_n[-1]}

    def collect(self, partial: Partial) -> Maps:
        """Add up the contributions of each sample's chunks."""
        weights_NM = np.zeros((len(self.x), self.players))
        fx_N, baseline_N = np.zeros(len(self.x)), np.zeros(len(self.x))
        for row, part, data in partial.of_round(0):
            weights_NM[row] += data["sum"]
            fx_N[row] = data["last"]  # chunks come in order: the last row of the last one is the full coalition
            baseline_N[row] = data["first"] if part == 0 else baseline_N[row]
        return Maps(
            attribution=self.spread(weights_NM),
            weights_NM=weights_NM,
            fx_N=fx_N,
            baseline_N=baseline_N,
            meta={"coalitions": 2**self.players},
        )


def chunks_of_coalitions(explanations: Iterable[int], players: int, at_once: int) -> list[Chunk]:
    """Return each explanation's 2^players coalitions in blocks: ``work["coalitions"]`` is (first, behind the last)."""
    total = 2**players
    places = [(each, *block) for each in explanations for block in enumerate(range(0, total, at_once))]
    return [
        Chunk(
            round=0,
            index=index,
            explanation=explanation,
            part=part,
            work={"coalitions": (start, min(start + at_once, total))},
        )
        for index, (explanation, part, start) in enumerate(places)
    ]


def shares_of_coalitions(present_nM: np.ndarray) -> np.ndarray:
    """Return the weight [n, M] with which each coalition's value counts in each player's share, float64.

    A coalition of size s counts with (s-1)!(M-s)!/M! for its members and with -s!(M-s-1)!/M! for the others.
    """
    players = present_nM.shape[1]
    member = [0.0, *(factorial(s - 1) * factorial(players - s) / factorial(players) for s in range(1, players + 1))]
    other = [*(factorial(s) * factorial(players - s - 1) / factorial(players) for s in range(players)), 0.0]
    size_n = present_nM.sum(axis=1)
    return np.where(present_nM, np.array(member)[size_n, None], -np.array(other)[size_n, None])
