"""Glue between tensors and the compiled core: layouts, pointers, streams, workspaces.

A tensor whose pointer is passed must outlive the call, so every converted tensor is bound to a name first and views
are taken from names only. Empty tensors never get here.

N samples, S elements of one sample, O outer, C channels, I inner.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ganscale.ops import _extension

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
ACTIVATIONS = {"linear": 0, "relu": 1, "leaky_relu": 2, "tanh": 3}

View = tuple[int, int, tuple[int, ...], tuple[int, ...]]
Exec = tuple[int, int, int, int, int]


def channels_last(x: Tensor) -> bool:
    """Tell whether ``x`` is dense with the channels innermost (and not also plainly contiguous)."""
    if x.is_contiguous() or x.ndim not in (4, 5):
        return False
    return x.is_contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def dense(x: Tensor) -> Tensor:
    """Return ``x`` where it is contiguous or channels_last, else a contiguous copy."""
    return x if x.is_contiguous() or channels_last(x) else x.contiguous()


def laid_out_like(x: Tensor, like: Tensor) -> Tensor:
    """Return ``x`` in the memory layout of the dense tensor ``like`` of the same shape."""
    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)


def accumulation(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums over ``dtype`` are kept: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def planes(x: Tensor) -> tuple[int, int, int]:
    """Fold the axes of a dense ``x`` [N, C, ...] into (O, C, I) in memory order."""
    rest = math.prod(x.shape[2:])
    return (x.shape[0] * rest, x.shape[1], 1) if channels_last(x) else (x.shape[0], x.shape[1], rest)


def view(x: Tensor, shape: tuple[int, ...]) -> View:
    """Describe the memory of a dense ``x`` under a folded shape."""
    assert math.prod(shape) == x.numel() > 0, (shape, x.shape)
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return x.data_ptr(), DTYPES[x.dtype], shape, tuple(reversed(strides))


def rows(x: Tensor) -> View:
    """Describe a dense ``x`` [N, ...] as [N, S]."""
    return view(x, (x.shape[0], x.numel() // x.shape[0]))


def flat(x: Tensor) -> View:
    """Describe a dense ``x`` as one run of elements, [1, 1, I]."""
    return view(x, (1, 1, x.numel()))


def execution(x: Tensor, workspace: Tensor | None = None) -> Exec:
    """Say where a call runs: the device and current stream of ``x``, torch's thread count, the scratch memory."""
    scratch = (0, 0) if workspace is None else (workspace.data_ptr(), workspace.numel())
    if x.device.type == "cpu":
        return -1, torch.get_num_threads(), 0, *scratch
    return x.device.index, 1, torch.cuda.current_stream(x.device).cuda_stream, *scratch


def interpolate(real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    """eps * real + (1 - eps) * fake in the layout of ``real``; see ``reference.interpolate``."""
    real = dense(real)
    out = torch.empty_like(real)
    if out.numel():
        fake, eps = laid_out_like(fake, real), eps.contiguous()
        run = execution(real)
        _extension.core().interpolate(rows(real), rows(fake), view(eps, (eps.shape[0],)), rows(out), run)
    return out


def _sample_workspace(g: Tensor) -> Tensor:
    size = _extension.core().sample_workspace_bytes(g.shape[0], g.numel() // g.shape[0])
    return torch.empty(size, dtype=torch.uint8, device=g.device)


def sample_norm2(g: Tensor) -> Tensor:
    """[N] sums of squares of ``g`` [N, ...], in the accumulation type."""
    g = dense(g)
    squared = torch.zeros(g.shape[0], dtype=accumulation(g.dtype), device=g.device)
    if g.numel():
        workspace = _sample_workspace(g)
        _extension.core().sample_norm2(rows(g), view(squared, (g.shape[0],)), execution(g, workspace))
    return squared


def gp_penalty(g: Tensor, center: float, one_sided: bool) -> tuple[Tensor, Tensor]:
    """[N] penalties and [N] norms of ``g`` [N, ...]; see ``reference.gp_penalty``."""
    g = dense(g)
    norm = torch.zeros(g.shape[0], dtype=accumulation(g.dtype), device=g.device)
    penalty = torch.full_like(norm, 0.0 if one_sided else center * center)
    if g.numel():
        workspace = _sample_workspace(g)
        shape = (g.shape[0],)
        run = execution(g, workspace)
        _extension.core().gp_penalty(rows(g), view(penalty, shape), view(norm, shape), center, one_sided, run)
    return penalty, norm


def bias_act(x: Tensor, bias: Tensor | None, activation: str, negative_slope: float) -> Tensor:
    """act(x + bias) in the layout of ``x`` [N, C, ...]; see ``reference.bias_act``."""
    x = dense(x)
    y = torch.empty_like(x)
    if y.numel():
        core, code, run = _extension.core(), ACTIVATIONS[activation], execution(x)
        if bias is None:
            core.bias_act(flat(x), None, flat(y), code, negative_slope, run)
        else:
            bias, shape = bias.contiguous(), planes(x)
            core.bias_act(view(x, shape), view(bias, (shape[1],)), view(y, shape), code, negative_slope, run)
    return y


def act_backward(gy: Tensor, y: Tensor, activation: str, negative_slope: float) -> Tensor:
    """gy * act'(y), in the layout of ``y``, where the derivative is read off the output ``y``."""
    y = dense(y)
    gx = torch.empty_like(y)
    if gx.numel():
        gy = laid_out_like(gy, y)
        code, run = ACTIVATIONS[activation], execution(y)
        _extension.core().act_backward(flat(gy), flat(y), flat(gx), code, negative_slope, run)
    return gx


def channel_sum(x: Tensor) -> Tensor:
    """[C] sums of ``x`` [N, C, ...] over all axes but the channels, in a fixed order."""
    x = dense(x)
    total = torch.zeros(x.shape[1], dtype=x.dtype, device=x.device)
    if x.numel():
        core, shape = _extension.core(), planes(x)
        workspace = torch.empty(core.channel_sum_workspace_bytes(*shape), dtype=torch.uint8, device=x.device)
        core.channel_sum(view(x, shape), view(total, (shape[1],)), execution(x, workspace))
    return total
