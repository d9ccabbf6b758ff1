"""Ray Train's controller, as one that its driver can end, or tidy up after. It loads nothing of the trainer."""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.train.v2._internal.execution.controller import TrainController
from ray.util.placement_group import PlacementGroup, remove_placement_group

BREATH_S = 0.01  # before each step, for what the driver has asked meanwhile


class Controller(TrainController):
    """As Ray's, whose wait for places is one step after another without a pause in which it could be aborted."""

    async def _step(self) -> Any:
        await asyncio.sleep(BREATH_S)
        if self.get_state().is_terminal():  # aborted: the process ends once this has ended too
            ray.actor.exit_actor()
        return await super()._step()


def release_places(controller: ray.actor.ActorHandle) -> None:
    """Give back what a controller that was killed held on the cluster; Ray itself would at the end of the job."""
    accessor = ray._private.state.state._connect_and_get_accessor()  # what is public names no creator
    for group in map(PlacementGroupTableData.FromString, accessor.get_placement_group_table()):
        if group.creator_actor_id == controller._actor_id.binary():
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
