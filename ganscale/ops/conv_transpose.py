"""Transposed convolution with what follows it in a generator: bias or batch norm, and the activation.

Up to four output channels have a kernel of their own. More are oneDNN's or cuDNN's, through torch, and one pass of ours
does the rest; but where ``impl="fused"`` is asked for on a GPU, images in channels_last are multiplied by a kernel of
ours whose last step does that pass's work. N batch, C channels, H height, W width, K kernel side.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.library import custom_op

from ganscale.errors import UserError
from ganscale.ops import _bind, _bind_conv, _check, _choice, _products, _register, norm, reference_conv
from ganscale.ops._bind_conv import few as conv_transpose_few
from ganscale.ops._calls import LARGEST, Pair, at_once, cast_once, is_plain, pair

__all__ = ["conv_transpose_act", "conv_transpose_few", "conv_transpose_norm_act"]

FEW_CHANNELS = 4  # kFewChannels of the core
IN_PLACE = {
    "linear": lambda z, _: z,
    "relu": lambda z, _: torch.relu_(z),
    "leaky_relu": torch.nn.functional.leaky_relu_,
    "tanh": lambda z, _: torch.tanh_(z),
}

Reduce = Callable[[Tensor], Tensor]

# --- bias and activation ---------------------------------------------------------------------------------------------


def _out_size(x: Tensor, weight: Tensor, stride: Pair, padding: Pair, output_padding: Pair) -> Pair:
    sides = zip(x.shape[2:], weight.shape[2:], stride, padding, output_padding, strict=True)
    height, width = ((side - 1) * step - 2 * pad + kernel + extra for side, kernel, step, pad, extra in sides)
    return height, width


def is_few(x: Tensor, weight: Tensor) -> bool:
    """Tell whether the kernel for few output channels may take these."""
    return weight.shape[1] <= FEW_CHANNELS and max(*x.shape[2:], *weight.shape[2:]) <= LARGEST


def _ours(x: Tensor, weight: Tensor, impl: str) -> bool:
    """Tell whether the product itself is a kernel of ours: asked for by name, since cuDNN's may be faster."""
    asked = _choice.resolve(impl) == "fused" and weight.shape[1] > FEW_CHANNELS and not _choice.is_transformed()
    return asked and _bind_conv.takes_product(x, weight) and not _choice.obstacle(x.device)


def _multiplies(impl: str, x: Tensor, weight: Tensor) -> bool:
    """Tell whether a product of matrices takes at least the weight's gradient from torch."""
    pixels = x.shape[2] * x.shape[3]
    return _choice.resolve(impl) != "reference" and _products.pays("weights", x, pixels, weight.shape)


def _forward(x, weight, bias, stride, padding, output_padding, activation, negative_slope, ours):
    stride, padding, output_padding = tuple(stride), tuple(padding), tuple(output_padding)
    size = _out_size(x, weight, stride, padding, output_padding)
    if is_few(x, weight):
        return conv_transpose_few(x, weight, bias, size, stride, padding, activation, negative_slope)
    if ours:
        shift = None if bias is None else bias.float()
        return _bind_conv.product(x, weight, None, shift, size, stride, padding, activation, negative_slope)
    z = _products.transpose(x, weight, size, stride, padding) if bias is None else None
    if z is None:
        z = torch.conv_transpose2d(x, weight, bias, stride, padding, output_padding)
    return IN_PLACE[activation](z, negative_slope)


_conv_transpose_act = custom_op(
    "ganscale::conv_transpose_act",
    _forward,
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] output_padding, "
    "str activation, float negative_slope, bool ours) -> Tensor",
)


@_conv_transpose_act.register_fake
def _(x, weight, bias, stride, padding, output_padding, activation, negative_slope, ours):
    if not is_few(x, weight):
        return torch.conv_transpose2d(x, weight, bias, stride, padding, output_padding)
    x = _bind.dense(x)
    format_ = torch.channels_last if _bind.channels_last(x) else torch.contiguous_format
    shape = (x.shape[0], weight.shape[1], *_out_size(x, weight, stride, padding, output_padding))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=format_)


def _context(ctx, inputs, output):
    x, weight, _, *ctx.conv, ctx.activation, ctx.negative_slope, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, output)


