"""The plain-torch twins of batch statistics, affine map and activation; see ``reference``.

x is [N, C, ...]; numbers a channel are float32, or float64 for float64 x ("the accumulation type"). ``stats`` [6, C]
holds mean, scale, shift, rstd, biased and unbiased variance of z = (x - mean) * scale + shift, y = act(z).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ganscale.ops import reference

MEAN, SCALE, SHIFT, RSTD, VARIANCE, UNBIASED = range(6)
Reduce = Callable[[Tensor], Tensor]


def wide(x: Tensor) -> Tensor:
    """Return ``x`` in the type sums are kept in."""
    return x if x.dtype == torch.float64 else x.float()


def along(numbers_C: Tensor, x: Tensor) -> Tensor:
    """Reshape [C] to [1, C, 1, ...] so that it multiplies ``x`` [N, C, ...] channel by channel."""
    return numbers_C.reshape(1, -1, *[1] * (x.ndim - 2))


def sums(x: Tensor) -> Tensor:
    """[C] sums over all axes but the channels."""
    return x.sum([axis for axis in range(x.ndim) if axis != 1])


def batch_norm_act(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, activation: str, negative_slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(act(batch_norm(x)), mean [C], biased variance [C]) by the statistics of this batch."""
    z, mean, rstd = torch.native_batch_norm(x, gamma, beta, None, None, True, 0.0, eps)
    variance = (rstd.detach().square().reciprocal() - eps).clamp(min=0)
    return reference.bias_act(z, None, activation, negative_slope), mean.detach(), variance


def affine_act(
    x: Tensor, mean: Tensor | None, scale: Tensor, shift: Tensor, activation: str, negative_slope: float
) -> Tensor:
    """act((x - mean) * scale + shift), one number a channel."""
    centred = wide(x) if mean is None else wide(x) - along(mean, x)
    z = centred * along(scale, x) + along(shift, x)
    return reference.bias_act(z, None, activation, negative_slope).to(x.dtype)


def channel_moments(x: Tensor) -> Tensor:
    """[2, C] float64 sums and sums of squares."""
    exact = x.double()
    return torch.stack([sums(exact), sums(exact.square())])


# --- the pieces between which ranks add up their totals -----------------------------------------------------------


def _count(x: Tensor) -> Tensor:
    """[1] float64, the elements a channel; filled in where x lies, as a copy from the host would wait for a GPU."""
    return x.new_full((1,), x.numel() // x.shape[1], dtype=torch.float64)


def totals(x: Tensor) -> Tensor:
    """[2C + 1] float64: sums, sums of squares, count of elements a channel."""
    return torch.cat([channel_moments(x).flatten(), _count(x)])


def normalise(
    x: Tensor,
    totals: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor]:
    """(y, stats) from the totals of all ranks."""
    total, squares = totals[:-1].reshape(2, -1)
    count = totals[-1]
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    rstd = (variance + eps).rsqrt()
    scale = rstd if gamma is None else gamma * rstd
    shift = torch.zeros_like(mean) if beta is None else beta.to(mean.dtype)
    unbiased = variance * count / (count - 1)
    stats = torch.stack([mean, scale, shift, rstd, variance, unbiased]).to(wide(x[:0]).dtype)
    return affine_act(x, stats[MEAN], stats[SCALE], stats[SHIFT], activation, negative_slope), stats


def slope_of(z: Tensor, gy: Tensor, activation: str, negative_slope: float) -> Tensor:
    """gy * act'(z); the piecewise linear activations have no derivative towards z."""
    if activation == "tanh":
        return gy * (1 - z.tanh().square())
    if activation == "linear":
        return gy
    return torch.where(z > 0, gy, gy * (0.0 if activation == "relu" else negative_slope))


def _g(gy: Tensor, x: Tensor, stats: Tensor, activation: str, negative_slope: float) -> tuple[Tensor, Tensor]:
    centred = wide(x) - along(stats[MEAN], x)
    z = centred * along(stats[SCALE], x) + along(stats[SHIFT], x)
    return slope_of(z, wide(gy), activation, negative_slope), centred


def backward_sums(
    gy: Tensor, x: Tensor, stats: Tensor, activation: str, negative_slope: float
) -> tuple[Tensor, Tensor]:
    """([2C] float64 sums of g' and of g' (x - mean), [2, C] gradients of gamma and beta)."""
    g, centred = _g(gy, x, stats, activation, negative_slope)
    both = torch.cat([sums(g.double()), sums((g * centred).double())])
    of_beta, of_gamma = both.reshape(2, -1)
    return both, torch.stack([of_gamma * stats[RSTD], of_beta]).to(stats.dtype)


def backward_input(
    gy: Tensor, x: Tensor, stats: Tensor, totals: Tensor, activation: str, negative_slope: float
) -> Tensor:
    """The gradient of x, from the totals [2C + 1] of all ranks, the count last."""
    g, centred = _g(gy, x, stats, activation, negative_slope)
    of_beta, of_gamma = (totals[:-1] / totals[-1]).reshape(2, -1)
    per_x = (stats[RSTD].double().square() * of_gamma).to(stats.dtype)
    inside = g - along(of_beta.to(stats.dtype), x) - centred * along(per_x, x)
    return (along(stats[SCALE], x) * inside).to(x.dtype)


def differentiable_backward(
    gy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    activation: str,
    negative_slope: float,
    reduce: Reduce | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, gamma, beta as torch operations, to be differentiated again."""
    reduce = reduce or (lambda t: t)
    v, g = wide(x), wide(gy)
    count = reduce(_count(x)).to(v.dtype)
    centred = v - along(reduce(sums(v)) / count, x)
    rstd = (reduce(sums(centred.square())) / count + eps).rsqrt()
    normal = centred * along(rstd, x)
    z = normal if gamma is None else normal * along(gamma, x)
    g = slope_of(z if beta is None else z + along(beta, x), g, activation, negative_slope)
    of_beta, of_gamma = sums(g), sums(g * normal)
    both = reduce(torch.cat([of_beta, of_gamma])) / count
    inside = g - along(both[: x.shape[1]], x) - normal * along(both[x.shape[1] :], x)
    scale = rstd if gamma is None else rstd * gamma
    return (along(scale, x) * inside).to(x.dtype), of_gamma, of_beta
