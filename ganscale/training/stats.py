"""Statistics of what happens in a step, reported where the values are born and read once a tick.

Sums stay on the device as one float64 row a name, so reporting never waits for it; a tick costs one all-reduce.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ganscale.training.process_group import Group
from ganscale.training.records import Histogram

# Logits have no natural scale (a Wasserstein critic's may be hundreds), so bins are even in asinh(logit).
_BINS = 80
_EDGES = torch.sinh(torch.linspace(-math.asinh(1e4), math.asinh(1e4), _BINS + 1, dtype=torch.float64))


class Stats:
    """Accumulates (count, sum) a name and, for some names, a histogram. The state is a dict of tensors."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._sums: dict[str, Tensor] = {}  # name -> float64 [2]: count, sum
        self._counts: dict[str, Tensor] = {}  # name -> float64 [bins]
        self._inner_edges = _EDGES[1:-1].to(group.device, torch.float32)

    def report(self, name: str, values_N: Tensor, *, histogram: bool = False) -> None:
        """Add this rank's values of any shape; the tick prints their mean over all ranks."""
        self.add(name, *self.summary(values_N, histogram=histogram))

    def summary(self, values_N: Tensor, *, histogram: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return what ``add`` takes of ``values_N``: count and sum [2], and bins or None. Never waits for a device."""
        values = values_N.detach().flatten()
        row = torch.stack([torch.full_like(values[:1].sum(), values.numel()), values.sum()]).double()
        if not histogram:
            return row, None
        bins = torch.bucketize(values.float(), self._inner_edges)
        ones = torch.ones_like(bins, dtype=torch.float64)  # whole numbers, so their sum has no order
        return row, torch.zeros(_BINS, dtype=torch.float64, device=bins.device).index_add_(0, bins, ones)

    def add(self, name: str, row: Tensor, counts: Tensor | None) -> None:
        """Add a summary; its tensors are only read."""
        self._add(self._sums, name, row)
        if counts is not None:
            self._add(self._counts, name, counts)

    def report_scalar(self, name: str, value: float) -> None:
        """Add one number that every rank knows alike."""
        self._add(self._sums, name, torch.tensor([1.0, value], dtype=torch.float64, device=self._group.device))

    def tick(self, rider: Tensor | None = None) -> tuple[dict[str, float], dict[str, Histogram]]:
        """Return the means and the histograms over all ranks, then start afresh.

        Names must be the same on all ranks, which they are because every rank runs the same phases. ``rider``, float64,
        rides along: it is summed over ranks in place by the same collective.
        """
        sum_names, count_names = sorted(self._sums), sorted(self._counts)
        empty = torch.empty(0, dtype=torch.float64, device=self._group.device)
        rider = empty if rider is None else rider
        parts = [rider.flatten(), *(self._sums[n] for n in sum_names), *(self._counts[n] for n in count_names)]
        flat = torch.cat(parts)
        self._group.sum_([flat])
        rode, sums, counts = flat.split([rider.numel(), 2 * len(sum_names), _BINS * len(count_names)])
        rider.copy_(rode.view_as(rider))
        rows, counts = sums.view(-1, 2).tolist(), counts.view(-1, _BINS).cpu().numpy()
        self._sums, self._counts = {}, {}
        means = {name: total / count for name, (count, total) in zip(sum_names, rows, strict=True)}
        edges = _EDGES.numpy()
        histograms = {
            n: Histogram(edges=edges, counts=c.astype(np.int64)) for n, c in zip(count_names, counts, strict=True)
        }
        return means, histograms

    def state(self) -> dict[str, Tensor]:
        """Return the running sums over all ranks as tensors for a checkpoint; nothing is reset."""
        named = {f"sums/{n}": t.clone() for n, t in sorted(self._sums.items())}
        named |= {f"counts/{n}": t.clone() for n, t in sorted(self._counts.items())}
        self._group.sum_(named.values())
        return named

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from ``state``; rank 0 takes the whole sum, as the other ranks' shares are already in it."""
        self._sums, self._counts = {}, {}
        share = 1.0 if self._group.is_main else 0.0
        for name, tensor in state.items():
            kind, _, key = name.partition("/")
            target = self._sums if kind == "sums" else self._counts
            target[key] = tensor.to(self._group.device) * share

    def _add(self, rows: dict[str, Tensor], name: str, row: Tensor) -> None:
        if name in rows:
            rows[name] += row
        else:
            rows[name] = row.clone()
