"""When an elastic run changes its size. Lives in Ray Train's controller, so it loads nothing of the trainer.

Ray's own policy decides how many workers there are to be. Five things are better known here. Ray looks at the nodes
every 20 s only, so after a loss it asks for workers on a node that is gone and waits in vain: here it looks when it
decides. It counts nodes that drain, where nothing starts any more. It counts what a node has, not what is free, and
would try for ever what others hold. A resize ends the running
group, and with it what was trained since the last checkpoint: here a group grows right after one. And below the fewest
workers Ray's loop asks without a pause, on a whole core: here it takes breath.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ScalingDecision

from ganscale.runtime.leaving import draining_nodes

LOOK_S = 1.0  # between two looks while too few workers find a place


class ElasticPolicy(ElasticScalingPolicy):
    """Start with as many workers as find a place, and grow after a checkpoint."""

    _checkpoint = ""
    _held: int | None = 0  # our workers that surely hold their places; None: a lost group may, until it is shut down

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start with as many workers as there are places now; none below the fewest."""
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            time.sleep(LOOK_S)
        else:
            self._held = 0  # should this start fail: the old group is shut down before it
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Change the size where a report brings a new checkpoint, and the last change is long enough ago."""
        self._maybe_send_resource_request()  # a cluster that gets nodes on demand has to know of it all the time
        self._held = None
        report = worker_group_status.worker_statuses[0].training_report
        if report is None or report.metrics["checkpoint"] in ("", self._checkpoint):
            return NoopDecision()
        self._checkpoint = report.metrics["checkpoint"]
        self._held = worker_group_state.num_workers
        try:
            return super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        finally:
            self._held = None

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        gone = draining_nodes()
        there, free = (
            {node: has for node, has in nodes.items() if node not in gone}
            for nodes in (reserved_resources, free_per_node())
        )
        possible = super()._count_possible_workers(there)
        if self._held is None:
            return possible
        return min(possible, self._held + super()._count_possible_workers(free))

    def _get_reserved_resources(self) -> Any:
        # the actor answers in order, so what Ray asks for next comes from a fresh look
        self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
        return super()._get_reserved_resources()


def free_per_node() -> dict[str, dict[str, float]]:
    """Return what nobody holds: node id -> resources."""
    return ray._private.state.available_resources_per_node()
