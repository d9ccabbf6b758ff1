"""Chunks, partial results, and the fold that makes one process and a cluster agree to the byte.

An explanation is computed in rounds. ``explainer.plan(previous)`` lists a round's chunks (the list follows from the
request alone, never from the number of workers), ``explainer.run(chunk)`` computes one anywhere, ``explainer.merge``
folds the partials in chunk order whatever order they arrive in, and ``explainer.finish`` turns the last fold into the
result. ``anytime.drive`` is what calls them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """All that decides an explanation except the networks: small, picklable, the same in every worker.

    ``inputs`` are CPU tensors, ``options`` plain values with every default filled in (``make_request`` does it).
    """

    method: str
    inputs: dict[str, Tensor]
    seed: int
    options: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """The unit of seed, retry and merge.

    ``index`` is its place in the round's list. Randomness comes from (request seed, explanation, part) alone, where
    ``explanation`` is the sample or direction it serves. ``work`` holds small arrays and numbers for ``run``.
    """

    round: int
    index: int
    explanation: int
    part: int
    work: Mapping[str, Any] = field(default_factory=dict)

    def rng(self, seed: int) -> np.random.Generator:
        """Return this chunk's own generator, on the CPU, so that a GPU sees the same masks."""
        return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(self.explanation, self.part)))

    def rngs(self, seed: int, count: int) -> list[np.random.Generator]:
        """Return a generator for each of ``count`` samples from ``explanation`` on, whichever share the chunk."""
        return [replace(self, explanation=self.explanation + row).rng(seed) for row in range(count)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Partial:
    """What a chunk, or a fold of chunks, found: ``items`` in chunk order, and what it cost.

    Each item is (round, explanation, part, arrays). Items are statistics or small maps, never perturbed rows.
    """

    round: int
    items: tuple[tuple[int, int, int, dict[str, Any]], ...]
    rows_forward: int = 0
    rows_backward: int = 0
    seconds: float = 0.0  # of work, summed over chunks

    def of_round(self, number: int) -> list[tuple[int, int, dict[str, Any]]]:
        """Return (explanation, part, arrays) of the items of one round, in chunk order."""
        return [(explanation, part, data) for round_, explanation, part, data in self.items if round_ == number]


def merge(left: Partial, right: Partial) -> Partial:
    """Join two neighbours of a fold; ``left`` comes earlier in chunk order."""
    return Partial(
        round=max(left.round, right.round),
        items=left.items + right.items,
        rows_forward=left.rows_forward + right.rows_forward,
        rows_backward=left.rows_backward + right.rows_backward,
        seconds=left.seconds + right.seconds,
    )


def first_rows(request: Request, explainer: Any, count: int) -> Request:
    """Return ``request`` of its first ``count`` samples; what stands beside them stays whole."""
    beside = {name for each in explainer.beside for name in (each, f"{each}_labels")}
    inputs = {name: x if name in beside else x[:count].contiguous() for name, x in request.inputs.items()}
    return replace(request, inputs=inputs)
