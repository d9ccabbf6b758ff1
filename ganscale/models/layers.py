"""Layers that several families share.

Legend: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ganscale import ops


class GlobalBatchNorm(nn.BatchNorm2d):
    """Batch norm over the *global* batch (Ioffe and Szegedy 2015, arXiv:1502.03167).

    ``sum_over_ranks`` is a differentiable all-reduce, set by the trainer where several ranks share a batch; without it
    this is exactly ``nn.BatchNorm2d``. torch's own SyncBatchNorm refuses CPU tensors, hence this one. Two small
    collectives a layer: the mean first, then the centred squares, because E[x^2] - E[x]^2 cancels.
    """

    sum_over_ranks: Callable[[Tensor], Tensor] | None = None

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if self.sum_over_ranks is None or not self.training:
            return super().forward(x_NCHW)
        x = x_NCHW.to(self.weight.dtype)  # statistics in full precision also under autocast
        count = x.new_tensor([x.numel() // x.shape[1]])
        totals = self.sum_over_ranks(torch.cat([x.sum(dim=(0, 2, 3)), count]))
        mean_C, count = totals[:-1] / totals[-1], totals[-1]
        centred = x - mean_C[:, None, None]
        var_C = self.sum_over_ranks(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(var_C * count / (count - 1), self.momentum)
        scale_C = self.weight * (var_C + self.eps).rsqrt()
        return (centred * scale_C[:, None, None] + self.bias[:, None, None]).to(x_NCHW.dtype)


class BiasAct(nn.Module):
    """Add a bias per channel and apply an activation in one pass: ``act(x + b)``, x [N, C, ...]."""

    def __init__(self, channels: int, activation: str, *, negative_slope: float = 0.2) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        return ops.bias_act(x, self.bias, activation=self.activation, negative_slope=self.negative_slope)

    def extra_repr(self) -> str:
        return f"{self.bias.numel()}, activation={self.activation}"


def init_normal(module: nn.Module, *, std: float = 0.02) -> None:
    """Initialise weights as DCGAN does: N(0, std) for convolutions and linears, N(1, std) for norm scales."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, mean=1.0, std=std)
            nn.init.zeros_(part.bias)
