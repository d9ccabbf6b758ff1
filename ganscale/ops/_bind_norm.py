"""Glue between tensors and the core's kernels of batch statistics, affine map and activation; see ``_bind``.

Each function has its twin of the same name in ``reference_norm``. Numbers a channel are float32, or float64 where x
is.

N batch, C channels; O, I as in the core.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ganscale.ops import _bind, _extension, reference_norm
from ganscale.ops.reference_norm import MEAN, RSTD, SCALE, SHIFT

Running = tuple[Tensor, Tensor, float]  # mean, unbiased variance [C], and by how much they move towards the batch's


def _numbers(x: Tensor, first: int, count: int) -> _bind.View:
    """Describe ``count`` elements of a contiguous ``x`` from element ``first`` on, as one axis."""
    return x.data_ptr() + first * x.element_size(), _bind.DTYPES[x.dtype], (count,), (1,)


def _two_rows(x: Tensor, columns: int) -> _bind.View:
    return x.data_ptr(), _bind.DTYPES[x.dtype], (2, columns), (columns, 1)


def _optional(numbers_C: Tensor | None) -> _bind.View | None:
    return None if numbers_C is None else _numbers(numbers_C, 0, len(numbers_C))


def _rows(stats: Tensor, *rows: int) -> list[_bind.View]:
    channels = stats.shape[1]
    return [_numbers(stats, row * channels, channels) for row in rows]


def _workspace(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    return torch.empty(_extension.core().norm_workspace_bytes(*shape), dtype=torch.uint8, device=x.device)


def stats_like(x: Tensor) -> Tensor:
    """Return room for the statistics of ``x``: [rows of StatRow, C]."""
    return x.new_empty((6, x.shape[1]), dtype=_bind.accumulation(x.dtype))


def totals(x: Tensor) -> Tensor:
    """[2C + 1] float64: sums and sums of squares of ``x`` a channel, then the count; see ``reference_norm.totals``."""
    x, channels = _bind.dense(x), x.shape[1]
    totals = torch.full((2 * channels + 1,), x.numel() // max(1, channels), dtype=torch.float64, device=x.device)
    if not x.numel():
        return totals.zero_()
    shape = _bind.planes(x)
    workspace = _workspace(x, shape)
    run = _bind.execution(x, workspace)
    _extension.core().channel_moments(_bind.view(x, shape), _two_rows(totals, channels), run)
    return totals


def normalise(
    x: Tensor,
    totals: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor]:
    """(y, stats [6, C]) from the totals of all ranks; see ``reference_norm.normalise``."""
    x = _bind.dense(x)
    if not x.numel():
        return reference_norm.normalise(x, totals, gamma, beta, eps, activation, negative_slope)
    y, stats, shape = torch.empty_like(x), stats_like(x), _bind.planes(x)
    gamma, beta = (None if t is None else t.contiguous() for t in (gamma, beta))
    workspace = _workspace(x, shape)
    _extension.core().batch_norm_act(
        _bind.view(x, shape),
        _numbers(totals, 0, len(totals)),
        _optional(gamma),
        _optional(beta),
        eps,
        (stats.data_ptr(), _bind.DTYPES[stats.dtype], tuple(stats.shape), stats.stride()),
        _bind.view(y, shape),
        _bind.ACTIVATIONS[activation],
        negative_slope,
        _bind.execution(x, workspace),
    )
    return y, stats


def _rooms(x: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor | None, Tensor | None]:
    """Return totals with their count, and a workspace; on the CPU the core has its own."""
    if x.device.type == "cpu":
        return None, None
    totals = torch.full((2 * shape[1] + 1,), shape[0] * shape[2], dtype=torch.float64, device=x.device)
    return totals, _workspace(x, shape)


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def forward(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    activation: str,
    negative_slope: float,
    running: Running | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, stats [6, C]) by the statistics of this batch: ``normalise`` of ``totals`` in one call.

    ``running`` moves too: dense, of the dtype of the sums and on the CPU.
    """
    x = _bind.dense(x)
    if not x.numel():
        return normalise(x, totals(x), gamma, beta, eps, activation, negative_slope)
    y, stats, shape = torch.empty_like(x), stats_like(x), _bind.planes(x)
    gamma, beta = (None if t is None else t.contiguous() for t in (gamma, beta))
    sums, workspace = _rooms(x, shape)
    mean, variance, momentum = running or (None, None, 0.0)
    _extension.core().norm_forward(
        shape,
        _bind.DTYPES[x.dtype],
        x.data_ptr(),
        _pointer(sums),
        _pointer(gamma),
        _pointer(beta),
        stats.data_ptr(),
        y.data_ptr(),
        eps,
        _bind.ACTIVATIONS[activation],
        negative_slope,
        _pointer(mean),
        _pointer(variance),
        momentum,
        _bind.execution(x, workspace),
    )
    return y, stats


