"""The failure gate, which lives in Ray Train's controller: it asks the pure judge, and ends the run or lets Ray retry.

Kept apart so that the controller, whose start every launch waits for, loads nothing of the trainer.
"""

from __future__ import annotations

from typing import Any

import ray.train

from ganscale.runtime.failures import reason_to_stop, signature


class FailureGate(ray.train.UserCallback):
    """Judges every failure of the group in Ray's controller; what it raises ends the run at once."""

    def __init__(self) -> None:
        self.failures, self.checkpoint, self.last = 0, "", None

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Forget past failures once there is a newer checkpoint; a tick that is redone is no progress."""
        if metrics[0]["checkpoint"] > self.checkpoint:
            self.failures, self.checkpoint, self.last = 0, metrics[0]["checkpoint"], None

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise where starting the group again would be in vain."""
        self.failures += 1
        if reason := reason_to_stop(worker_exceptions, self.failures, self.last):
            raise reason
        self.last = signature(worker_exceptions)
