"""The ranks that train together, as the trainer sees them: a rank, a size, a device, and three collectives.

With one rank every collective is the identity and torch.distributed is never touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _AllReduceSum(torch.autograd.Function):
    """Sum over ranks; its gradient is again a sum over ranks, so it can be differentiated any number of times."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clone()
        dist.all_reduce(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _AllReduceSum.apply(grad.contiguous())


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """``size`` ranks, of which this process is ``rank``; all work on ``device``."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files."""
        return self.rank == 0

    def slots(self, batch: int) -> range:
        """Return this rank's contiguous share of the slots ``0 .. batch - 1`` of a global batch."""
        return range(self.rank * batch // self.size, (self.rank + 1) * batch // self.size)

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Sum each tensor over all ranks in place, in the order given, which must be the same on every rank."""
        if self.size > 1:
            for work in [self.start_sum_(tensor) for tensor in tensors]:
                work.wait()

    def start_sum_(self, tensor: Tensor) -> dist.Work:
        """Begin a sum in place over several ranks, in one order on all; ``wait`` of what it returns ends it."""
        return dist.all_reduce(tensor, async_op=True)

    def sum_differentiable(self, x: Tensor) -> Tensor:
        """Return the sum of ``x`` over all ranks, differentiable to any order."""
        return _AllReduceSum.apply(x) if self.size > 1 else x

    def broadcast_object(self, value: Any) -> Any:
        """Return rank 0's ``value`` on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]


def solo_group(device: str | torch.device | None = None) -> Group:
    """Return a group of this process alone, on the GPU where there is one."""
    return Group(rank=0, size=1, device=torch.device(device or _own_device()))


def torch_group(device: str | torch.device | None = None) -> Group:
    """Wrap the process group that torch.distributed has been initialised with (by Ray Train, torchrun, or a test)."""
    return Group(rank=dist.get_rank(), size=dist.get_world_size(), device=torch.device(device or _own_device()))


def _own_device() -> str:
    # asked of torch, not of Ray: Ray believes in pretended GPUs
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