def backward(gy: Tensor, x: Tensor, stats: Tensor, activation: str, negative_slope: float) -> tuple[Tensor, Tensor]:
    """(gx, [2, C] gradients of gamma and beta): ``backward_input`` of ``backward_sums`` in one call."""
    x = _bind.dense(x)
    gx, gradients = torch.empty_like(x), stats.new_empty(2, x.shape[1])
    if not x.numel():
        return gx, gradients.zero_()
    gy, shape = _bind.laid_out_like(gy, x), _bind.planes(x)
    sums, workspace = _rooms(x, shape)
    _extension.core().norm_backward(
        shape,
        _bind.DTYPES[x.dtype],
        gy.data_ptr(),
        x.data_ptr(),
        stats.data_ptr(),
        _pointer(sums),
        gradients.data_ptr(),
        gx.data_ptr(),
        _bind.ACTIVATIONS[activation],
        negative_slope,
        _bind.execution(x, workspace),
    )
    return gx, gradients


def affine_act(
    x: Tensor, mean: Tensor | None, scale: Tensor, shift: Tensor, activation: str, negative_slope: float
) -> Tensor:
    """act((x - mean) * scale + shift) in the layout of ``x`` [N, C, ...]."""
    x = _bind.dense(x)
    y = torch.empty_like(x)
    if y.numel():
        shape = _bind.planes(x)
        mean, scale, shift = (None if t is None else t.contiguous() for t in (mean, scale, shift))
        workspace = _workspace(x, shape)
        maps = _optional(mean), _optional(scale), _optional(shift)
        run = _bind.execution(x, workspace)
        code = _bind.ACTIVATIONS[activation]
        _extension.core().affine_act(_bind.view(x, shape), *maps, _bind.view(y, shape), code, negative_slope, run)
    return y


def backward_sums(
    gy: Tensor, x: Tensor, stats: Tensor, activation: str, negative_slope: float
) -> tuple[Tensor, Tensor]:
    """([2C + 1] float64 sums and the local count, [2, C] gradients of gamma and beta)."""
    x, channels = _bind.dense(x), x.shape[1]
    totals = torch.full((2 * channels + 1,), x.numel() // max(1, channels), dtype=torch.float64, device=x.device)
    if not x.numel():
        return totals.zero_(), stats.new_zeros(2, channels)
    gradients, gy, shape = stats.new_empty(2, channels), _bind.laid_out_like(gy, x), _bind.planes(x)
    workspace = _workspace(x, shape)
    _extension.core().affine_act_backward_sums(
        _bind.view(gy, shape),
        _bind.view(x, shape),
        *_rows(stats, MEAN, SCALE, SHIFT, RSTD),
        _two_rows(totals, channels),
        _two_rows(gradients, channels),
        _bind.ACTIVATIONS[activation],
        negative_slope,
        _bind.execution(x, workspace),
    )
    return totals, gradients


def backward_input(
    gy: Tensor, x: Tensor, stats: Tensor, totals: Tensor | None, activation: str, negative_slope: float
) -> Tensor:
    """The gradient of x; ``totals`` None where the statistics were constants."""
    x = _bind.dense(x)
    gx = torch.empty_like(x)
    if gx.numel():
        gy, shape = _bind.laid_out_like(gy, x), _bind.planes(x)
        workspace = _workspace(x, shape)
        _extension.core().affine_act_backward(
            _bind.view(gy, shape),
            _bind.view(x, shape),
            *_rows(stats, MEAN, SCALE, SHIFT, RSTD),
            None if totals is None else _numbers(totals, 0, len(totals)),
            _bind.view(gx, shape),
            _bind.ACTIVATIONS[activation],
            negative_slope,
            _bind.execution(x, workspace),
        )
    return gx
