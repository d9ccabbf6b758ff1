"""The ranks that train together, as the trainer sees them: a rank, a size, a device, and three collectives.

With one rank every collective is the identity and torch.distributed is never touched.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from ganscale.errors import MissingPackageError
from ganscale.ops.shared_sum import DTYPES, SharedSum, create_file

TIMEOUT_S = 300.0


class Work(Protocol):
    """A collective under way."""

    def wait(self) -> object:
        """Return once it is done."""


class _Done:
    def wait(self) -> None:
        pass


_DONE = _Done()


class _AllReduceSum(torch.autograd.Function):
    """Sum over ranks; its gradient is again a sum over ranks, so it can be differentiated any number of times."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        y = x.clone(memory_format=torch.contiguous_format)
        group.start_sum_(y).wait()
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _AllReduceSum.apply(grad, ctx.group), None


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """``size`` ranks, of which this process is ``rank``; all work on ``device``.

    ``shared``: the memory through which they sum where all are processes of one machine and work on its CPU.
    """

    rank: int
    size: int
    device: torch.device
    shared: SharedSum | None = None

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

    def start_sum_(self, tensor: Tensor) -> Work:
        """Begin a sum in place over several ranks, in one order on all; ``wait`` of what it returns ends it."""
        if self.shared is not None and tensor.dtype in DTYPES and tensor.is_contiguous():
            self.shared.sum_(tensor)
            return _DONE
        return dist.all_reduce(tensor, async_op=True)

    def sum_differentiable(self, x: Tensor) -> Tensor:
        """Return the sum of ``x`` over all ranks, differentiable to any order."""
        return _AllReduceSum.apply(x, self) if self.size > 1 else x

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


def torch_group(device: str | torch.device | None = None, *, timeout_s: float = TIMEOUT_S) -> Group:
    """Wrap the process group that torch.distributed has been initialised with (by Ray Train, torchrun, or a test).

    CPU ranks of one machine sum through shared memory, and fail like torch's own sums where a rank dies, or stays away
    for ``timeout_s``; all others sum through torch.distributed.
    """
    group = Group(rank=dist.get_rank(), size=dist.get_world_size(), device=torch.device(device or _own_device()))
    if group.size == 1 or group.device.type != "cpu":
        return group
    return replace(group, shared=_share_memory(group, timeout_s))


def _share_memory(group: Group, timeout_s: float) -> SharedSum | None:
    """Return the memory that all ranks have in common; None, on every rank, where one of them cannot have it."""
    made = shared = None
    if group.is_main:
        with contextlib.suppress(OSError):
            made = create_file()
    try:
        path = group.broadcast_object(made)
        if path is not None:  # which names nothing on another machine
            with contextlib.suppress(RuntimeError, MissingPackageError):
                shared = SharedSum(path, group.rank, group.size, timeout_s=timeout_s)
        having = torch.tensor(float(shared is not None))
        group.sum_([having])
    finally:
        if made is not None:
            os.unlink(made)  # all who want it have opened it
    return shared if having.item() == group.size else None


def _own_device() -> str:
    # asked of torch, not of Ray: Ray believes in pretended GPUs
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
