"""What an explanation on workers cost beyond its chunks: who worked when, what waited, and who had to be replaced."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from ganscale.explain import Partial

FINEST = 400  # pauses shorter than so small a part of the whole time are not told apart

Span = tuple[float, float]  # of work, in seconds since the job began


@dataclass(slots=True)
class Record:
    """The workers of one job. Its clock starts when it is made, before any worker is there."""

    began: float = field(default_factory=time.perf_counter)
    waited_s: float = 0.0
    chunks: int = 0
    spans: dict[str, list[Span]] = field(default_factory=dict)  # by process, in the order of their first chunk
    memory_mib: int = 0

    def add(self, partial: Partial, *, handed_over: float, process: str, memory_mib: int) -> None:
        """Count one chunk that comes back now and was handed over at ``handed_over``, both by ``time.perf_counter``.

        It was in work during the last ``partial.seconds``: only this process's clock is read, since those of other
        machines may differ.
        """
        now = time.perf_counter()
        self.waited_s += max(0.0, now - handed_over - partial.seconds)
        self.chunks += 1
        ended = now - self.began
        self.spans.setdefault(process, []).append((max(0.0, ended - partial.seconds), ended))
        self.memory_mib = max(self.memory_mib, memory_mib)

    def facts(self, workers: int) -> dict[str, Any]:
        """Return the entries of the cost record; nothing where there were no workers."""
        if not workers:
            return {}
        whole = max((end for spans in self.spans.values() for _, end in spans), default=0.0)
        timeline = {process: joined(spans, gap=whole / FINEST) for process, spans in self.spans.items()}
        return {
            "queue_wait_seconds": self.waited_s,
            "chunks_of_workers": self.chunks,
            "workers_replaced": max(0, len(self.spans) - workers),
            "timeline": timeline,
        }

    def peak(self, here_mib: int) -> int:
        """Return the most memory of any process that computed."""
        return self.memory_mib or here_mib


def joined(spans: list[Span], *, gap: float) -> list[list[float]]:
    """Return ``spans`` in order, those less than ``gap`` seconds apart as one, in milliseconds' precision."""
    found: list[list[float]] = []
    for begin, end in sorted(spans):
        if found and begin - found[-1][1] <= gap:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([begin, end])
    return [[round(begin, 3), round(end, 3)] for begin, end in found]
