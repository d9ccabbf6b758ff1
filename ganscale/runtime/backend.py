"""How the workers of Ray Train become a process group: by NCCL on GPUs that are there, else by gloo.

Ray hands out the GPUs that a node says it has, and believes what it is told. So the workers are asked what they see.
"""

from __future__ import annotations

import dataclasses
import socket
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from ganscale.errors import RunFailed
from ganscale.runtime.leaving import listen


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Start the group with the backend that the devices of all workers can be used with."""
        if backend_config.backend == "nccl":
            backend_config = dataclasses.replace(backend_config, backend=choose(worker_group.execute(_look)))
        worker_group.execute(listen)  # it runs in the main thread of each, training does not
        super().on_start(worker_group, backend_config)

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Leave the group to the end of its processes: after a loss, leaving in good order waits for the lost."""


@dataclasses.dataclass
class GroupConfig(TorchConfig):
    """As Ray's, with the backend above."""

    @property
    def backend_cls(self) -> type:
        """What Ray starts the group with."""
        return _Backend


def choose(seen: list[tuple[str, bool]]) -> str:
    """Return the backend for workers that see a GPU or not, each (host, whether it does); raises RunFailed if mixed."""
    blind = sorted({host for host, sees in seen if not sees})
    if blind and len([1 for _, sees in seen if sees]):
        raise RunFailed(
            f"Ray gave GPUs to workers on {', '.join(blind)}, but torch sees none there, and sees them elsewhere; "
            "check the driver and torch on those nodes: ganscale doctor"
        )
    return "gloo" if blind else "nccl"


def _look() -> tuple[str, bool]:
    import torch

    return socket.gethostname(), torch.cuda.is_available()
