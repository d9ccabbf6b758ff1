"""A critic that looks across its batch, with fixed rows beside each row, so that rows are independent.

Legend: n rows, g rows of a group, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Beside(nn.Module):
    """A critic that looks across its batch, with each row in a group of its own: beside the same ``companions``
    [g - 1, C, H, W]. Rows are then independent, at g times the cost. The critic is called once a row.
    """

    def __init__(self, critic: nn.Module, companions: Tensor) -> None:
        super().__init__()
        self.critic = critic
        self.register_buffer("companions", companions, persistent=False)

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        """Return the critic's logits [n]."""
        others = self.companions.to(x)
        groups = [torch.cat([row, others]) for row in x.split(1)]
        repeated = [part.expand(len(others) + 1) for label in condition for part in label.split(1)] or [None] * len(x)
        logits = [
            self.critic(group) if label is None else self.critic(group, label)
            for group, label in zip(groups, repeated, strict=True)
        ]
        return torch.cat([one[:1] for one in logits])


def without_companions(network: nn.Module) -> nn.Module:
    """Return the network whose layers are looked at: the critic itself, where it stands beside companions."""
    return network.critic if isinstance(network, Beside) else network


def rows_a_row(network: object) -> int:
    """Return how many rows of the network one row costs."""
    return 1 + len(network.companions) if isinstance(network, Beside) else 1


def own_rows(network: nn.Module, calls: Sequence[Tensor]) -> Tensor:
    """Return [n, ...] of what a layer put out (or of its gradients) in all calls of a forward of n rows.

    One call of all rows, or beside companions one call a row, with that row first.
    """
    return torch.cat([call[:1] for call in calls]) if isinstance(network, Beside) else calls[0]
