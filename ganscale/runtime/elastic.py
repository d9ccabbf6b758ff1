"""When an elastic run changes its size. Lives in Ray Train's controller, so it loads nothing of the trainer.

Ray's own policy decides how many workers there are to be. Three things are better known here. Ray looks at the nodes
every 20 s only, so after a loss it asks for workers on a node that is gone and waits in vain: here it looks when it
decides. A resize ends the running group, and with it what was trained since the last checkpoint: here a group grows
right after one. And below the fewest workers Ray's loop asks without a pause, on a whole core: here it takes breath.
"""

from __future__ import annotations

import time
from typing import Any

from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ScalingDecision

LOOK_S = 1.0  # between two looks while too few workers find a place


class ElasticPolicy(ElasticScalingPolicy):
    """Start with as many workers as find a place, and grow after a checkpoint."""

    _checkpoint = ""

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start with as many workers as there are places now; none below the fewest."""
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            time.sleep(LOOK_S)
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Change the size where a report brings a new checkpoint, and the last change is long enough ago."""
        self._maybe_send_resource_request()  # a cluster that gets nodes on demand has to know of it all the time
        report = worker_group_status.worker_statuses[0].training_report
        if report is None or report.metrics["checkpoint"] in ("", self._checkpoint):
            return NoopDecision()
        self._checkpoint = report.metrics["checkpoint"]
        return super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)

    def _get_reserved_resources(self) -> Any:
        # the actor answers in order, so what Ray asks for next comes from a fresh look
        self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
        return super()._get_reserved_resources()
