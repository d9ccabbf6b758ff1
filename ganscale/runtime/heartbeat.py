"""Signs of life: each rank says about once a second what it is doing, in Ray's own key-value store.

So they reach the driver from every machine, and neither a rank that hangs nor the store of the process group, which
lives in rank 0, is in between. Nothing is sent by the thread that trains.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

_NAMESPACE = b"ganscale"
LONGEST_EVERY_S, SHARE = 1.0, 8  # beats a time-out, so that one that is lost or late tells nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """What a rank said last. ``attempt`` is the start of the group that it belongs to."""

    attempt: str
    rank: int
    size: int
    pid: int
    started: str  # of the process, as in ``run_lock.Holder``
    machine: str
    host: str
    node: str  # Ray's id
    beats: int
    marks: int
    doing: str
    images: int
    place: str  # in the code
    waits: bool  # for other ranks
    begun_at: int | None
    trained_since: float | None
    left: bool = False


def every_s(timeout_s: float) -> float:
    """Return the seconds between two beats where ranks count as hung after ``timeout_s``."""
    return min(LONGEST_EVERY_S, timeout_s / SHARE)


class Board:
    """The entries of one launch in Ray's store; ``name`` is the launch's own. Needs a connection to Ray."""

    def __init__(self, name: str) -> None:
        self._prefix = f"{name}/"

    def put(self, key: str, value: Any) -> None:
        """Write one entry, which JSON can hold."""
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(self._prefix + key, json.dumps(value), overwrite=True, namespace=_NAMESPACE)

    def get(self, key: str) -> Any:
        """Return one entry, or None."""
        from ray.experimental.internal_kv import _internal_kv_get

        found = _internal_kv_get(self._prefix + key, namespace=_NAMESPACE)
        return None if found is None else json.loads(found)

    def beats(self) -> list[Beat]:
        """Return the last word of every rank that has said one, of this group or an earlier one."""
        from ray.experimental.internal_kv import _internal_kv_list

        keys = [key.decode() for key in _internal_kv_list(f"{self._prefix}rank/", namespace=_NAMESPACE)]
        found = [self.get(key.removeprefix(self._prefix)) for key in keys]
        return [Beat(**entry) for entry in found if entry is not None]

    def clear(self) -> None:
        """Delete all entries of this launch."""
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(self._prefix, del_by_prefix=True, namespace=_NAMESPACE)


@contextlib.contextmanager
def beating(
    board: Board,
    whereabouts: Any,
    facts: dict[str, Any],
    pause_s: float,
    *,
    also: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Put a beat on ``board`` every ``pause_s`` while the block runs; ``facts`` are the fields that stay.

    ``also`` is called after each beat: what else is to be asked of the head by another thread than the one that trains.
    """
    done = threading.Event()

    def say(number: int, *, left: bool = False) -> None:
        mark, (place, waits) = whereabouts.mark, whereabouts.look()
        beat = Beat(
            **facts,
            beats=number,
            marks=mark.count,
            doing=mark.doing,
            images=mark.images,
            place=place,
            waits=waits,
            begun_at=whereabouts.begun_at,
            trained_since=whereabouts.trained_since,
            left=left,
        )
        try:
            board.put(f"rank/{beat.rank}", dataclasses.asdict(beat))
            also()
        except Exception as error:  # the head of the cluster is away for a moment: training does not depend on it
            log.warning("no sign of life could be given: %s", error)

    def run() -> None:
        number = 0
        while not done.is_set():
            number += 1
            say(number)
            whereabouts.news.wait(pause_s)
            whereabouts.news.clear()
        say(number + 1, left=True)

    thread = threading.Thread(target=run, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        whereabouts.news.set()
        thread.join(LONGEST_EVERY_S)
