"""Follows ``metrics.jsonl`` of a run from the process that started it: progress without a channel of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

POLL_S = 0.2

OnTick = Callable[[Mapping[str, Any]], None]


class Follower:
    """A context in which each new line of ``path`` is handed to ``on_tick`` once, from a thread of its own.

    Lines up to ``after_images`` are old. A tick that a restarted group goes over again is not handed out twice. Where
    ``on_tick`` raises, following ends and ``error`` holds what it raised.
    """

    def __init__(self, path: Path, on_tick: OnTick | None, *, after_images: int = -1) -> None:
        self._path, self._on_tick, self._seen = path, on_tick, after_images
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follow-metrics", daemon=True)
        self.error: BaseException | None = None

    def __enter__(self) -> Follower:
        if self._on_tick is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._on_tick is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._done.wait(POLL_S):
                self._read()
            self._read()  # what came with the end
        except BaseException as error:
            self.error = error

    def _read(self) -> None:
        # the whole file each time: a resumed trainer replaces it, and thousands of ticks are still below a megabyte
        if not self._path.is_file():
            return
        for number, text in enumerate(self._path.read_text().splitlines()):
            try:
                line = json.loads(text)
            except ValueError:  # a line that is being written; it comes whole the next time
                continue
            place = self._place(number, line)
            if place > self._seen:
                self._seen = place
                self._on_tick(line)

    def _place(self, number: int, line: Mapping[str, Any]) -> int:
        """Return what orders lines: a tick that is redone comes to the place of the first one."""
        return line["images"]


class LineFollower(Follower):
    """The same for a file that only grows: each line that it did not have at first."""

    def __init__(self, path: Path, on_line: OnTick | None) -> None:
        lines = len(path.read_text().splitlines()) if path.is_file() else 0
        super().__init__(path, on_line, after_images=lines - 1)

    def _place(self, number: int, line: Mapping[str, Any]) -> int:
        return number
