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
    tf32 = x.dtype == torch.float32 and x.device.type == "cuda" and rounds_to_tf32()
    views, conv = (_image(x), _image(weight)), (*stride, *padding, tf32)
    out = _image(y)
    size = core.conv_transpose_few_workspace_bytes(*views, out, conv, _bind.execution(x))
    workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
    numbers = None if bias is None else _bind.view(bias, (len(bias),))
    code, run = _bind.ACTIVATIONS[activation], _bind.execution(x, workspace)
    core.conv_transpose_few(*views, numbers, out, conv, code, negative_slope, run)
    return y


# --- any number of output channels, on a GPU -------------------------------------------------------------------------


def takes_product(x: Tensor, weight: Tensor) -> bool:
    """Tell whether ``product`` can take these: channels_last on a GPU, not float64, and something to multiply."""
    on_gpu = x.device.type == "cuda" and x.dtype != torch.float64
    return on_gpu and _bind.channels_last(x) and x.numel() > 0 and weight.numel() > 0


def rounds_to_tf32() -> bool:
    """Tell whether torch's float32 convolutions on a GPU may round their factors to TF32 now: ours do as they do."""
    return torch.backends.cudnn.conv.fp32_precision == "tf32"


def product(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    out_size: Pair,
    stride: Pair,
    padding: Pair,
    activation: str,
    negative_slope: float,
    totals: Tensor | None = None,
) -> Tensor:
    """act(conv_transpose2d(x, weight) * scale + shift) in channels_last, for what ``takes_product``.

    scale and shift [CO] are float32. ``totals`` [at least 2 CO] float64, if given, receives the sums and sums of
    squares of the result, which has then neither scale, shift nor activation.
    """
    x, weight = x.contiguous(memory_format=torch.channels_last), weight.contiguous()
    shape = (x.shape[0], weight.shape[1], *out_size)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    core, conv = _extension.core(), (*stride, *padding)
    views = _last(x), _image(weight), _last(y)
    size = core.conv_transpose_workspace_bytes(*views, conv, _bind.execution(x))
    workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
    scale, shift = (None if t is None else t.contiguous() for t in (scale, shift))
    rows = [None if t is None else _bind.view(t, (len(t),)) for t in (scale, shift)]
    sums = None if totals is None else (totals.data_ptr(), _bind.DTYPES[totals.dtype], (2, shape[1]), (shape[1], 1))
    code, run = _bind.ACTIVATIONS[activation], _bind.execution(x, workspace)
    core.conv_transpose(*views[:2], *rows, views[2], sums, conv, code, negative_slope, rounds_to_tf32(), run)
    return y


def _last(x: Tensor) -> _bind.View:
    """Describe a channels_last tensor by the strides of its order, which torch need not show where a side is 1."""
    _, channels, height, width = x.shape
    strides = (height * width * channels, 1, width * channels, channels)
    return x.data_ptr(), _bind.DTYPES[x.dtype], tuple(x.shape), strides
