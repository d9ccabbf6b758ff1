"""Steps of an attack inside a ball around each row, in any value range: noise, one signed step, many projected ones.

Rows have radii of their own, so all budgets of a sample go through the network together. What leaves the declared
range is cut off, as a picture that cannot be stored is no picture.

Legend: n rows, each of any shape; radius_n in the units of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Norm = Literal["linf", "l2"]
Range = tuple[float, float] | None
Gradient = Callable[[Tensor], Tensor]  # rows [n, ...] -> d objective / d rows, [n, ...]
_SMALLEST = 1e-30  # below any gradient that float32 can square


def lengths(delta: Tensor, norm: Norm) -> Tensor:
    """Return the norm of each row [n], float64."""
    flat = delta.double().flatten(1)
    return flat.abs().amax(dim=1) if norm == "linf" else flat.norm(dim=1)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """Return the step of length 1 along which a linear function with this gradient rises most: its sign, or itself
    scaled.
    """
    if norm == "linf":
        return gradient.sign()
    length_n = gradient.flatten(1).norm(dim=1)
    return gradient / _like(length_n.clamp_min(_SMALLEST), gradient)


def project(rows: Tensor, x: Tensor, radius_n: Tensor, *, norm: Norm, value_range: Range) -> Tensor:
    """Return ``rows`` moved into the ball of ``radius_n`` around ``x``, then into the range."""
    radius, delta = _like(radius_n, x), rows - x
    if norm == "linf":
        delta = torch.clamp(delta, min=-radius, max=radius)
    else:
        length_n = delta.flatten(1).norm(dim=1).clamp_min(_SMALLEST)
        delta = delta * _like((radius_n / length_n).clamp_max(1.0), x)
    moved = x + delta
    return moved if value_range is None else moved.clamp(*value_range)


def noise(
    x: Tensor,
    radius_n: Tensor,
    *,
    norm: Norm,
    value_range: Range,
    rngs: Sequence[np.random.Generator],
    still: int = 0,
) -> Tensor:
    """Return rows at distance ``radius_n`` in a random direction: random signs (linf) or a uniform direction (l2).

    Each of ``rngs`` draws for its even share of the rows: one a sample, so that no sample's draws depend on another.
    The last ``still`` numbers of a row stay as they are.
    """
    shape = (len(x) // len(rngs), *x.shape[1:])
    drawn = torch.from_numpy(np.concatenate([rng.standard_normal(shape) for rng in rngs])).to(x)
    drawn[..., drawn.shape[-1] - still :] = 0
    return project(x + _like(radius_n, x) * steepest(drawn, norm), x, radius_n, norm=norm, value_range=value_range)


def fgsm(gradient: Tensor, x: Tensor, radius_n: Tensor, *, norm: Norm, value_range: Range) -> Tensor:
    """Return the fast gradient step (Goodfellow et al. 2015, arXiv:1412.6572, section 4), given the gradient at x."""
    rows = x + _like(radius_n, x) * steepest(gradient, norm)
    return rows if value_range is None else rows.clamp(*value_range)


def pgd(
    gradient: Gradient,
    x: Tensor,
    radius_n: Tensor,
    *,
    norm: Norm,
    value_range: Range,
    steps: int,
    step: float,
    start: Tensor | None = None,
) -> Tensor:
    """Return the last of ``steps`` projected gradient steps (Madry et al. 2018, arXiv:1706.06083, section 2.1).

    Each step is ``step`` radii long; ``start`` defaults to x itself.
    """
    rows = x if start is None else start
    size = _like(radius_n * step, x)
    for _ in range(steps):
        rows = project(rows + size * steepest(gradient(rows), norm), x, radius_n, norm=norm, value_range=value_range)
    return rows


def _like(value_n: Tensor, rows: Tensor) -> Tensor:
    """Shape one number a row so that it multiplies rows."""
    return value_n.to(rows).reshape(-1, *[1] * (rows.ndim - 1))


ValueAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]  # rows [n, ...] -> objective [n], its gradient


def climb(
    objective: ValueAndGradient,
    x: Tensor,
    radius_n: Tensor,
    *,
    steps: int,
    step: float | None,
    start: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the best rows met on ``steps`` ascents inside l2 balls, and their objective [n].

    ``step`` is in radii; None goes to the far end of the ball each time, which maximises the linearised objective over
    the ball (Frank and Wolfe 1956) and for a convex objective never descends.
    """
    radius = _like(radius_n, x)
    rows, best, best_n = start, start, torch.full((len(x),), -torch.inf, dtype=torch.float64)
    for number in range(steps + 1):
        value_n, gradient = objective(rows)
        better_n = value_n.double() > best_n
        best = torch.where(better_n.reshape(-1, *[1] * (x.ndim - 1)), rows, best)
        best_n = torch.where(better_n, value_n.double(), best_n)
        if number == steps:
            break
        uphill = steepest(gradient, "l2")
        rows = x + radius * uphill if step is None else rows + radius * step * uphill
        rows = project(rows, x, radius_n, norm="l2", value_range=None)
    return best, best_n
