"""Watches the ranks of a launch from its driver: names who hangs and where, ends it, and says how a loss was overcome.

Ray sees a process that dies. It does not see one that stands still, nor a loop without end; all ranks then wait for
one. Here a group that has passed no mark for ``runtime.hang_timeout_s`` is judged (by ``find_hang``, which is pure),
the guilty process is killed by its pid, and Ray starts the group again as after any loss.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ganscale.runtime.damage import get_damage
from ganscale.runtime.heartbeat import LONGEST_EVERY_S, Beat, Board, every_s
from ganscale.runtime.run_lock import started_at, this_machine

log = logging.getLogger(__name__)

AT_START = 10  # times as long may it take until training begins: a large folder is read for the first time
RESTARTS = "restarts.jsonl"  # in the run directory: one line a time that the workers were started again


@dataclass(slots=True)
class Seen:
    """The last beat of a rank, and when by our own clock it last said anything and last did anything new."""

    beat: Beat
    heard_at: float
    moved_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Hang:
    """Who hangs: rank -> words; ``victims`` are the processes to end.

    ``where`` is what they were doing: a mistake would hang there again. None for processes that fell silent, as on a
    machine that stands still.
    """

    ranks: dict[int, str]
    where: str | None
    victims: tuple[Beat, ...]


def find_hang(seen: Mapping[int, Seen], now: float, timeout_s: float) -> Hang | None:
    """Judge one group: None while any rank moves, or once one has left, as Ray Train then ends the others.

    Guilty are, in this order: who never said a word; who has fallen silent (a process that is stopped, or holds the
    interpreter); who has passed fewer marks than others; who does not wait for others in the exchange; else all.
    """
    if not seen or any(one.beat.left for one in seen.values()):
        return None
    idle_s = now - max(one.moved_at for one in seen.values())
    has_begun = all(one.beat.begun_at is not None for one in seen.values())
    if idle_s < timeout_s * (1 if has_begun else AT_START):
        return None
    size = next(iter(seen.values())).beat.size
    missing = sorted(set(range(size)) - seen.keys())
    if missing:
        words = {rank: f"worker {rank} has not begun {idle_s:.0f} s after the others" for rank in missing}
        return Hang(ranks=words, where="start", victims=tuple(one.beat for one in seen.values()))
    silent = {rank for rank, one in seen.items() if now - one.heard_at > timeout_s / 2}
    fewest = min(one.beat.marks for one in seen.values())
    behind = {rank for rank, one in seen.items() if one.beat.marks == fewest}
    busy = {rank for rank, one in seen.items() if not one.beat.waits}
    # a sign that all ranks show tells nothing
    guilty = next((ranks for ranks in (silent, behind, busy) if 0 < len(ranks) < len(seen)), set(seen))
    beats = [seen[rank].beat for rank in sorted(guilty)]
    words = {beat.rank: _words(beat, idle_s, is_silent=beat.rank in silent) for beat in beats}
    return Hang(ranks=words, where=None if guilty <= silent else beats[0].doing, victims=tuple(beats))


def _words(beat: Beat, idle_s: float, *, is_silent: bool) -> str:
    way = "gave no sign of life" if is_silent else "made no progress"
    place = f" ({beat.place})" if beat.place else ""
    return (
        f"worker {beat.rank} (process {beat.pid} on {beat.host}) {way} for {idle_s:.0f} s "
        f"in {beat.doing}{place} at {beat.images} images"
    )


class Watch:
    """A context around ``fit`` in the driver; while it is open a thread watches."""

    def __init__(self, board: Board, run_dir: Path, *, hang_timeout_s: float) -> None:
        self._board, self._run_dir, self._timeout_s = board, run_dir, hang_timeout_s
        self._seen: dict[int, Seen] = {}  # of the present group
        self._over: set[str] = set()  # groups that are no more
        self._loss: dict[str, Any] | None = None  # the gate's note on the last loss, until training goes on
        self._losses = 0
        self._damaged: list[str] = []
        self.has_trained = False  # a worker of this launch has made a step
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(2 * LONGEST_EVERY_S)
        with contextlib.suppress(Exception):  # Ray may be gone, and the entries with it
            self._board.clear()

    def _run(self) -> None:
        while not self._done.wait(every_s(self._timeout_s)):
            try:
                self._look()
            except Exception as error:  # the head of the cluster is away for a moment, and Ray says so elsewhere
                log.debug("the workers could not be watched: %s", error)

    def _look(self) -> None:
        note, now = self._board.get("loss"), time.monotonic()
        if note is not None and note["number"] > self._losses:
            if self._loss is not None:  # a start that failed: what the loss before it cost is not told yet
                note |= {"images": max(note["images"], self._loss["images"]), "at": self._loss["at"]}
            self._losses, self._loss = note["number"], note
            self._over.update(note["attempts"])
            self._seen = {}
            if not note["ends"]:
                log.warning("%s; the workers start again", note["why"])
        beats = self._board.beats()
        self.has_trained = self.has_trained or any(beat.trained_since is not None for beat in beats)
        self._take([beat for beat in beats if beat.attempt not in self._over], now)
        self._tell_damage()
        if self._loss is not None:
            self._await_training()
        if hang := find_hang(self._seen, now, self._timeout_s):
            self._end(hang)

    def _take(self, beats: Sequence[Beat], now: float) -> None:
        known = {one.beat.attempt for one in self._seen.values()}
        if known and any(beat.attempt not in known for beat in beats):  # a new group, also after a change of size
            self._over |= known
            self._seen = {}
            beats = [beat for beat in beats if beat.attempt not in known]
        for beat in beats:
            before = self._seen.get(beat.rank)
            if before is None:
                self._seen[beat.rank] = Seen(beat, now, now)
                continue
            heard, moved = beat.beats != before.beat.beats, beat.marks != before.beat.marks
            heard_at, moved_at = now if heard else before.heard_at, now if moved else before.moved_at
            self._seen[beat.rank] = Seen(beat, heard_at, moved_at)

    def _tell_damage(self) -> None:
        """Say which checkpoints the newest start of the workers has passed over, whatever it started for."""
        damaged = get_damage(self._board)
        if damaged != self._damaged:
            self._damaged = damaged
            for words in damaged:
                log.warning("a damaged checkpoint was passed over: %s", words)

    def _await_training(self) -> None:
        """Write down how a loss was overcome, once training goes on."""
        steps = [one.beat.trained_since for one in self._seen.values() if one.beat.trained_since is not None]
        if steps:
            note, self._loss = self._loss, None
            begun_at = next(iter(self._seen.values())).beat.begun_at
            page = {
                "at": datetime.datetime.fromtimestamp(note["at"], datetime.UTC).isoformat(timespec="milliseconds"),
                "why": note["why"],
                "images_lost": max(0, note["images"] - begun_at),  # seen about a second before the loss, at most
                "went_on_from": begun_at,
                "damaged": self._damaged,
                "seconds": round(min(steps) - note["at"], 3),
            }
            with (self._run_dir / RESTARTS).open("a") as stream:
                stream.write(json.dumps(page) + "\n")
            log.warning("training goes on from %g kimg, %.1f s later", begun_at / 1000, page["seconds"])

    def _end(self, hang: Hang) -> None:
        """End the processes that hang; Ray notices, asks the gate, and starts the group again."""
        attempt = hang.victims[0].attempt
        self._over.add(attempt)
        self._seen = {}
        self._board.put("hang", {"attempt": attempt, "ranks": hang.ranks, "where": hang.where})
        for victim in hang.victims:
            end_process(victim)


def end_process(beat: Beat) -> Any:
    """Kill the process that ``beat`` came from, on whatever node; returns Ray's reference where it is not this one."""
    if beat.machine and beat.machine == this_machine():
        return _kill_here(beat.pid, beat.started)
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(beat.node, soft=False)
    kill = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_kill_here)
    return kill.remote(beat.pid, beat.started)


def _kill_here(pid: int, started: str) -> None:
    if started and started_at(pid) == started:  # else it has ended, and the number may be another one's by now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
