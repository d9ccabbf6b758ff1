"""A worker that must go, because it got SIGTERM or its node is taken away: it saves with the others, then goes.

Ray's own answer to the signal ends the process at once, and the way back to the last checkpoint is lost; and of a node
that drains, as ``ray start --block`` makes its own on SIGTERM, Ray Train tells its workers only by a process more. Here
both become a wish that the pulse of training carries to all ranks. A second signal ends the process.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

log = logging.getLogger(__name__)
STAYS, ASKED, DRAINS = 0, 1, 2
_WHY = {ASKED: "was asked to end by SIGTERM", DRAINS: "must leave a node that is taken away"}
_asked, _drains = threading.Event(), threading.Event()


class WorkerLeaves(Exception):
    """Raised by every rank after all have saved, so that Ray starts the group again without the one that must go."""


def listen() -> None:
    """Take SIGTERM over in this process; only its main thread can."""
    _asked.clear()
    _drains.clear()
    signal.signal(signal.SIGTERM, _on_signal)


def wish() -> int:
    """Return whether this process STAYS, was ASKED to end, or lives on a node that DRAINS."""
    return ASKED if _asked.is_set() else DRAINS if _drains.is_set() else STAYS


def look_at(node: str) -> None:
    """Ask Ray whether ``node``, where this process lives, is about to go. For a thread that may wait for the head."""
    try:
        gone = draining_nodes()
    except Exception as error:  # the head of the cluster is away for a moment
        log.warning("the head does not say which nodes are to go: %s", error)
        return
    if node in gone:
        _drains.set()


def draining_nodes() -> set[str]:
    """Return the ids of nodes that take nothing new and will end."""
    import ray

    return set(ray._private.state.state.get_draining_nodes())  # what Ray Train's own watcher asks


def who_leaves(wishes: Sequence[float]) -> str:
    """Say in one line which workers must go, and why; ``wishes`` are those of all ranks."""
    found = {kind: [str(rank) for rank, wish in enumerate(wishes) if wish == kind] for kind in _WHY}
    return " and ".join(f"worker {', '.join(ranks)} {_WHY[kind]}" for kind, ranks in found.items() if ranks)


def _on_signal(number: int, frame: Any) -> None:
    if _asked.is_set():
        os._exit(1)
    _asked.set()
