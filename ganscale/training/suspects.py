"""On which rank a value that is not finite arose: asked once the sum over all ranks has shown one, so it costs nothing.

Every draw is keyed and nothing was updated, so each rank computes its own gradients of the phase once more, and they
are looked at before any sum. Where the generator's batch norm couples the ranks, a value spreads in the forward pass,
and all of them show it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ganscale.training.process_group import Group
from ganscale.training.step import Phase, StepContext


def say_whose(group: Group, phase: Phase, step: StepContext, gradients: Callable[[Phase, StepContext], None]) -> str:
    """Return in words, to append to an error, which ranks' own gradients are not finite; "" for one rank.

    Collective. ``gradients`` leaves a phase's gradients of this rank, as ``leave_gradients`` does.
    """
    if group.size == 1:
        return ""
    net = step.state.nets[phase.net]
    net.zero_grad(set_to_none=True)
    gradients(phase, step)
    mine = all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)
    shown = torch.zeros(group.size, device=group.device)
    shown[group.rank] = float(not mine)
    group.sum_([shown])
    guilty = [rank for rank, is_bad in enumerate(shown.tolist()) if is_bad]
    if not guilty:
        return "; each worker's own gradients are finite when computed again: their sum overflows, or a device erred"
    every = " (all of them)" if len(guilty) == group.size else ""
    return f"; it arose on worker {', '.join(map(str, guilty))}{every}"
