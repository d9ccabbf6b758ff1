"""Recorders of maps without weights: pools, resampling, padding, reordering and parts; see penalty_record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ganscale.ops.penalty.record import RECORDERS, as_x, describe, records, repeated, require
from ganscale.ops.penalty.record_shapes import axis_of, reshaped
from ganscale.ops.penalty.trace import NotUnderstood, Session, Traced

__all__ = ["RECORDERS", "describe"]

# --- pools, resampling, padding --------------------------------------------------------------------------------------


def _map(session: Session, h: Traced, name: str, options: tuple, shape: Sequence[int]) -> Traced:
    return session.add("map", [h], [], (name, *options), tuple(shape)[1:])


def _outline(session: Session, h: Traced) -> Tensor:
    """An empty tensor of the shape of h, to let torch work out the shape of what it makes of it."""
    return torch.empty(session.shape(h.value), device="meta")


def _avg_pool(axes: int, pool: Callable[..., Tensor]) -> Callable[..., Traced]:
    def record(
        session, input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
        divisor_override=None,
    ):  # fmt: skip
        h = as_x(input)
        require(len(session.shape(h.value)) == axes + 2, "gets an input of unusual shape")
        kernel = repeated(kernel_size, axes)
        options = (
            kernel, repeated(stride, axes) if stride else kernel, repeated(padding, axes), bool(ceil_mode),
            bool(count_include_pad), divisor_override,
        )  # fmt: skip
        return _map(session, h, f"avg_pool{axes}d", options, pool(_outline(session, h), *options).shape)

    return record


records(F.avg_pool2d)(_avg_pool(2, F.avg_pool2d))
records(F.avg_pool3d)(_avg_pool(3, F.avg_pool3d))


@records(F.adaptive_avg_pool2d)
def _adaptive_avg_pool2d(session, input, output_size):
    h = as_x(input)
    shape = session.shape(h.value)
    require(len(shape) == 4, "gets an input of unusual shape")
    wanted = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    sides = tuple(n if side is None else int(side) for side, n in zip(wanted, shape[2:], strict=True))
    return _map(session, h, "adaptive_avg_pool2d", (sides,), (*shape[:2], *sides))


@records(F.interpolate)
def _interpolate(
    session, input, size=None, scale_factor=None, mode="nearest", align_corners=None, recompute_scale_factor=None,
    antialias=False,
):  # fmt: skip
    h = as_x(input)
    shape = session.shape(h.value)
    bilinear = mode == "bilinear" and len(shape) == 4
    require((mode == "nearest" or bilinear) and not recompute_scale_factor and not antialias, f"resamples by {mode}")
    require(3 <= len(shape) <= 5 and (size is None) != (scale_factor is None), "gets an input of unusual shape")
    axes = len(shape) - 2
    if size is not None:
        sides, scales = repeated(size, axes), (None,) * axes
    else:
        many = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor,) * axes
        scales = tuple(float(s) for s in many)
        sides = tuple(math.floor(n * s) for n, s in zip(shape[2:], scales, strict=True))
    options = (sides, bool(align_corners), scales) if bilinear else (sides, scales)
    return _map(session, h, mode, options, (*shape[:2], *sides))


@records(F.pad)
def _pad(session, input, pad, mode="constant", value=None):
    h = as_x(input)
    require(mode == "constant" and not value, f"pads by mode {mode} with {value}")
    pad, shape = tuple(int(side) for side in pad), session.shape(h.value)
    require(len(pad) % 2 == 0 and len(pad) // 2 < len(shape), "pads the batch axis")
    return _map(session, h, "pad", (pad,), F.pad(_outline(session, h), pad).shape)


@records(F.avg_pool1d)
def _avg_pool1d(session, input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
    kernel, stride, padding = ((1, *repeated(v, 1)) for v in (kernel_size, stride or kernel_size, padding))
    shape = session.shape(as_x(input).value)
    require(len(shape) == 3, "gets an input of unusual shape")
    flat = reshaped(session, input, (*shape[:2], 1, shape[2]))
    pooled = _avg_pool(2, F.avg_pool2d)(
        session, flat, kernel, stride, (0, padding[1]), bool(ceil_mode), bool(count_include_pad)
    )
    out = session.shape(pooled.value)
    return reshaped(session, pooled, (*out[:2], out[3]))


def _shuffle(name: str, shuffle: Callable[..., Tensor]) -> Callable[..., Traced]:
    def record(session, input, factor):
        h = as_x(input)
        require(len(session.shape(h.value)) == 4, "gets an input of unusual shape")
        return _map(session, h, name, (int(factor),), shuffle(_outline(session, h), factor).shape)

    return record


records(F.pixel_shuffle)(_shuffle("pixel_shuffle", F.pixel_shuffle))
records(F.pixel_unshuffle)(_shuffle("pixel_unshuffle", F.pixel_unshuffle))


# --- reordering and parts --------------------------------------------------------------------------------------------


def _view(session: Session, h: Traced, name: str, options: tuple, shape: Sequence[int]) -> Traced:
    result = _map(session, h, name, options, shape)
    h.aliased = result.aliased = True
    return result


@records(torch.permute, Tensor.permute)
def _permute(session, input, *dims, **named):
    dims = named.get("dims", dims)
    dims = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    shape = session.shape(as_x(input).value)
    order = [0, *(axis_of(d, len(shape)) for d in dims[1:])]
    require(int(dims[0]) in (0, -len(shape)) and sorted(order) == list(range(len(shape))), "moves the batch axis")
    return _view(session, input, "permute", (order,), [shape[axis] for axis in order])


@records(torch.transpose, Tensor.transpose)
def _transpose(session, input, dim0, dim1):
    order = list(range(len(session.shape(as_x(input).value))))
    a, b = axis_of(dim0, len(order)), axis_of(dim1, len(order))
    order[a], order[b] = b, a
    return _permute(session, input, order)


@records(torch.narrow, Tensor.narrow)
def _narrow(session, input, dim, start, length):
    shape = session.shape(as_x(input).value)
    axis = axis_of(dim, len(shape))
    require(isinstance(start, int) and start >= 0 and start + length <= shape[axis], "takes an unusual part")
    return _part(session, input, axis, start, int(length))


def _part(session: Session, h: Traced, axis: int, start: int, length: int) -> Traced:
    shape = list(session.shape(h.value))
    shape[axis] = length
    return _view(session, h, "part", (axis, start, length), shape)


@records(Tensor.__getitem__)
def _getitem(session, input, index):
    """Slices without steps, and single positions, of the axes behind the batch's."""
    index = index if isinstance(index, tuple) else (index,)
    require(all(type(part) in (int, slice, type(Ellipsis)) for part in index), "takes an unusual part")
    shape = session.shape(as_x(input).value)
    if index.count(Ellipsis) == 1:
        place = index.index(Ellipsis)
        index = (*index[:place], *[slice(None)] * (len(shape) + 1 - len(index)), *index[place + 1 :])
    whole_steps = all(type(part) is int or (type(part) is slice and part.step in (None, 1)) for part in index)
    require(whole_steps and 1 <= len(index) <= len(shape) and index[0] == slice(None), "takes an unusual part")
    h, dropped = input, []
    for axis, part in enumerate(index):
        if type(part) is int:
            require(-shape[axis] <= part < shape[axis], "takes an unusual part")
            h = _part(session, h, axis, part % shape[axis], 1)
            dropped.append(axis)
        elif part != slice(None):
            start, stop, _ = part.indices(shape[axis])
            require(stop > start, "takes an unusual part")
            h = _part(session, h, axis, start, stop - start)
    if h is input and not dropped:
        raise NotUnderstood("takes all of a value")
    kept = [size for axis, size in enumerate(session.shape(h.value)) if axis not in dropped]
    return reshaped(session, h, kept) if dropped else h
