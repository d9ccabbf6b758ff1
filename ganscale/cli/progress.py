"""What is shown while something takes long: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from ganscale.cli.output import note
from ganscale.progress import duration

QUIET_S = 10.0  # between two plain lines of what is counted
LOSSES = {"loss/critic": "critic", "loss/generator": "generator"}


def tick_line(line: Mapping[str, Any], *, total_kimg: float) -> str:
    """Say one line of ``metrics.jsonl`` in words: images seen, kimg/s, time left, losses."""
    speed = line["timing"].get("kimg_per_s")
    parts = [f"{min(line['kimg'], total_kimg):g} of {total_kimg:g} kimg"]  # the last batch may go a little beyond
    if speed:
        left_s = max(total_kimg - line["kimg"], 0) / speed
        parts += [f"{speed:.2f} kimg/s", f"{duration(left_s)} left"]
    parts += [f"{name} {line['scalars'][key]:.4g}" for key, name in LOSSES.items() if key in line["scalars"]]
    return ", ".join(parts)


class Progress:
    """A context that takes each line of ``metrics.jsonl`` (call it with the line) and shows it on stderr."""

    def __init__(self, total_kimg: float) -> None:
        self.total_kimg = total_kimg
        self._bar = None
        self._workers: int | None = None

    def __enter__(self) -> Progress:
        return self

    def begin(self) -> None:
        """Show the bar, on a terminal; until then other lines can be written without disturbing it."""
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (BarColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("starting", total=self.total_kimg)
            self._bar.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Show one tick."""
        words = tick_line(line, total_kimg=self.total_kimg)
        workers = line["timing"].get("workers")
        if self._workers not in (None, workers):
            note(f"workers: {workers} instead of {self._workers}")
        self._workers = workers
        if self._bar is None:
            note(words)
        else:
            self._bar.update(self._task, completed=line["kimg"], description=words)

    def say(self, event: Mapping[str, Any]) -> None:
        """Show one line of ``beside.jsonl``: what was found out beside training, or could not be."""
        if self._bar is None:
            note(event["words"])
        else:
            self._bar.console.print(event["words"], highlight=False, markup=False)


class Counting:
    """A context that is told how many samples (sweeps, chunks) are done of how many, and shows it on stderr."""

    def __init__(self) -> None:
        self._bar, self._task = None, None
        self._said = time.monotonic()
        self._first: tuple[int, int, str, float] | None = None  # done, total, what, when

    def __enter__(self) -> Counting:
        if sys.stderr.isatty():
            self._show(0, None, "starting")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int, what: str) -> None:
        """Show that ``done`` of ``total`` are finished."""
        now = time.monotonic()
        if self._first is None or self._first[1:3] != (total, what) or done <= self._first[0]:
            self._first = (done, total, what, now)  # what came before, imports and data among it, is no measure
        words = f"{done} of {total} {what}"
        if done > self._first[0]:
            left = (now - self._first[3]) * (total - done) / (done - self._first[0])
            words += f", about {duration(left)} left"
        if sys.stderr.isatty():
            self._show(done, total, words)
        elif done < total and now - self._said >= QUIET_S:
            self._said = now
            note(words)

    def _show(self, done: int, total: int | None, words: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (BarColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(words, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total, description=words)
