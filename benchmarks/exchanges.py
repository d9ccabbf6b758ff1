"""Ways to sum gradients over ranks, all driving the same training step: what ``benchmarks.scaling`` compares.

A way is two functions that stand in for those of ``ganscale.training.step``: ``leave`` leaves the gradients of a phase,
``exchange`` sums them over ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ganscale.losses import PENALTIES, PenaltyFunction
from ganscale.training.exchange import BUCKET_BYTES, buckets, exchange_gradients, gather, views
from ganscale.training.process_group import Group
from ganscale.training.state import TrainState
from ganscale.training.step import Phase, StepContext, leave_gradients


@dataclass(frozen=True, slots=True)
class Way:
    """How a step gets its gradients: this rank's by ``leave``, then the sum over ranks by ``exchange``."""

    leave: Callable[[Phase, StepContext], None]
    exchange: Callable[[nn.Module, Group], None]


def ours(state: TrainState) -> Way:
    """The step as it is."""
    return Way(leave_gradients, exchange_gradients)


def flat_blocking(state: TrainState) -> Way:
    """One buffer of all gradients, one blocking all-reduce, copied back."""

    def exchange(net: nn.Module, group: Group) -> None:
        parameters = list(net.parameters())
        flat = torch.cat([p.grad.flatten() for p in parameters])
        group.sum_([flat])
        for p, total in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad.copy_(total.view_as(p))

    return Way(leave_gradients, exchange)


def overlapped(state: TrainState, *, bucket_bytes: int = BUCKET_BYTES // 16) -> Way:
    """Buckets in a fixed order, the last layer first, each sent when it is complete and those before it are sent."""
    running: list[_Backward] = []

    def leave(phase: Phase, step: StepContext) -> None:
        running.append(_Backward(state.nets[phase.net], state.group, bucket_bytes))
        try:
            leave_gradients(phase, step)
        finally:
            running[0].remove_hooks()

    def exchange(net: nn.Module, group: Group) -> None:
        running.pop().finish()

    return Way(leave, exchange)


class _Backward:
    """The buckets of one backward pass. ``autograd.grad`` inside a loss accumulates nothing, so it starts none."""

    def __init__(self, net: nn.Module, group: Group, bucket_bytes: int) -> None:
        self.group = group
        self.buckets = list(buckets(reversed(list(net.parameters())), bucket_bytes))
        self.missing = [len(bucket) for bucket in self.buckets]
        self.under_way: list = []
        self.hooks = [
            p.register_post_accumulate_grad_hook(lambda _, index=index: self.arrived(index))
            for index, bucket in enumerate(self.buckets)
            for p in bucket
        ]

    def arrived(self, index: int) -> None:
        self.missing[index] -= 1
        while len(self.under_way) < len(self.buckets) and not self.missing[len(self.under_way)]:
            self.send()

    def send(self) -> None:
        bucket = self.buckets[len(self.under_way)]
        flat = bucket[0].new_empty(sum(p.numel() for p in bucket))
        with torch.no_grad():
            gather(bucket, views(flat, bucket))
        self.under_way.append(self.group.start_sum_(flat))

    def remove_hooks(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def finish(self) -> None:
        while len(self.under_way) < len(self.buckets):
            self.send()
        for work in self.under_way:
            work.wait()


def ddp(state: TrainState) -> Way:
    """Torch's DistributedDataParallel around the network that moves; it divides by the ranks, we multiply."""
    wrapped = {name: _Wrapped(state.nets[name]) for name in ("generator", "critic")}

    def leave(phase: Phase, step: StepContext) -> None:
        plain = state.nets[phase.net]
        state.nets[phase.net] = wrapped[phase.net]
        try:
            leave_gradients(replace(phase, gain=phase.gain * state.group.size), step)
        finally:
            state.nets[phase.net] = plain

    return Way(leave, lambda net, group: None)


class _Wrapped(DistributedDataParallel):
    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, forward_sync_buffers=False, gradient_as_bucket_view=True)
        self.latent = getattr(net, "latent", None)


def unwrapping(penalty: PenaltyFunction) -> PenaltyFunction:
    """Give ``penalty`` the critic below DistributedDataParallel, so that the fused operator knows its layers."""

    def on_module(critic: nn.Module, *arguments: Tensor, center: float) -> Tensor:
        return penalty(getattr(critic, "module", critic), *arguments, center=center)

    return on_module


WAYS: dict[str, Callable[[TrainState], Way]] = {
    "ours": ours,
    "ours over gloo": ours,
    "one flat all-reduce": flat_blocking,
    "overlapped buckets": overlapped,
    "torch DDP": ddp,
}
UNWRAPPED = {name: replace(penalty, function=unwrapping(penalty.function)) for name, penalty in PENALTIES.items()}
