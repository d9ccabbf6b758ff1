"""Ray Train's controller, as one that its driver can end while it waits. It loads nothing of the trainer."""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.train.v2._internal.execution.controller import TrainController

BREATH_S = 0.01  # before each step, for what the driver has asked meanwhile


class Controller(TrainController):
    """As Ray's, whose wait for places is one step after another without a pause in which it could be aborted."""

    async def _step(self) -> Any:
        await asyncio.sleep(BREATH_S)
        if self.get_state().is_terminal():  # aborted: the process ends once this has ended too
            ray.actor.exit_actor()
        return await super()._step()
