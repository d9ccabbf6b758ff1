"""Normalisation by batch statistics, affine map and activation in two passes each way (Ioffe and Szegedy 2015).

The operators as torch sees them, and the public functions. Numbers a channel (statistics,
gamma, beta) are float32, or float64 for float64 x, whatever x is. Ranks that share a batch add up float64 totals
between the passes: one collective of [2C + 1] forward, one of [2C] backward.

N batch, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.library import custom_op

from ganscale.errors import UserError
from ganscale.ops import _bind, _bind_norm, _check, _choice, reference_norm
from ganscale.ops._calls import at_once, is_plain
from ganscale.ops.reference_norm import MEAN, UNBIASED, VARIANCE

Reduce = Callable[[Tensor], Tensor]

# --- one rank: two operators -----------------------------------------------------------------------------------------


_batch_norm_act = custom_op(
    "ganscale::batch_norm_act",
    _bind_norm.forward,
    mutates_args=(),
    schema="(Tensor x, Tensor? gamma, Tensor? beta, float eps, str activation, float negative_slope) "
    "-> (Tensor, Tensor)",
)
_batch_norm_act_backward = custom_op(
    "ganscale::batch_norm_act_backward",
    _bind_norm.backward,
    mutates_args=(),
    schema="(Tensor gy, Tensor x, Tensor stats, str activation, float negative_slope) -> (Tensor, Tensor)",
)


@_batch_norm_act.register_fake
def _(x, gamma, beta, eps, activation, negative_slope):
    return torch.empty_like(_bind.dense(x)), _bind_norm.stats_like(x)


@_batch_norm_act_backward.register_fake
def _(gy, x, stats, activation, negative_slope):
    return torch.empty_like(_bind.dense(x)), stats.new_empty(2, x.shape[1])


def _context(ctx, inputs, output):
    x, gamma, beta, *how = inputs
    ctx.how, ctx.reduce, ctx.fused = tuple(how), None, True
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, gamma, beta, output[1])


def _gradients(ctx, gy, _):
    """The gradients of x, gamma, beta and of nothing else, for one rank or several."""
    if gy is None and ctx.reduce is None:
        return (None,) * 6
    x, gamma, beta, stats, *totals = ctx.saved_tensors
    if gy is None:  # the other ranks wait for this one's share
        gy = torch.zeros_like(x)
    if torch.is_grad_enabled():
        found = reference_norm.differentiable_backward(gy, x, gamma, beta, *ctx.how, ctx.reduce)
    elif ctx.reduce is None:
        gx, both = (_bind_norm.backward if at_once(gy) else _batch_norm_act_backward)(gy, x, stats, *ctx.how[1:])
        found = gx, *both.unbind()
    else:
        pieces = _bind_norm if ctx.fused else reference_norm
        both, gradients = pieces.backward_sums(gy, x, stats, *ctx.how[1:])
        both = torch.cat([ctx.reduce(both[: 2 * x.shape[1]]), totals[0][-1:]])
        found = pieces.backward_input(gy, x, stats, both, *ctx.how[1:]), gradients[0], gradients[1]
    wanted = (g if want else None for g, want in zip(found, ctx.needs_input_grad, strict=False))
    return *wanted, None, None, None


_batch_norm_act.register_autograd(_gradients, setup_context=_context)


class _Eager(torch.autograd.Function):
    """The same without torch's dispatcher, which costs more than a small kernel; and for several ranks.

    ``reduce`` sums a float64 tensor over the ranks that share the batch, once each way; None for one rank. ``fused``
    chooses between the kernels and their twins. ``found`` are this rank's totals where the layer before has summed
    them up already. ``running`` are statistics that move too.
    """

    @staticmethod
    def forward(ctx, x, gamma, beta, how, reduce, fused, found, running):
        pieces = _bind_norm if fused else reference_norm
        totals = ()
        if reduce is not None:
            totals = (reduce(pieces.totals(x) if found is None else found),)
            y, stats = pieces.normalise(x, *totals, gamma, beta, *how)
        elif found is not None:
            y, stats = pieces.normalise(x, found, gamma, beta, *how)
        else:
            y, stats = _bind_norm.forward(x, gamma, beta, *how, running)
        ctx.how, ctx.reduce, ctx.fused = how, reduce, fused
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(stats)
        ctx.save_for_backward(x, gamma, beta, stats, *totals)
        return y, stats

    @staticmethod
    def backward(ctx, gy, gstats):
        return *_gradients(ctx, gy, gstats), None, None, None


# --- constant statistics ---------------------------------------------------------------------------------------------

_affine_act = custom_op(
    "ganscale::affine_act",
    _bind_norm.affine_act,
    mutates_args=(),
    schema="(Tensor x, Tensor? mean, Tensor scale, Tensor shift, str activation, float negative_slope) -> Tensor",
)


def _affine_backward(gy, x, mean, scale, shift, activation, negative_slope, sums):
    one = torch.ones_like(scale)
    stats = torch.stack([torch.zeros_like(scale) if mean is None else mean, scale, shift, one])
    gx = _bind_norm.backward_input(gy, x, stats, None, activation, negative_slope)
    return gx, _bind_norm.backward_sums(gy, x, stats, activation, negative_slope)[1] if sums else stats.new_empty(0)


_affine_act_backward = custom_op(
    "ganscale::affine_act_backward",
    _affine_backward,
    mutates_args=(),
    schema="(Tensor gy, Tensor x, Tensor? mean, Tensor scale, Tensor shift, str activation, float negative_slope, "
    "bool sums) -> (Tensor, Tensor)",
)


@_affine_act.register_fake
def _(x, mean, scale, shift, activation, negative_slope):
    return torch.empty_like(_bind.dense(x))


@_affine_act_backward.register_fake
def _(gy, x, mean, scale, shift, activation, negative_slope, sums):
    return torch.empty_like(_bind.dense(x)), scale.new_empty((2, x.shape[1]) if sums else (0,))


def _affine_context(ctx, inputs, output):
    *tensors, ctx.activation, ctx.negative_slope = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _differentiable_affine(gy, x, mean, scale, shift, activation, negative_slope):
    v, g = reference_norm.wide(x), reference_norm.wide(gy)
    centred = v if mean is None else v - reference_norm.along(mean, x)
    z = centred * reference_norm.along(scale, x) + reference_norm.along(shift, x)
    g = reference_norm.slope_of(z, g, activation, negative_slope)
    gx = (g * reference_norm.along(scale, x)).to(x.dtype)
    return gx, reference_norm.sums(g * centred), reference_norm.sums(g)


def _affine_gradients(ctx, gy):
    if gy is None:
        return (None,) * 6
    tensors, how = ctx.saved_tensors, (ctx.activation, ctx.negative_slope)
    to_x, _, to_scale, to_shift = ctx.needs_input_grad[:4]
    if torch.is_grad_enabled():
        gx, of_scale, of_shift = _differentiable_affine(gy, *tensors, *how)
    else:
        run = _affine_backward if at_once(gy) else _affine_act_backward
        gx, both = run(gy, *tensors, *how, to_scale or to_shift)
        of_scale, of_shift = (both[0], both[1]) if both.ndim == 2 else (None, None)
    return gx if to_x else None, None, of_scale if to_scale else None, of_shift if to_shift else None, None, None


_affine_act.register_autograd(_affine_gradients, setup_context=_affine_context)


# --- public ----------------------------------------------------------------------------------------------------------


def _number_a_channel(what: str, numbers_C: Tensor | None, x: Tensor, *, any_float: bool = False) -> Tensor | None:
    """Require [C] numbers of the dtype of x or of its sums, and return them in the latter.

    With ``any_float`` they may be wider or narrower, as statistics that a module keeps.
    """
    if numbers_C is None:
        return None
    dtype = _bind.accumulation(x.dtype)
    if not (isinstance(numbers_C, Tensor) and numbers_C.dtype == dtype and numbers_C.shape == x.shape[1:2]):
        _check.floating(what, numbers_C, least_axes=1)
        _check.shaped(what, numbers_C, x.shape[1:2], "one number a channel")
        if numbers_C.dtype not in (dtype, x.dtype) and not any_float:
            _check.alike(what, numbers_C, "x", x)
    if numbers_C.device != x.device:
        raise UserError(f"{what}.device", f"equal x.device ({x.device})", str(numbers_C.device), "move one of them")
    return numbers_C if numbers_C.dtype == dtype else numbers_C.to(dtype)


def constants(x: Tensor, gamma, beta, offset, running_mean, running_var, eps: float) -> tuple[Tensor | None, ...]:
    """Return (mean, scale, shift) [C] of batch norm with known statistics, of x [N, C, ...] + offset; checks them."""
    _check.eps(eps)
    mean = _number_a_channel("running_mean", running_mean, x, any_float=True)
    rstd = (_number_a_channel("running_var", running_var, x, any_float=True) + eps).rsqrt()
    gamma, beta = _number_a_channel("gamma", gamma, x), _number_a_channel("beta", beta, x)
    offset = _number_a_channel("offset", offset, x)
    scale = rstd if gamma is None else gamma * rstd
    shift = torch.zeros_like(rstd) if beta is None else beta
    return mean.detach(), scale, shift if offset is None else shift + offset * scale


def channel_moments(x: Tensor, *, impl: str = "auto") -> Tensor:
    """Return [2, C] float64 sums and sums of squares of x [N, C, ...] over all axes but the channels.

    Ranks that share a batch add these up. Not differentiable. A mean far from 0 costs no accuracy.
    """
    _check.floating("x", x, least_axes=2)
    with torch.no_grad():
        if _choice.use_fused(impl, x, "channel_moments"):
            return _bind_norm.totals(x)[:-1].reshape(2, -1)
        return reference_norm.channel_moments(x)


def affine_act(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    mean: Tensor | None = None,
    activation: str = "linear",
    negative_slope: float = 0.2,
    impl: str = "auto",
) -> Tensor:
    """Return act((x - mean) * scale + shift) for x [N, C, ...]: batch norm with known statistics, or AdaIN.

    ``scale`` and ``shift`` are [C], or [N, C] (one a sample and channel); ``mean`` [C] is a constant, 0 by default.
    They are float32 (float64 for float64 x), or of the dtype of x. The result has the dtype and layout of x.
    Differentiable twice in x, scale and shift. Raises UserError for shapes or dtypes that do not fit.
    """
    _check.floating("x", x, least_axes=2)
    _check.activation(activation, negative_slope)
    mean = _number_a_channel("mean", mean, x)
    if isinstance(scale, Tensor) and scale.ndim == 2 and scale.shape == x.shape[:2]:
        _check.floating("shift", shift, least_axes=1)
        _check.shaped("shift", shift, scale.shape, "that of scale")
        flat = x.reshape(1, -1, *x.shape[2:])
        mean = None if mean is None else mean.expand(scale.shape).reshape(-1)
        how = {"mean": mean, "activation": activation, "negative_slope": negative_slope, "impl": impl}
        return affine_act(flat, scale.reshape(-1), shift.reshape(-1), **how).reshape(x.shape)
    scale, shift = _number_a_channel("scale", scale, x), _number_a_channel("shift", shift, x)
    mean = None if mean is None else mean.detach()
    fused = _choice.use_fused(impl, x, "affine_act")
    run = _affine_act if fused else reference_norm.affine_act
    return run(x, mean, scale, shift, activation, float(negative_slope))


def _by_batch(x, gamma, beta, eps, activation, negative_slope, reduce, impl, totals=None, running=None):
    """(y, statistics by ``StatRow``) of the batch that all ranks share; None for those where ``running`` has moved."""
    _check.floating("x", x, least_axes=2)
    _check.activation(activation, negative_slope)
    _check.eps(eps)
    gamma, beta = _number_a_channel("gamma", gamma, x), _number_a_channel("beta", beta, x)
    how = float(eps), activation, float(negative_slope)
    count = x.numel() // max(1, x.shape[1])
    if reduce is None and count == 1:
        got, remedy = f"shape {tuple(x.shape)}", "use a larger batch, or eval mode"
        raise UserError("x", "hold more than one value a channel to have batch statistics", got, remedy)
    fused = _choice.use_fused(impl, x, "batch_norm_act")
    if reduce is None and count == 0:  # nothing to take statistics of; gradients of zeros all the same
        zero = x.new_zeros(x.shape[1], dtype=_bind.accumulation(x.dtype))
        gamma, beta = zero + 1 if gamma is None else gamma, zero if beta is None else beta
        y = reference_norm.affine_act(x, None, gamma, beta, *how[1:])
        return y, {MEAN: zero, VARIANCE: zero, UNBIASED: zero}
    if reduce is None and not fused:
        y, mean, variance = reference_norm.batch_norm_act(x, gamma, beta, *how)
        return y, {MEAN: mean, VARIANCE: variance, UNBIASED: variance * (count / max(1, count - 1))}
    if reduce is None and not is_plain(x):
        return _batch_norm_act(x, gamma, beta, *how)
    if running is None or reduce is not None or totals is not None or not _core_moves(running, x):
        return _Eager.apply(x, gamma, beta, how, reduce, fused, totals, None)
    y, _ = _Eager.apply(x, gamma, beta, how, None, fused, None, running)
    torch.autograd.graph.increment_version(running[:2])
    return y, None


def _core_moves(running: _bind_norm.Running, x: Tensor) -> bool:
    """Tell whether the core can write to the running statistics: as wide and exact as its own, in the CPU's memory."""
    dtype, shape = _bind.accumulation(x.dtype), x.shape[1:2]
    return x.device.type == "cpu" and all(
        held.dtype == dtype and held.shape == shape and held.device == x.device and held.is_contiguous()
        for held in running[:2]
    )