def _gradients(ctx, gy):
    if gy is None:
        return (None,) * 9
    x, weight, y = ctx.saved_tensors
    to_bias = ctx.needs_input_grad[2]
    slope, total = _register.act_backward, _register.channel_sum
    if at_once(gy):
        slope, total = _bind.act_backward, _bind.channel_sum
    gz = gy if ctx.activation == "linear" else slope(gy, y, ctx.activation, ctx.negative_slope)
    return *_product_gradients(ctx, gz, x, weight), total(gz) if to_bias else None, *(None,) * 6


def _product_gradients(ctx, gz: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Those of x and weight."""
    to_x, to_weight = ctx.needs_input_grad[:2]
    stride, padding, output_padding = ctx.conv
    gx = gw = None
    if at_once(gz):
        conv = tuple(stride), tuple(padding)
        gx = _products.convolve(gz, weight, None, *conv) if to_x else None
        gw = _products.weight_gradient(gz, x, weight.shape, *conv) if to_weight else None
    how = stride, padding, [1, 1], True, output_padding
    return _products.completed((gx, gw), (to_x, to_weight), gz, x, weight, *how)


_conv_transpose_act.register_autograd(_gradients, setup_context=_context)


class _Eager(torch.autograd.Function):
    """The same without torch's dispatcher, which costs more than a small kernel."""

    @staticmethod
    def forward(ctx, *inputs):
        y = _forward(*inputs)
        _context(ctx, inputs, y)
        return y

    backward = staticmethod(_gradients)


# --- statistics on the way out ---------------------------------------------------------------------------------------


def _with_totals(x, weight, stride, padding, output_padding):
    size = _out_size(x, weight, stride, padding, output_padding)
    channels = weight.shape[1]
    totals = torch.full((2 * channels + 1,), len(x) * size[0] * size[1], dtype=torch.float64, device=x.device)
    where = size, tuple(stride), tuple(padding)
    return _bind_conv.product(x, weight, None, None, *where, "linear", 0.0, totals), totals


_conv_transpose_totals = custom_op(
    "ganscale::conv_transpose_totals",
    _with_totals,
    mutates_args=(),
    schema="(Tensor x, Tensor weight, int[] stride, int[] padding, int[] output_padding) -> (Tensor, Tensor)",
)


@_conv_transpose_totals.register_fake
def _(x, weight, stride, padding, output_padding):
    z = torch.conv_transpose2d(x, weight, None, stride, padding, output_padding)
    return z, x.new_empty(2 * weight.shape[1] + 1, dtype=torch.float64)


def _totals_context(ctx, inputs, output):
    x, weight, *ctx.conv = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight)


def _totals_gradients(ctx, gz, _):
    found = (None, None) if gz is None else _product_gradients(ctx, gz, *ctx.saved_tensors)
    return *found, None, None, None


_conv_transpose_totals.register_autograd(_totals_gradients, setup_context=_totals_context)


# --- public ----------------------------------------------------------------------------------------------------------


def _checked(x, weight, bias, stride, padding, output_padding) -> tuple[Pair, Pair, Pair]:
    _check.floating("x", x, least_axes=2)
    _check.floating("weight", weight, least_axes=2)
    if x.ndim != 4 or weight.ndim != 4:
        got = f"{x.ndim} and {weight.ndim} axes"
        raise UserError("x and weight", "be [N, C, H, W] and [C, O, KH, KW]", got, "add the missing axes")
    _check.alike("weight", weight, "x", x)
    if weight.shape[0] != x.shape[1]:
        got = f"{weight.shape[0]} for x with {x.shape[1]}"
        raise UserError("weight", "have as many input channels (axis 0) as x has channels", got, "transpose it")
    if bias is not None:
        _check.floating("bias", bias, least_axes=1)
        _check.alike("bias", bias, "x", x)
        _check.shaped("bias", bias, weight.shape[1:2], "one number an output channel")
    stride, padding = pair("stride", stride, 1), pair("padding", padding, 0)
    output_padding = pair("output_padding", output_padding, 0)
    if any(extra >= step for extra, step in zip(output_padding, stride, strict=True)):
        raise UserError("output_padding", f"be less than stride {stride}", output_padding, "make it smaller")
    size = _out_size(x, weight, stride, padding, output_padding)
    if min(size) < 1 or min(weight.shape[1:]) < 1:
        got, remedy = f"{size[0]}x{size[1]}", "use less padding or a larger input"
        raise UserError("the output", "be at least 1x1 of 1 channel", got, remedy)
    return stride, padding, output_padding


