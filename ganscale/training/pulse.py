"""Asks all ranks at the same step, about once a second, whether any of them wants to stop.

A tick may take minutes and a machine that is taken away gives some tens of seconds. Asking at every step would cost a
collective a step; asking by the clock would have ranks ask at different steps and wait for each other for ever. So the
steps between two questions are agreed on with each answer, from the mean time they took.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ganscale.training.process_group import Group

EVERY_S = 1.0


class Pulse:
    """Counts steps; ``beat`` is called after each one, on every rank."""

    def __init__(self, group: Group, should_stop: Callable[[], bool], *, every_s: float = EVERY_S) -> None:
        self._group, self._should_stop, self._every_s = group, should_stop, every_s
        self._steps, self._next = 0, 1
        self._asked = time.perf_counter()

    def beat(self) -> bool:
        """Return whether any rank wants to stop; the same on every rank, and False on steps where nobody is asked."""
        self._steps += 1
        if self._steps < self._next:
            return False
        now = time.perf_counter()
        row = [float(self._should_stop()), now - self._asked]
        if self._group.size > 1:
            shared = torch.tensor(row, dtype=torch.float64, device=self._group.device)
            self._group.sum_([shared])
            row = shared.tolist()
        seconds = row[1] / self._group.size
        fitting = int(self._steps * self._every_s / max(seconds, 1e-9))
        self._next = max(1, min(fitting, 2 * self._steps))  # the first steps warm up and say little: grow by doubling
        self._steps, self._asked = 0, now
        return row[0] > 0