def batch_norm_act(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    eps: float = 1e-5,
    activation: str = "relu",
    negative_slope: float = 0.2,
    sum_over_ranks: Reduce | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (act(batch_norm(x)), mean [C], biased variance [C]) by the statistics of the batch x [N, C, ...].

    y = act((x - mean) / sqrt(variance + eps) * gamma + beta) in the dtype and layout of x; gamma and beta [C] may be
    None (1 and 0). Twice differentiable in x, gamma and beta; mean and variance are not. ``sum_over_ranks`` sums a
    float64 tensor over the ranks that share the batch: it is called once forward ([2C + 1]) and once backward ([2C]),
    the statistics and the gradient of x are then those of the whole batch, and the gradients of gamma and beta are this
    rank's share of them. It must be differentiable itself where second derivatives are wanted.
    Raises UserError where a channel has a single value, as torch does.
    """
    y, stats = _by_batch(x, gamma, beta, eps, activation, negative_slope, sum_over_ranks, impl)
    return y, stats[MEAN], stats[VARIANCE]


def norm_act(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool,
    offset: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "relu",
    negative_slope: float = 0.2,
    sum_over_ranks: Reduce | None = None,
    totals: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Return act(nn.BatchNorm(x + offset)) for x [N, C, ...], running statistics and all.

    In training, or without running statistics, the batch's own statistics are used (see ``batch_norm_act``), and the
    running ones move towards them in place by ``momentum``, the variance unbiased, as nn.BatchNorm2d does. Otherwise
    the running statistics are constants. ``offset`` [C] is a bias of the layer before, 0 by default: batch statistics
    take away what it adds, so that it only moves the running mean and its gradient is exactly 0. ``totals`` [2C + 1]
    float64 are the sums and sums of squares of x and its count a channel, where they are known already.
    """
    _check.floating("x", x, least_axes=2)
    if training or running_mean is None or running_var is None:
        for what, held in (("running_mean", running_mean), ("running_var", running_var)):
            _number_a_channel(what, held, x, any_float=True)
        if offset is not None:  # a gradient of zeros, at the price of one number a channel
            offset = _number_a_channel("offset", offset, x)
            beta = 0 * offset if beta is None else _number_a_channel("beta", beta, x) + 0 * offset
        how = eps, activation, negative_slope, sum_over_ranks, impl, totals
        moves = training and running_mean is not None and running_var is not None
        running = (running_mean, running_var, float(momentum)) if moves and offset is None else None
        y, stats = _by_batch(x, gamma, beta, *how, running)
        if moves and stats is not None and (x.numel() or sum_over_ranks):
            with torch.no_grad():
                mean = stats[MEAN] if offset is None else stats[MEAN] + offset
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_(stats[UNBIASED].to(running_var.dtype), momentum)
        return y
    mean, scale, shift = constants(x, gamma, beta, offset, running_mean, running_var, eps)
    return affine_act(x, scale, shift, mean=mean, activation=activation, negative_slope=negative_slope, impl=impl)
