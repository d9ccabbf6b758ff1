"""The plain-torch twin of transposed convolution with bias and activation; see ``reference``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ganscale.ops import reference

Pair = tuple[int, int]


def conv_transpose_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    output_padding: Pair,
    activation: str,
    negative_slope: float,
) -> Tensor:
    """act(conv_transpose2d(x [N, C, H, W], weight [C, O, KH, KW]) + bias [O])."""
    z = F.conv_transpose2d(x, weight, bias, stride, padding, output_padding)
    return reference.bias_act(z, None, activation, negative_slope)
