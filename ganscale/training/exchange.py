"""How ranks agree on a gradient: one flat sum a phase.

Not DistributedDataParallel: its hooks are silently wrong for a penalty-only loss and for ``static_graph`` with a
penalty. A flat buffer over a fixed parameter list has no such cases.
"""

from __future__ import annotations

import torch
from torch import nn

from ganscale.training.process_group import Group


def exchange_gradients(net: nn.Module, group: Group) -> None:
    """Sum every gradient over ranks in one flat buffer; a missing one counts as zero, so no rank's buffer shifts."""
    for parameter in net.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if group.size == 1:
        return
    gradients = [parameter.grad for parameter in net.parameters()]
    flat = torch.cat([g.flatten() for g in gradients])
    group.sum_([flat])
    for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))
