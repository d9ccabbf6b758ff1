"""Players of the attribution games: grid cells of an image or features of a vector, and the baseline that replaces
them.

Legend: N samples, M cells or features, C channels, H height, W width, n rows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from ganscale.explain.errors import ExplainInputError, ExplainOptionError

BASELINES = ("auto", "low", "mid", "mean", "blur", "zero")


def grid_segments(shape: tuple[int, ...], cells: int) -> Tensor:
    """Return which player each input element belongs to.

    Images (C, H, W) get [H, W] int64 with at most cells x cells nearly equal rectangles (all channels together);
    vectors (D,) get [D], each feature a player of its own, points (C, 1, 1) get [C, 1, 1]. Raises ExplainInputError
    for other shapes.
    """
    if len(shape) == 1:
        return torch.arange(shape[0])
    if len(shape) != 3:
        raise ExplainInputError("inputs", "be images [N, C, H, W] or vectors [N, D]", (-1, *shape), "reshape them")
    height, width = shape[1:]
    if height * width == 1:  # points of a space: a channel is a coordinate
        return torch.arange(shape[0]).reshape(shape)
    down, across = min(cells, height), min(cells, width)
    row_H = torch.arange(height) * down // height
    column_W = torch.arange(width) * across // width
    return row_H[:, None] * across + column_W[None, :]


def make_baseline(x: Tensor, choice: str | float, value_range: tuple[float, float] | None) -> Tensor:
    """Return what stands for "absent" in each sample, of x's shape.

    "auto" is the low end of the declared range (black) or zero where there is none; "mid" its middle; "mean" the mean
    over the given samples, which must be two or more; "blur" each image under a Gaussian of an eighth of its side;
    "zero" zeros; a number fills with it. Raises ExplainOptionError for a choice that the samples do not allow.
    """
    if choice == "auto":
        choice = "zero" if value_range is None else "low"
    if choice in ("low", "mid"):
        if value_range is None:
            raise ExplainOptionError(
                "baseline", "not need a value range where none is declared", choice, "use mean or zero"
            )
        choice = value_range[0] if choice == "low" else sum(value_range) / 2
    if choice == "mean":
        if len(x) < 2:
            rule = "not be mean for a single sample, which is its own mean: nothing would be absent"
            raise ExplainOptionError("baseline", rule, choice, "use low, blur or a number, or explain more samples")
        return x.mean(dim=0, keepdim=True).expand_as(x).contiguous()
    if choice == "blur":
        return _blur(x)
    return torch.full_like(x, 0.0 if choice == "zero" else float(choice))


def compose(x: Tensor, baseline: Tensor, present_nM: np.ndarray, segments: Tensor) -> Tensor:
    """Return [n, ...]: sample ``x`` [...] where a row of ``present_nM`` has the player, ``baseline`` elsewhere."""
    mask = torch.from_numpy(present_nM[:, segments.numpy()]).to(x.dtype)
    return torch.lerp(baseline, x, mask[:, None] if segments.ndim == 2 else mask)  # exactly either one, at 0 and 1


def cell_sums(maps: Tensor, segments: Tensor) -> np.ndarray:
    """Sum maps [N, C, H, W] or [N, D] over each player: float64 [N, M]."""
    flat_NP = (maps.sum(dim=1) if segments.ndim == 2 else maps).double().flatten(1)
    sums_NM = flat_NP.new_zeros(len(maps), int(segments.max()) + 1)
    return sums_NM.index_add_(1, segments.flatten(), flat_NP).numpy()


def spread(weights_NM: np.ndarray, segments: Tensor, like: Tensor) -> Tensor:
    """Share each player's weight evenly over its elements, so that a map like ``like`` has the same sums."""
    channels = like.shape[1] if segments.ndim == 2 else 1
    sizes_M = torch.bincount(segments.flatten()).double() * channels
    maps = (torch.from_numpy(weights_NM) / sizes_M)[:, segments]
    return (maps[:, None] if segments.ndim == 2 else maps).expand_as(like).to(like.dtype).contiguous()


def width_of(x: Tensor, value_range: tuple[float, float] | None) -> Tensor:
    """Return the width of the range, or where there is none each sample's root mean square: [N or 1, 1, ...], float64.

    A sample's own, so that it does not matter which others are explained with it.
    """
    if value_range is not None:
        return torch.tensor(value_range[1] - value_range[0], dtype=torch.float64)
    return x.double().flatten(1).square().mean(1).sqrt().reshape(-1, *[1] * (x.ndim - 1))


def _blur(x: Tensor) -> Tensor:
    if x.ndim != 4:
        raise ExplainOptionError("baseline", "be blur only for images", "vectors", "use mean or zero")
    blurred = x
    for axis in (2, 3):
        sigma = max(x.shape[axis] / 8, 0.5)
        reach = min(int(3 * sigma), x.shape[axis] - 1)
        position = torch.arange(-reach, reach + 1, dtype=x.dtype)
        kernel = torch.exp(-0.5 * (position / sigma) ** 2)
        shape = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
        kernel = (kernel / kernel.sum()).reshape(shape).expand(x.shape[1], *shape[1:])
        sides = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        blurred = conv2d(pad(blurred, sides, mode="reflect"), kernel, groups=x.shape[1])
    return blurred
