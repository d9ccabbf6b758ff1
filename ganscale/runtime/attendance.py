"""The driver gives up where workers stay away, as Ray waits without an end: a group below its fewest says nothing.

What it goes by is the roll that the controller keeps (``roll_call.py``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from ganscale.errors import RunFailed
from ganscale.runtime.placement import Plan

WAITING, TRAINING, ENDING = "waiting", "training", "ending"


class Attendance:
    """In the driver: ``check`` raises RunFailed where no group has trained for ``max_wait_s``."""

    def __init__(self, path: Path, plan: Plan, max_wait_s: float) -> None:
        self._path, self._plan, self._max_wait_s = path, plan, max_wait_s
        self._waiting_since: float | None = time.monotonic()
        self._nodes: dict[str, list] = {}

    def check(self) -> None:
        """Look whether the workers are there; called a few times a second."""
        page = json.loads(self._path.read_text()) if self._path.exists() else {"state": WAITING, "nodes": {}}
        self._nodes = page["nodes"]
        if page["state"] != WAITING:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = time.monotonic()
        elif time.monotonic() - self._waiting_since > self._max_wait_s:
            raise RunFailed(self._words())

    def _words(self) -> str:
        import ray

        nodes = [node for node in ray.nodes() if node["Alive"]]
        alive = {node["NodeID"] for node in nodes}
        lost = [f"{address} ({count} of them)" for node, (address, count) in self._nodes.items() if node not in alive]
        places = self._plan.places([node["Resources"] for node in nodes])
        free = ray.available_resources()
        return absence(self._plan, self._max_wait_s, lost=lost, began=bool(self._nodes), places=places, free=free)


def absence(
    plan: Plan, waited_s: float, *, lost: Sequence[str], began: bool, places: int, free: dict[str, float]
) -> str:
    """Say in one line what is missing: ``lost`` nodes by name, and for how many workers the cluster has ``places``."""
    least, needs = max(1, plan.least), plan.ray_resources
    who = f"{least} worker{'s' if least > 1 else ''}"
    happened = f"did not {'come back' if began else 'start'} within {waited_s:g} s"
    gone = f"node{'s' if len(lost) > 1 else ''} {', '.join(lost)} did not come back, " if lost else ""
    each = " and ".join(f"{count:g} {kind}{'s' if count > 1 else ''}" for kind, count in needs.items())
    have = f"{plan.where} has {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs free"
    room = (
        f"places for {places}" if places < least else "its places are taken, by others or by workers that still start"
    )
    remedy = f"go on with --workers 1:{plan.workers}" if began and plan.workers > 1 else "use fewer workers"
    return f"{who} {happened}: {gone}each needs {each}, {have} and {room}; {remedy} or raise runtime.max_wait_s"
