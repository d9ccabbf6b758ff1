"""What the trainer hands out while it trains: plain records, and the one-method ``Sink`` that takes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ganscale.config import RunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Binned values: ``counts[i]`` of them lie in ``[edges[i], edges[i + 1])``."""

    edges: np.ndarray  # [bins + 1]
    counts: np.ndarray  # [bins]


@dataclass(frozen=True, kw_only=True, slots=True)
class StartRecord:
    """Training begins or goes on at ``images``; ``facts`` are the header lines (device, workers, kernels, data)."""

    images: int
    config: RunConfig
    facts: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class TickRecord:
    """Means over the images since the last tick, over all ranks; ``partial`` where the run ended between two ticks."""

    images: int
    scalars: dict[str, float]
    histograms: dict[str, Histogram]
    timing: dict[str, float]  # kimg_per_s, tick_s, elapsed_s, checkpoint_stall_s, workers
    checkpoint: str | None  # name of the newest one that is wholly on the disk; None on all ranks but 0
    partial: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRecord:
    """A grid of EMA samples from fixed latents, already written to ``path``; rank 0 only."""

    images: int
    path: Path
    grid: np.ndarray  # uint8 [H, W] or [H, W, 3]


Record = StartRecord | TickRecord | SampleRecord


class Sink(Protocol):
    """Takes what the trainer measured. It is called on every rank, so that a sink may also be a meeting point."""

    def write(self, record: Record) -> None:
        """Take one record; must not change it."""


class NullSink:
    """Takes everything, keeps nothing."""

    def write(self, record: Record) -> None:
        """Drop the record."""
