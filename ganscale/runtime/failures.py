"""Which failures of workers end a run, and in whose words. Pure: judged from the exceptions alone, tested as a table.

A mistake that would repeat itself is never retried; a lost process or node is; the unknown gets one more chance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ganscale.errors import GanscaleError, RunFailed
from ganscale.files import full_disk, is_full_disk


class RankHung(Exception):
    """A worker that stood still until it was ended: in words, and ``where``, by which two such failures compare.

    Without a ``where`` it had fallen silent, which is judged as a loss.
    """

    def __init__(self, words: str, where: str | None) -> None:
        super().__init__(words, where)
        self.where = where

    def __str__(self) -> str:
        return self.args[0]


MAX_FAILURES_IN_A_ROW = 5  # without a new checkpoint between them

# compared by name, so that neither Ray nor torch is needed to judge; names of the classes and of their bases count
_OUT_OF_MEMORY = {"MemoryError", "OutOfMemoryError"}
_LOST = {
    "WorkerHealthCheckFailedError",
    "WorkerHealthCheckTimeoutError",
    "WorkerGroupStartupTimeoutError",
    "RayActorError",
    "NodeDiedError",
    "WorkerCrashedError",
    "RaySystemError",
    "DistNetworkError",
    "DistStoreError",
    "WorkerLeaves",
    "ConnectionError",
}
_LOST_PEER = ("Connection closed by peer", "Connection reset by peer")  # gloo says so in a plain RuntimeError
_ABSENT_PEER = re.compile(r"rank (\d+) (?:has died|must come)")  # so says a sum in shared memory, in a ConnectionError
_WOULD_REPEAT = (ValueError, TypeError, LookupError, ImportError, FileNotFoundError, PermissionError, AttributeError)


def reason_to_stop(
    failures: Mapping[int, BaseException], in_a_row: int, last: str | None = None
) -> GanscaleError | None:
    """Return the error that ends the run, or None where the worker group should be started again.

    ``failures`` maps ranks to what they raised; ``in_a_row`` counts the group's failures, this one included, since it
    last wrote a checkpoint; ``last`` is the ``signature`` of the failure before.
    """
    ranked = sorted(failures.items())
    for _, error in ranked:
        if isinstance(error, GanscaleError):
            return error
    for rank, error in ranked:
        if told := _deterministic(rank, error):
            return told
    if in_a_row >= MAX_FAILURES_IN_A_ROW:
        return RunFailed(f"the workers failed {in_a_row} times without a new checkpoint, last: {describe(failures)}")
    if any(_is_lost(error) for _, error in ranked):
        return None
    if last is not None and last == signature(failures):
        return RunFailed(f"the workers failed twice in the same way: {describe(failures)}")
    return None


def signature(failures: Mapping[int, BaseException]) -> str:
    """Return what a failure was, equal for equal failures: lowest rank, type and first line; for a hang, the phase."""
    rank, error = min(failures.items())
    return f"worker {rank} hung in {error.where}" if isinstance(error, RankHung) else describe(failures)


def describe(failures: Mapping[int, BaseException]) -> str:
    """Return a failure in one line: the workers that hung, else the lost ones, else what the first one raised."""
    ranked = sorted(failures.items())
    if any(isinstance(error, RankHung) for _, error in ranked):
        return "; ".join(str(error) for _, error in ranked if isinstance(error, RankHung))
    lost = [rank for rank, error in ranked if _is_named(error, _LOST)]
    # those who only saw another one's end come second
    lost = [rank for rank in lost if not isinstance(failures[rank], ConnectionError)] or lost
    if lost and type(failures[lost[0]]).__name__ == "WorkerLeaves":
        return str(failures[lost[0]])
    if lost:
        told = {_rank_that_is_gone(rank, failures[rank]) for rank in lost}
        gone = sorted(told - set(lost) or told)  # who tells of another may be told of by a third one
        return f"worker {', '.join(map(str, gone))} was lost ({_words(failures[lost[0]])})"
    rank, error = ranked[0]
    return f"{_words(error)} (worker {rank})"


def _rank_that_is_gone(rank: int, error: BaseException) -> int:
    """Return whose end ``error`` tells of, which is not always that of the ``rank`` that raised it."""
    told = _ABSENT_PEER.search(str(error)) if isinstance(error, ConnectionError) else None
    return int(told[1]) if told else rank


def _deterministic(rank: int, error: BaseException) -> RunFailed | None:
    if _is_named(error, _OUT_OF_MEMORY):
        return RunFailed(f"worker {rank} ran out of memory; lower train.batch or model.width, or use more workers")
    if is_full_disk(error):
        return full_disk(getattr(error, "filename", None) or f"worker {rank}")
    if isinstance(error, _WOULD_REPEAT) and not _is_lost(error):
        return RunFailed(f"worker {rank} stopped with {_words(error)}")
    return None


def _is_lost(error: BaseException) -> bool:
    if isinstance(error, RankHung):
        return error.where is None
    return _is_named(error, _LOST) or any(text in str(error) for text in _LOST_PEER)


def _is_named(error: BaseException, names: set[str]) -> bool:
    return any(base.__name__ in names for base in type(error).__mro__)


def _words(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
