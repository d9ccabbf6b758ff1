"""The operators as torch sees them: schema, fake kernels, and derivatives up to second order.

Backward formulas use other operators of this file or plain torch, so they can be differentiated again. Two rules hold
throughout: gradients that are not there stay undefined (never zero tensors, which would cost whole convolutions
further up), and the piecewise linear activations have no derivative towards the output they were read from.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from ganscale.ops import _bind
from ganscale.ops._calls import at_once
from ganscale.ops.reference import per_sample

gp_interpolate = custom_op(
    "ganscale::gp_interpolate",
    _bind.interpolate,
    mutates_args=(),
    schema="(Tensor real, Tensor fake, Tensor eps) -> Tensor",
)
sample_norm2 = custom_op("ganscale::sample_norm2", _bind.sample_norm2, mutates_args=(), schema="(Tensor g) -> Tensor")
gp_penalty = custom_op(
    "ganscale::gp_penalty",
    _bind.gp_penalty,
    mutates_args=(),
    schema="(Tensor g, float center, bool one_sided) -> (Tensor, Tensor)",
)
bias_act = custom_op(
    "ganscale::bias_act",
    _bind.bias_act,
    mutates_args=(),
    schema="(Tensor x, Tensor? bias, str activation, float negative_slope) -> Tensor",
)
act_backward = custom_op(
    "ganscale::act_backward",
    _bind.act_backward,
    mutates_args=(),
    schema="(Tensor gy, Tensor y, str activation, float negative_slope) -> Tensor",
)
channel_sum = custom_op("ganscale::channel_sum", _bind.channel_sum, mutates_args=(), schema="(Tensor x) -> Tensor")


# --- interpolate -----------------------------------------------------------------------------------------------------


@gp_interpolate.register_fake
def _(real, fake, eps):
    return torch.empty_like(_bind.dense(real))


def _interpolate_context(ctx, inputs, output):
    real, fake, eps = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(eps, *((real, fake) if eps.requires_grad else ()))


def _interpolate_backward(ctx, g):
    if g is None:
        return None, None, None
    eps, *images = ctx.saved_tensors
    share = per_sample(eps, g)
    to_real, to_fake, to_eps = ctx.needs_input_grad
    return (
        share * g if to_real else None,
        (1 - share) * g if to_fake else None,
        ((images[0] - images[1]) * g).flatten(1).sum(1) if to_eps else None,
    )


gp_interpolate.register_autograd(_interpolate_backward, setup_context=_interpolate_context)


# --- per-sample norm and penalty -------------------------------------------------------------------------------------


def _empty_samples(g: Tensor) -> Tensor:
    return g.new_empty(g.shape[0], dtype=_bind.accumulation(g.dtype))


def _scaled(scale_N: Tensor, g: Tensor) -> Tensor:
    return (per_sample(scale_N, g) * g).to(g.dtype)


@sample_norm2.register_fake
def _(g):
    return _empty_samples(g)


def _norm2_context(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _norm2_backward(ctx, v):
    return None if v is None else _scaled(2 * v, *ctx.saved_tensors)


sample_norm2.register_autograd(_norm2_backward, setup_context=_norm2_context)


@gp_penalty.register_fake
def _(g, center, one_sided):
    return _empty_samples(g), _empty_samples(g)


def _penalty_context(ctx, inputs, output):
    g, ctx.center, ctx.one_sided = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(g, output[1])


def _penalty_backward(ctx, to_penalty, to_norm):
    """u = g (dP 2 (n - center) / n + dn / n), and 0 where n = 0 unless center is 0, where P = n^2 is smooth."""
    g, norm = ctx.saved_tensors
    zero = norm == 0
    inverse = torch.where(zero, 0, 1 / torch.where(zero, 1, norm))
    scale = None
    if to_penalty is not None and ctx.center == 0:
        scale = 2 * to_penalty
    elif to_penalty is not None:
        excess = norm - ctx.center
        scale = to_penalty * 2 * (excess.clamp(min=0) if ctx.one_sided else excess) * inverse
    if to_norm is not None:
        scale = to_norm * inverse if scale is None else scale + to_norm * inverse
    return None if scale is None else _scaled(scale, g), None, None


gp_penalty.register_autograd(_penalty_backward, setup_context=_penalty_context)


# --- bias and activation ---------------------------------------------------------------------------------------------


@bias_act.register_fake
def _(x, bias, activation, negative_slope):
    return torch.empty_like(_bind.dense(x))


def _bias_act_context(ctx, inputs, output):
    _, _, ctx.activation, ctx.negative_slope = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*(() if ctx.activation == "linear" else (output,)))


def _bias_act_backward(ctx, gy):
    if gy is None:
        return None, None, None, None
    slope, total = (_bind.act_backward, _bind.channel_sum) if at_once(gy) else (act_backward, channel_sum)
    gx = gy if ctx.activation == "linear" else slope(gy, *ctx.saved_tensors, ctx.activation, ctx.negative_slope)
    to_x, to_bias = ctx.needs_input_grad[:2]
    return gx if to_x else None, total(gx) if to_bias else None, None, None


bias_act.register_autograd(_bias_act_backward, setup_context=_bias_act_context)


class EagerBiasAct(torch.autograd.Function):
    """``bias_act`` without torch's dispatcher, which costs more than a small kernel."""

    @staticmethod
    def forward(ctx, *inputs):
        y = _bind.bias_act(*inputs)
        _bias_act_context(ctx, inputs, y)
        return y

    backward = staticmethod(_bias_act_backward)


@act_backward.register_fake
def _(gy, y, activation, negative_slope):
    return torch.empty_like(_bind.dense(y))


def _act_backward_context(ctx, inputs, output):
    gy, y, ctx.activation, ctx.negative_slope = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(y, *((gy,) if ctx.activation == "tanh" else ()))


def _act_backward_backward(ctx, ggx):
    if ggx is None:
        return None, None, None, None
    y, *gy = ctx.saved_tensors
    slope = _bind.act_backward if at_once(ggx) else act_backward
    to_gy, to_y = ctx.needs_input_grad[:2]
    return (
        slope(ggx, y, ctx.activation, ctx.negative_slope) if to_gy else None,
        -2 * y * gy[0] * ggx if to_y and gy else None,
        None,
        None,
    )


act_backward.register_autograd(_act_backward_backward, setup_context=_act_backward_context)


@channel_sum.register_fake
def _(x):
    return x.new_empty(x.shape[1])


def _channel_sum_context(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.shape = inputs[0].shape


def _channel_sum_backward(ctx, gs):
    return None if gs is None else gs.reshape(1, -1, *[1] * (len(ctx.shape) - 2)).expand(ctx.shape)


channel_sum.register_autograd(_channel_sum_backward, setup_context=_channel_sum_context)
