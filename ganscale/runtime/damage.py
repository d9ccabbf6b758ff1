"""Checkpoints that a start of the workers has passed over, told to the driver: only its words reach the user."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ganscale.errors import CheckpointError
from ganscale.runtime.heartbeat import Board

log = logging.getLogger(__name__)

_KEY = "damaged"


def put_damage(board: Board, damaged: Iterable[CheckpointError]) -> None:
    """Say on ``board`` which checkpoints were passed over and why, in the place of what an earlier start has said."""
    words = [tell(error) for error in damaged]
    try:
        board.put(_KEY, words)
    except Exception as failure:  # the head of the cluster is away for a moment: training does not depend on it
        log.warning("the driver could not be told of damaged checkpoints (%s): %s", "; ".join(words) or "none", failure)


def get_damage(board: Board) -> list[str]:
    """Return what the last start of the workers has said."""
    return board.get(_KEY) or []


def tell(error: CheckpointError) -> str:
    """Return what is wrong with a checkpoint, without what to do about it: that is being done."""
    what, rule, got, _ = error.args
    return f"{what} must {rule}, got {got}"
