"""The plain-torch twin of every operator: same signature, same result, any device, differentiable to any order.

The twins say what the kernels compute; tests compare the two. Sums over 16-bit floats are taken in float32.

N batch, C channels, S elements of one sample.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def per_sample(weights_N: Tensor, like: Tensor) -> Tensor:
    """Reshape [N] to [N, 1, ..., 1] so that it multiplies ``like`` [N, ...] sample by sample."""
    return weights_N.reshape(-1, *[1] * (like.ndim - 1))


def interpolate(real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    """eps * real + (1 - eps) * fake, one eps [N] a sample of real and fake [N, ...]."""
    share = per_sample(eps, real)
    return share * real + (1 - share) * fake


def widen(g: Tensor) -> Tensor:
    """Flatten [N, ...] to [N, S] in the type sums are kept in."""
    return g.reshape(g.shape[0], g[0].numel() if len(g) else 0).to(
        torch.float64 if g.dtype == torch.float64 else torch.float32
    )


def sample_norm2(g: Tensor) -> Tensor:
    """[N] squared Euclidean norms of ``g`` [N, ...]."""
    return widen(g).square().sum(1)


def safe_sqrt(squared_N: Tensor) -> Tensor:
    """Square root whose derivatives at 0 are 0 rather than infinite or NaN, to any order; a NaN stays a NaN."""
    zero = squared_N == 0
    return torch.where(zero, 0, torch.where(zero, 1, squared_N).sqrt())


def gp_penalty(g: Tensor, center: float, one_sided: bool) -> tuple[Tensor, Tensor]:
    """[N] penalties (|g| - center)^2, or max(0, |g| - center)^2 where ``one_sided``, and [N] norms |g|.

    ``center`` 0 gives |g|^2 without a square root. Gradients are finite at |g| = 0.
    """
    squared = sample_norm2(g)
    norm = safe_sqrt(squared)
    if center == 0:
        return squared, norm
    excess = norm - center
    return (excess.clamp(min=0) if one_sided else excess).square(), norm


def bias_act(x: Tensor, bias: Tensor | None, activation: str, negative_slope: float) -> Tensor:
    """act(x + bias) with bias [C] along axis 1 of ``x`` [N, C, ...]."""
    z = x if bias is None else x + bias.reshape(1, -1, *[1] * (x.ndim - 2))
    if activation == "relu":
        return F.relu(z)
    if activation == "leaky_relu":
        return F.leaky_relu(z, negative_slope)
    return torch.tanh(z) if activation == "tanh" else z


def channel_sum(x: Tensor) -> Tensor:
    """[C] sums of ``x`` [N, C, ...] over all axes but the channels."""
    return x.sum([axis for axis in range(x.ndim) if axis != 1])
