"""The controller writes down which workers train, and on which nodes.

It lives on the driver's node, so a file in the run directory is all that both need, also while the head is away.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from ganscale.files import replace_text
from ganscale.runtime.attendance import ENDING, TRAINING, WAITING

_STATES = {
    "RUNNING": TRAINING,
    "PREEMPTING": TRAINING,
    "SHUTTING_DOWN": ENDING,
    "FINISHED": ENDING,
    "ERRORED": ENDING,
    "ABORTED": ENDING,
}


class RollCall(ControllerCallback, WorkerGroupCallback):
    """In the controller: keeps ``path`` true."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._nodes: dict[str, list] = {}

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """Remember on which nodes the workers are: id -> address and number."""
        places = Counter((worker.metadata.node_id, worker.metadata.node_ip) for worker in worker_group.get_workers())
        self._nodes = {node: [address, count] for (node, address), count in places.items()}

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Write down whether the workers train."""
        state = _STATES.get(current_state._state_type.state_name, WAITING)
        if self._path.parent.is_dir():  # else the launch has ended
            replace_text(self._path, json.dumps({"state": state, "nodes": self._nodes}) + "\n")
