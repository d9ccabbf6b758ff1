"""Recorders of arithmetic and of changes of shape; see penalty_record."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ganscale.ops.penalty.record import (
    as_x,
    broadcast,
    constant,
    records,
    require,
    shifted,
)
from ganscale.ops.penalty.trace import NotUnderstood, Session, Traced

# --- arithmetic ------------------------------------------------------------------------------------------------------


def _number(part: object) -> bool:
    return isinstance(part, (int, float)) and math.isfinite(part)


def _sum(session: Session, a: object, b: object) -> Traced:
    if not isinstance(a, Traced):
        a, b = b, a
    if isinstance(b, Traced):
        shapes = session.shape(a.value), session.shape(b.value)
        require(len(shapes[0]) == len(shapes[1]), "combines shapes that do not fit")
        try:
            joint = torch.broadcast_shapes(*shapes)
        except RuntimeError:
            raise NotUnderstood("combines shapes that do not fit") from None
        return session.add("add", [a, b], [], (), joint[1:])
    require(_number(b) or isinstance(b, Tensor), "adds something unusual")
    return shifted(session, a, b)


def _scaled(session: Session, h: Traced, factor: float, *, divide: bool = False) -> Traced:
    return session.add("scale", [h], [], (float(factor), divide), session.shape(h.value)[1:])


@records(torch.add, Tensor.add)
def _add(session, input, other, *, alpha=1):
    require(alpha == 1, "adds with a factor")
    return _sum(session, input, other)


@records(Tensor.add_)
def _add_in_place(session, input, other, *, alpha=1):
    require(alpha == 1, "adds with a factor")
    return session.rebind(as_x(input), _sum(session, input, other))


@records(torch.sub, Tensor.sub, torch.subtract, Tensor.subtract)
def _sub(session, input, other, *, alpha=1):
    require(alpha == 1, "subtracts with a factor")
    negative = _scaled(session, other, -1.0) if isinstance(other, Traced) else -other
    return _sum(session, input, negative)


@records(Tensor.__rsub__, torch.rsub)
def _rsub(session, input, other, *, alpha=1):
    return _sub(session, other, input, alpha=alpha)


@records(torch.neg, Tensor.neg)
def _neg(session, input):
    return _scaled(session, as_x(input), -1.0)


@records(torch.mul, Tensor.mul, torch.multiply, Tensor.multiply)
def _mul(session, input, other):
    h, factor = (input, other) if isinstance(input, Traced) else (other, input)
    if _number(factor):
        return _scaled(session, h, factor)
    factor = constant(session, factor)
    dtype = torch.promote_types(session.dtypes[h.value], factor.dtype)
    return session.add("mul", [h], [factor], (), broadcast(session, h, factor), dtype)


@records(torch.div, Tensor.div, torch.true_divide, Tensor.true_divide)
def _div(session, input, other, *, rounding_mode=None):
    require(rounding_mode is None, "rounds")
    if _number(other):
        require(other != 0, "divides by zero")
        return _scaled(session, as_x(input), other, divide=True)
    return _mul(session, as_x(input), constant(session, other).reciprocal())


# --- shapes ----------------------------------------------------------------------------------------------------------


def reshaped(session: Session, h: Traced, shape: Sequence[int], *, alias: bool = True) -> Traced:
    """h in another shape (-1 stands for what is left), the batch axis as it is; a view unless not ``alias``."""
    rows = session.shape(h.value)[0]
    shape = [int(size) for size in shape]
    count, known = math.prod(session.shape(h.value)), math.prod(size for size in shape if size != -1)
    if -1 in shape:
        require(shape.count(-1) == 1 and known > 0 and count % known == 0, "reshapes to another size")
        shape[shape.index(-1)] = count // known
    require(len(shape) >= 1 and shape[0] == rows and math.prod(shape) == count, "reshapes across the batch axis")
    result = session.add("reshape", [h], [], (), shape[1:])
    if alias:
        h.aliased = result.aliased = True
    return result


def axis_of(axis: int, axes: int) -> int:
    """Return an axis counted from the front; it must not be that of the batch."""
    axis = int(axis)
    require(-axes <= axis < axes, "names an axis that is not there")
    require(axis % axes != 0, "works along the batch axis")
    return axis % axes


@records(torch.reshape, Tensor.reshape, Tensor.view)
def _reshape(session, input, *shape, **named):
    shape = named.get("shape", named.get("size", shape))
    shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
    require(isinstance(shape, (tuple, list, torch.Size)) and "dtype" not in named, "changes the dtype")
    return reshaped(session, as_x(input), shape)


@records(torch.flatten, Tensor.flatten)
def _flatten(session, input, start_dim=0, end_dim=-1):
    shape = session.shape(as_x(input).value)
    first, last = axis_of(start_dim, len(shape)), axis_of(end_dim, len(shape))
    require(first <= last, "flattens backwards")
    return reshaped(session, input, (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]))


@records(torch.unflatten, Tensor.unflatten)
def _unflatten(session, input, dim, sizes):
    shape = session.shape(as_x(input).value)
    require(isinstance(dim, int), "names its axes")
    axis = axis_of(dim, len(shape))
    require(math.prod(abs(s) for s in sizes) > 0, "reshapes to another size")
    known = math.prod(size for size in sizes if size != -1)
    sizes = [shape[axis] // known if size == -1 else size for size in sizes]
    return reshaped(session, input, (*shape[:axis], *sizes, *shape[axis + 1 :]))


@records(torch.squeeze, Tensor.squeeze)
def _squeeze(session, input, dim=None):
    shape = session.shape(as_x(input).value)
    if dim is None:
        require(shape[0] != 1, "squeezes the batch axis")
        dropped = set(range(len(shape)))
    else:
        dropped = {axis_of(axis, len(shape)) for axis in (dim if isinstance(dim, (tuple, list)) else (dim,))}
    kept = [size for axis, size in enumerate(shape) if axis not in dropped or size != 1]
    return reshaped(session, input, kept)


@records(torch.unsqueeze, Tensor.unsqueeze)
def _unsqueeze(session, input, dim):
    shape = list(session.shape(as_x(input).value))
    axis = axis_of(dim, len(shape) + 1)
    return reshaped(session, input, (*shape[:axis], 1, *shape[axis:]))


def _reduce(mean: bool):
    def record(session, input, dim=None, keepdim=False, *, dtype=None, axis=None):
        require(dtype is None, "changes the dtype")
        dim = axis if dim is None else dim
        require(dim is not None, "sums over the batch axis")
        shape = session.shape(as_x(input).value)
        axes = sorted(axis_of(a, len(shape)) for a in (dim if isinstance(dim, (tuple, list)) else (dim,)))
        require(len(axes) == len(set(axes)) > 0, "sums over the batch axis")
        kept = [1 if a in axes else size for a, size in enumerate(shape) if keepdim or a not in axes]
        return session.add("reduce", [input], [], (axes, bool(keepdim), mean), kept[1:])

    return record


records(torch.sum, Tensor.sum)(_reduce(False))
records(torch.mean, Tensor.mean)(_reduce(True))


@records(torch.cat, torch.concat, torch.concatenate)
def _cat(session, tensors, dim=0):
    parts = list(tensors)
    inputs = [part for part in parts if isinstance(part, Traced)]
    shape = session.shape(inputs[0].value)
    axis = axis_of(dim, len(shape))
    sizes = []
    for part in parts:
        size = session.shape(part.value) if isinstance(part, Traced) else tuple(constant(session, part).shape)
        fits = len(size) == len(shape) and all(a == axis or size[a] == shape[a] for a in range(len(shape)))
        require(fits, "joins shapes that do not fit")
        sizes.append(size[axis])
    order = [isinstance(part, Traced) for part in parts]
    others = [part for part in parts if not isinstance(part, Traced)]
    joint = (*shape[1:axis], sum(sizes), *shape[axis + 1 :])
    return session.add("cat", inputs, others, (axis, order), joint)


# --- identities ------------------------------------------------------------------------------------------------------


@records(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout)
def _dropout(session, input, p=0.5, training=True, inplace=False):
    require(not training, "calls dropout, which draws at random")
    return as_x(input)


@records(Tensor.contiguous)
def _contiguous(session, input, memory_format=torch.contiguous_format):
    h = as_x(input)
    h.aliased = True
    return h


@records(torch.clone, Tensor.clone)
def _clone(session, input, *, memory_format=None):
    return reshaped(session, as_x(input), session.shape(input.value), alias=False)


@records(Tensor.to, Tensor.type)
def _to(session, input, dtype=None, *, copy=False):
    h = as_x(input)
    dtype = session.dtypes[dtype.value] if isinstance(dtype, Traced) else getattr(dtype, "dtype", dtype)
    require(isinstance(dtype, torch.dtype) and not copy, "changes the dtype or device")
    if dtype == session.dtypes[h.value]:
        return h
    require(session.autocast is not None and dtype == torch.float32, "changes the dtype or device")
    return session.add("reshape", [h], [], (), session.shape(h.value)[1:], dtype)  # a product casts it down again


@records(Tensor.float)
def _float(session, input):
    return _to(session, input, torch.float32)


@records(Tensor.double)
def _double(session, input):
    return _to(session, input, torch.float64)
