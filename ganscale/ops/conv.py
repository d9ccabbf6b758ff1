"""A critic's block: convolution, bias, activation, with the gradients that a critic needs computed the shorter way.

The convolution is oneDNN's or cuDNN's, through torch, but on the CPU small images of many channels are matrix products
(``_products``), and the gradient towards an image of up to four channels has a kernel of its own. What follows is one
pass. N batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ganscale.errors import UserError
from ganscale.ops import _bind, _check, _choice, _products, _register
from ganscale.ops._calls import Pair, at_once, is_plain
from ganscale.ops.conv_transpose import conv_transpose_few, is_few


class ConvAct(torch.autograd.Function):
    """act(conv2d(x, weight) + bias) as one node of the graph, which keeps x, the weight and the result."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, activation, negative_slope):
        y = _convolve_act(x, weight, bias, stride, padding, activation, negative_slope)
        ctx.conv, ctx.act = (stride, padding), (activation, negative_slope)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, y)
        return y

    @staticmethod
    def backward(ctx, gy):
        if gy is None:
            return (None,) * 7
        x, weight, y = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
        now = at_once(gy)
        run = _bind if now else _register  # the one at once, the other with derivatives of its own
        gz = gy if ctx.act[0] == "linear" else run.act_backward(gy, y, *ctx.act)
        gx = _towards_image(gz, x, weight, *ctx.conv) if now and to_x else None
        gw = _products.weight_gradient(x, gz, weight.shape, *ctx.conv) if now and to_weight else None
        how = *ctx.conv, [1, 1], False, [0, 0]
        gx, gw = _products.completed((gx, gw), (to_x, to_weight), gz, x, weight, *how)
        return gx, gw, run.channel_sum(gz) if to_bias else None, None, None, None, None


def _convolve_act(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, activation: str, negative_slope: float
) -> Tensor:
    z = _products.convolve(x, weight, None, stride, padding)
    if z is None and activation == "leaky_relu" and _products.onednn_takes(x):  # its relu would drop a NaN
        how = list(padding), list(stride), [1, 1], 1, "leaky_relu", [negative_slope], ""
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *how)
    if z is None:
        z = torch.conv2d(x, weight, None, stride, padding)
    return _bind.bias_act(z, bias, activation, negative_slope)


def _towards_image(gz: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor | None:
    """The gradient of x where one of ours is faster than torch's, else None."""
    size = tuple(x.shape[2:])
    if is_few(gz, weight) and gz.device.type == "cpu" and gz.numel():
        return conv_transpose_few(gz, weight, None, size, stride, padding, "linear", 0.0)
    return _products.transpose(gz, weight, size, stride, padding)


def takes(x: Tensor, impl: str) -> bool:
    """Tell whether ``ConvAct`` may stand for torch's operators: it has kernels for x, and nobody watches or traces."""
    return bool(x.numel()) and is_plain(x) and _choice.use_fused(impl, x, "conv_act")


def check(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> None:
    """Raise UserError for what cannot be convolved."""
    _check.floating("x", x, least_axes=2)
    _check.floating("weight", weight, least_axes=2)
    if x.ndim != 4 or weight.ndim != 4:
        got = f"{x.ndim} and {weight.ndim} axes"
        raise UserError("x and weight", "be [N, C, H, W] and [O, C, KH, KW]", got, "add the missing axes")
    _check.alike("weight", weight, "x", x)
    if weight.shape[1] != x.shape[1]:
        got = f"{weight.shape[1]} for x with {x.shape[1]}"
        raise UserError("weight", "have as many input channels (axis 1) as x has channels", got, "transpose it")
    if bias is not None:
        _check.floating("bias", bias, least_axes=1)
        _check.alike("bias", bias, "x", x)
        _check.shaped("bias", bias, weight.shape[:1], "one number an output channel")
    if any(side + 2 * pad < kernel for side, pad, kernel in zip(x.shape[2:], padding, weight.shape[2:], strict=True)):
        got = f"{x.shape[2]}x{x.shape[3]} for a kernel of {weight.shape[2]}x{weight.shape[3]}"
        raise UserError("x", "be at least as large as the kernel, padding included", got, "pad it")
