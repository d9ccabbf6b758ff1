"""Being asked to stop: SIGINT and SIGTERM become a flag file that every worker sees, and a checkpoint."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ganscale.errors import Interrupted

SCRATCH = ".ray"  # below the run directory, while it trains: Ray Train's state and the flags
STOP_FLAG, STARTED_FLAG, ROLL = "stop", "started", "roll.json"


class Stop:
    """Turns the first signal into the flag file below ``run_dir``, the second into giving up at once."""

    def __init__(self, run_dir: Path, words: Callable[[], str]) -> None:
        self.flag, self.asked, self._words = run_dir / SCRATCH / STOP_FLAG, 0, words
        self._guards: list[Callable[[], None]] = []

    def guard(self, check: Callable[[], None]) -> None:
        """Let ``check`` raise wherever somebody asks whether to stop."""
        self._guards.append(check)

    def listen(self) -> None:
        """Take over both signals; signals reach the main thread only, so elsewhere nothing is done."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._on_signal)

    def begin(self) -> None:
        """Raise the flag, now that its folder is there, where a signal has come before."""
        if self.asked:
            self.flag.touch()

    def is_wanted(self) -> bool:
        """Whether training should stop; raises what a guard raises."""
        for check in self._guards:
            check()
        return self.flag.exists()

    def check(self) -> None:
        """Raise Interrupted where the user has insisted, or what a guard raises."""
        for check in self._guards:
            check()
        if self.asked > 1:
            raise Interrupted(self._words())

    def _on_signal(self, number: int, frame: Any) -> None:
        self.asked += 1
        if self.flag.parent.is_dir():
            self.flag.touch()
        if self.asked > 2:
            raise KeyboardInterrupt


@contextlib.contextmanager
def stop_signals(run_dir: Path, words: Callable[[], str]) -> Iterator[Stop]:
    """Listen for signals in the block; ``words`` says what was saved, for who insists."""
    stop = Stop(run_dir, words)
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    stop.listen()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            if handler is not None:  # else it was not installed from Python, and cannot be put back
                signal.signal(number, handler)
