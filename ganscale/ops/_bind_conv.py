"""Glue between tensors and the core's transposed convolutions; see ``_bind``.

N batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ganscale.ops import _bind, _extension

Pair = tuple[int, int]


def _image(x: Tensor) -> _bind.View:
    """Describe a dense four-axis tensor, in whichever layout it is."""
    return x.data_ptr(), _bind.DTYPES[x.dtype], tuple(x.shape), x.stride()


def few(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_size: Pair,
    stride: Pair,
    padding: Pair,
    activation: str,
    negative_slope: float,
) -> Tensor:
    """act(conv_transpose2d(x, weight) + bias) for at most 4 output channels, in the layout of ``x`` [N, C, H, W]."""
    x = _bind.dense(x)
    format_ = torch.channels_last if _bind.channels_last(x) else torch.contiguous_format
    shape = (x.shape[0], weight.shape[1], *out_size)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=format_)
    if not y.numel():
        return y
    core, weight = _extension.core(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    views, conv = (_image(x), _image(weight)), (*stride, *padding)
    out = _image(y)
    size = core.conv_transpose_few_workspace_bytes(*views, out, conv, _bind.execution(x))
    workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
    numbers = None if bias is None else _bind.view(bias, (len(bias),))
    code, run = _bind.ACTIVATIONS[activation], _bind.execution(x, workspace)
    core.conv_transpose_few(*views, numbers, out, conv, code, negative_slope, run)
    return y
