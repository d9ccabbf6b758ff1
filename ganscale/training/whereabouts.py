"""What this rank is doing, for whoever asks from another thread: one small tuple that training replaces as it goes.

All ranks pass the same marks in the same order, so of ranks that wait for each other the one that hangs has passed the
fewest. Where that does not tell, the stack of the training thread does.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

_PACKAGE = str(Path(__file__).parents[1])
_WAITING = ("ganscale/training/process_group.py", "ganscale/training/exchange.py", "/torch/distributed/")


class Mark(NamedTuple):
    """The ``count``-th thing that a rank does, in words, and the images that training had seen then."""

    count: int
    doing: str
    images: int


class Whereabouts:
    """Written by the thread that trains, read by any other; a mark costs the time of a tuple."""

    def __init__(self) -> None:
        self.mark = Mark(0, "start", 0)
        self.begun_at: int | None = None  # images from which this process trains
        self.trained_since: float | None = None  # wall clock of its first step
        self.news = threading.Event()  # set where a reader should look at once
        self._thread = threading.get_ident()

    def enter(self, doing: str, images: int) -> None:
        """Say what comes next; the same on every rank."""
        self.mark = Mark(self.mark.count + 1, doing, images)

    def begin(self, images: int) -> None:
        """Say that training goes on from ``images``, in this thread."""
        self.begun_at, self._thread = images, threading.get_ident()
        self.enter("start", images)
        self.news.set()

    def has_stepped(self) -> None:
        """Remember when the first step was done."""
        if self.trained_since is None:
            self.trained_since = time.time()
            self.news.set()

    def look(self) -> tuple[str, bool]:
        """Return the innermost line of this package that the thread is in, and whether it waits for other ranks."""
        frame, place, waits = sys._current_frames().get(self._thread), "", False
        while frame is not None:
            code = frame.f_code
            waits = waits or any(part in code.co_filename for part in _WAITING)
            if not place and code.co_filename.startswith(_PACKAGE):
                place = f"{code.co_filename.removeprefix(_PACKAGE)[1:]}:{frame.f_lineno} {code.co_name}"
            frame = frame.f_back
        return place, waits