def conv_transpose_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    output_padding: int | Pair = 0,
    activation: str = "relu",
    negative_slope: float = 0.2,
    impl: str = "auto",
) -> Tensor:
    """Return act(conv_transpose2d(x, weight) + bias) for x [N, C, H, W], weight [C, O, KH, KW], bias [O].

    Groups and dilation are 1; sizes as torch.nn.functional.conv_transpose2d has them. ``activation`` is "linear",
    "relu", "leaky_relu" or "tanh". Twice differentiable in x, weight and bias; the piecewise linear activations have no
    second derivative at all, rather than zeros. Under autocast x, weight and bias are cast as torch casts them for a
    convolution. Raises UserError for shapes, dtypes or numbers that do not fit together.
    """
    _check.activation(activation, negative_slope)
    with cast_once(x, weight, bias) as (x, weight, bias):
        conv = _checked(x, weight, bias, stride, padding, output_padding)
        fused = _choice.use_fused(impl, x, "conv_transpose_few" if is_few(x, weight) else "conv_transpose_act")
        how = activation, float(negative_slope)
        if not fused or not x.numel():
            return reference_conv.conv_transpose_act(x, weight, bias, *conv, *how)
        run = _Eager.apply if is_plain(x) else _conv_transpose_act
        return run(x, weight, bias, *conv, *how, _ours(x, weight, impl))


def conv_transpose_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    output_padding: int | Pair = 0,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "relu",
    negative_slope: float = 0.2,
    sum_over_ranks: Reduce | None = None,
    impl: str = "auto",
) -> Tensor:
    """Return act(batch_norm(conv_transpose2d(x, weight) + bias)), running statistics and all; see ``norm_act``.

    x [N, C, H, W], weight [C, O, KH, KW], the rest [O]. Batch statistics take away what a bias adds, so in training it
    only moves the running mean and its gradient is exactly 0. gamma, beta and the statistics stay float32 under
    autocast. Raises UserError as ``conv_transpose_act`` and ``norm_act`` do.
    """
    _check.activation(activation, negative_slope)
    with cast_once(x, weight, bias) as (x, weight, bias):
        conv = _checked(x, weight, bias, stride, padding, output_padding)
        known = not training and running_mean is not None and running_var is not None
        totals, ours = None, _ours(x, weight, impl)
        if ours and known and not torch.is_grad_enabled():
            scale, shift = _folded(weight, bias, gamma, beta, running_mean, running_var, eps)
            where = _out_size(x, weight, *conv), *conv[:2]
            return _bind_conv.product(x, weight, scale, shift, *where, activation, float(negative_slope))
        if ours and not known:
            z, totals = _conv_transpose_totals(x, weight, *conv)
        elif is_plain(x) and _multiplies(impl, x, weight):
            z = _Eager.apply(x, weight, None, *conv, "linear", 0.0, False)
        else:
            z = torch.conv_transpose2d(x, weight, None, *conv)
        if bias is not None:
            bias = bias.to(_bind.accumulation(x.dtype))
        return norm.norm_act(
            z,
            gamma,
            beta,
            running_mean,
            running_var,
            offset=bias,
            training=training,
            momentum=momentum,
            eps=eps,
            activation=activation,
            negative_slope=negative_slope,
            sum_over_ranks=sum_over_ranks,
            totals=totals,
            impl=impl,
        )


def _folded(weight, bias, gamma, beta, running_mean, running_var, eps) -> tuple[Tensor, Tensor]:
    """(scale, shift) [O] of batch norm with known statistics after weight [C, O, KH, KW] and bias."""
    mean, scale, shift = norm.constants(weight, gamma, beta, None, running_mean, running_var, eps)  # its axis 1 is O
    return scale, torch.addcmul(shift, -mean if bias is None else bias.to(mean.dtype) - mean, scale)
