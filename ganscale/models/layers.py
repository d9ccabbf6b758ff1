"""Layers that several families share.

Legend: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ganscale import ops


class BatchNormAct(nn.BatchNorm2d):
    """Batch norm over the *global* batch (Ioffe and Szegedy 2015, arXiv:1502.03167) and an activation: act(norm(x)).

    ``sum_over_ranks``, a differentiable all-reduce of a float64 tensor, is set by the trainer where several ranks share
    a batch; torch's own SyncBatchNorm refuses CPU tensors. Parameters and statistics are those of ``nn.BatchNorm2d``.
    """

    sum_over_ranks: Callable[[Tensor], Tensor] | None = None

    def __init__(self, channels: int, activation: str = "linear", *, negative_slope: float = 0.2) -> None:
        super().__init__(channels)
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return ops.norm_act(x_NCHW, self.weight, self.bias, self.running_mean, self.running_var, **self.settings())

    def settings(self) -> dict[str, Any]:
        """Return what the operators of ``ops`` are told beside tensors; a step of training is counted by it."""
        if self.training:
            self.num_batches_tracked.add_(1)
        return {
            "training": self.training,
            "momentum": self.momentum,
            "eps": self.eps,
            "activation": self.activation,
            "negative_slope": self.negative_slope,
            "sum_over_ranks": self.sum_over_ranks,
        }

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"


class ConvTransposeNormAct(nn.Module):
    """A generator's block, act(norm(conv_transpose(x))): x [N, CI, h, w] -> [N, CO, H, W]."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, stride: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels_in, channels_out, kernel, stride=stride, padding=padding, bias=False)
        self.norm = BatchNormAct(channels_out, "relu")

    def forward(self, x_NCHW: Tensor) -> Tensor:
        conv, norm = self.conv, self.norm
        return ops.conv_transpose_norm_act(
            x_NCHW, conv.weight, None, norm.weight, norm.bias, norm.running_mean, norm.running_var,
            stride=conv.stride, padding=conv.padding, output_padding=conv.output_padding, **norm.settings(),
        )  # fmt: skip


class ConvTransposeAct(nn.Module):
    """A generator's last layer, act(conv_transpose(x) + bias): x [N, CI, h, w] -> [N, CO, H, W]."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, *, stride: int, padding: int, activation: str
    ) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels_in, channels_out, kernel, stride=stride, padding=padding)
        self.activation = activation

    def forward(self, x_NCHW: Tensor) -> Tensor:
        conv = self.conv
        return ops.conv_transpose_act(
            x_NCHW, conv.weight, conv.bias, stride=conv.stride, padding=conv.padding,
            output_padding=conv.output_padding, activation=self.activation,
        )  # fmt: skip


class ConvAct(nn.Module):
    """A critic's block, act(conv(x) + bias): x [N, CI, H, W] -> [N, CO, h, w]."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, *, stride: int, padding: int, activation: str
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=padding)
        self.activation = activation

    def forward(self, x_NCHW: Tensor) -> Tensor:
        conv = self.conv
        return ops.conv_act(
            x_NCHW, conv.weight, conv.bias, stride=conv.stride, padding=conv.padding, activation=self.activation
        )

    def extra_repr(self) -> str:
        return f"activation={self.activation}"


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
