"""The failure gate, which lives in Ray Train's controller: it asks the pure judge, and ends the run or lets Ray retry.

Kept apart so that the controller, whose start every launch waits for, loads nothing of the trainer.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import ray.train

from ganscale.runtime.failures import RankHung, describe, reason_to_stop, signature
from ganscale.runtime.heartbeat import Beat, Board

log = logging.getLogger(__name__)


class FailureGate(ray.train.UserCallback):
    """Judges every failure of the group in Ray's controller; what it raises ends the run at once.

    On ``board`` it finds whom the driver's watch has ended because it hung, and leaves a note on each loss.
    """

    def __init__(self, board: str) -> None:
        self.board, self.losses = board, 0
        self.failures, self.checkpoint, self.last = 0, "", None
        self._past: set[str] = set()  # groups that were judged before; what they said stays on the board

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Forget past failures once there is a newer checkpoint; a tick that is redone is no progress."""
        if metrics[0]["checkpoint"] > self.checkpoint:
            self.failures, self.checkpoint, self.last = 0, metrics[0]["checkpoint"], None

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise where starting the group again would be in vain."""
        board, at = Board(self.board), time.time()
        beats, hang = self._read(board)
        beats = [beat for beat in beats if beat.attempt not in self._past]
        attempts = {beat.attempt for beat in beats}
        self._past |= attempts
        if hang is not None and hang["attempt"] in attempts:
            # who hung was ended; what the others say of that is no news
            worker_exceptions = {int(rank): RankHung(words, hang["where"]) for rank, words in hang["ranks"].items()}
        self.failures += 1
        self.losses += 1
        reason = reason_to_stop(worker_exceptions, self.failures, self.last)
        self.last = signature(worker_exceptions)
        images = max((beat.images for beat in beats), default=0)
        note = {"number": self.losses, "why": describe(worker_exceptions), "at": at, "images": images}
        try:
            board.put("loss", note | {"attempts": sorted(attempts), "ends": reason is not None})
        except Exception as error:  # the driver then learns of it from Ray alone
            log.warning("the driver could not be told of a loss: %s", error)
        if reason is not None:
            raise reason

    def _read(self, board: Board) -> tuple[list[Beat], Any]:
        try:
            return board.beats(), board.get("hang")
        except Exception as error:
            log.warning("nothing is known of what the workers did: %s", error)
            return [], None
