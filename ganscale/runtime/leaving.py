"""A worker that is asked to end by SIGTERM, as where its machine is taken back: it saves with the others, then goes.

Ray's own answer to the signal ends the process at once, and the way back to the last checkpoint is lost. Here the
signal becomes a wish that the pulse of training carries to all ranks. A second one ends the process.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

_asked = threading.Event()


class WorkerLeaves(Exception):
    """Raised by every rank after all have saved, so that Ray starts the group again without the one that must go."""


def listen() -> None:
    """Take SIGTERM over in this process; only its main thread can."""
    _asked.clear()
    signal.signal(signal.SIGTERM, _on_signal)


def is_asked() -> bool:
    """Whether this process has been asked to end."""
    return _asked.is_set()


def _on_signal(number: int, frame: Any) -> None:
    if _asked.is_set():
        os._exit(1)
    _asked.set()
