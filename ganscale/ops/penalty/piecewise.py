"""Ordinary autograd without its wasted half: piecewise linear activations whose second derivative is not there.

Differentiating a gradient once more goes through the derivative of every activation's derivative. For ReLU and
LeakyReLU that is zero, but torch's formulas return a tensor of zeros, and a whole backward pass is then run on it. Here
the same activations leave it undefined, and autograd skips what depends on it. All else is torch's own, so this is
exact for any critic: batch norm, smooth activations and all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ganscale.ops import _bind, _choice, _register, reference


class _Slope(torch.autograd.Function):
    """gy where y > 0, else slope * gy; linear in gy, and without a derivative in y."""

    @staticmethod
    def forward(ctx, gy: Tensor, y: Tensor, slope: float) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y)
        ctx.slope = slope
        if slope:
            return torch.ops.aten.leaky_relu_backward(gy, y, slope, True)
        return torch.ops.aten.threshold_backward(gy, y, 0)

    @staticmethod
    def backward(ctx, ggx: Tensor | None) -> tuple[Tensor | None, None, None]:
        return None if ggx is None else _Slope.apply(ggx, *ctx.saved_tensors, ctx.slope), None, None


class _PiecewiseLinear(torch.autograd.Function):
    """x where positive, else slope * x; its derivative is read off the output, which has the sign of x or is zero."""

    @staticmethod
    def forward(ctx, x: Tensor, slope: float, inplace: bool) -> Tensor:
        ctx.set_materialize_grads(False)
        y = F.leaky_relu(x, slope, inplace) if slope else F.relu(x, inplace)
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(y)
        ctx.slope = slope
        return y

    @staticmethod
    def backward(ctx, gy: Tensor | None) -> tuple[Tensor | None, None, None]:
        return None if gy is None else _Slope.apply(gy, *ctx.saved_tensors, ctx.slope), None, None


def piecewise_linear(x: Tensor, slope: float, inplace: bool, impl: str) -> Tensor:
    """x where positive, else slope * x (slope >= 0), by the compiled kernel where that pays."""
    activation = "leaky_relu" if slope else "relu"
    if not inplace and _choice.use_fused(impl, x, activation):
        return _register.bias_act(x, None, activation, slope)
    return _PiecewiseLinear.apply(x, slope, inplace)


def call(func: Callable, args: tuple, kwargs: dict, impl: str) -> object:
    """Call ``func``, or what stands in for it here."""
    swap = _swaps().get(func)
    result = swap(impl, *args, **kwargs) if swap else NotImplemented
    return func(*args, **kwargs) if result is NotImplemented else result


def _relu(impl: str, /, input: Tensor, inplace: bool = False) -> object:
    return piecewise_linear(input, 0.0, inplace, impl) if _fits(input, inplace) else NotImplemented


def _relu_in_place(impl: str, /, input: Tensor) -> object:
    return _relu(impl, input, True)


def _leaky_relu(impl: str, /, input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> object:
    if negative_slope < 0 or not _fits(input, inplace):
        return NotImplemented
    return piecewise_linear(input, float(negative_slope), inplace, impl)


def _leaky_relu_in_place(impl: str, /, input: Tensor, negative_slope: float = 0.01) -> object:
    return _leaky_relu(impl, input, negative_slope, True)


def _bias_act(impl: str, /, x: Tensor, bias: Tensor | None = None, **options: object) -> object:
    activation = options.get("activation")
    if activation not in ("relu", "leaky_relu") or not _fits(x) or options.get("impl") == "fused":
        return NotImplemented
    if _choice.use_fused(impl, x, activation):
        return NotImplemented
    slope = options.get("negative_slope", 0.2) if activation == "leaky_relu" else 0.0
    return piecewise_linear(reference.bias_act(x, bias, "linear", 0.0), slope, False, impl)


def _fits(x: object, inplace: bool = False) -> bool:
    """Tell whether a stand-in takes ``x``; in place, views and leaves are left to torch and its rules for them."""
    plain = type(x) is Tensor and x.dtype in _bind.DTYPES and x.layout == torch.strided
    return plain and not (inplace and (x._is_view() or x.is_leaf))


@functools.cache
def _swaps() -> dict[Callable, Callable]:
    from ganscale import ops  # which imports this file

    return {
        F.relu: _relu, torch.relu: _relu, Tensor.relu: _relu, F.leaky_relu: _leaky_relu, ops.bias_act: _bias_act,
        torch.relu_: _relu_in_place, Tensor.relu_: _relu_in_place, F.leaky_relu_: _leaky_relu_in_place,
    }  # fmt: skip


class PiecewiseMode(TorchFunctionMode):
    """Puts the activations of this file in the place of torch's, wherever they are called."""

    def __init__(self, impl: str) -> None:
        super().__init__()
        self.impl = impl

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {}, self.impl)
