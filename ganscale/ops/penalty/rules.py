"""The linear nodes of a critic: what each does to a value, to a tangent, to an adjoint, and its weight gradient.

h values, t tangents, q adjoints [N, ...]; w the tensors a node reads. ``forward`` may add what does not depend on x;
``tangent`` is its linear part A, ``adjoint`` the transpose of A, ``weights`` the gradient of <q, A t> in w.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ganscale.ops import _calls, _products, conv_transpose
from ganscale.ops.penalty.program import Node

aten = torch.ops.aten
Tensors = Sequence[Tensor]
Shape = tuple[int, ...]


class Rule(NamedTuple):
    """``adjoint`` gets the shapes of the inputs. Results may share memory with arguments."""

    forward: Callable[[Node, Tensors, Tensors], Tensor]
    tangent: Callable[[Node, Tensors, Tensors], Tensor]
    adjoint: Callable[[Node, Tensor, Tensors, list[Shape]], list[Tensor]]
    weights: Callable[[Node, Tensors, Tensor, Tensors], Tensor] | None = None


# --- convolutions and matrix products: h -> w * h + b ----------------------------------------------------------------


def _convolve(node: Node, h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    stride, padding, dilation, transposed, output_padding, groups, _ = node.options
    return aten.convolution(h, w, b, stride, padding, dilation, transposed, output_padding, groups)


def _convolve_backward(node: Node, q: Tensor, h: Tensor, w: Tensor, mask: list[bool]) -> tuple[Tensor, ...]:
    stride, padding, dilation, transposed, output_padding, groups, _ = node.options
    return aten.convolution_backward(q, h, w, None, stride, padding, dilation, transposed, output_padding, groups, mask)


def _is_plain(node: Node, w: Tensor) -> bool:
    _, _, dilation, transposed, _, groups, _ = node.options
    return w.ndim == 4 and not transposed and groups == 1 and set(dilation) == {1}


def _conv_forward(node: Node, h: Tensors, w: Tensors) -> Tensor:
    bias = w[1] if len(w) > 1 else None
    found = _products.convolve(h[0], w[0], bias, *node.options[:2]) if _is_plain(node, w[0]) else None
    return _convolve(node, h[0], w[0], bias) if found is None else found


def _conv_adjoint(node: Node, q: Tensor, w: Tensors, shapes: list[Shape]) -> list[Tensor]:
    found = _products.transpose(q, w[0], shapes[0][2:], *node.options[:2]) if _is_plain(node, w[0]) else None
    if found is not None:
        return [found]
    # The input is asked for its shape and layout alone: memory that is never touched.
    unread = torch.empty(shapes[0], dtype=q.dtype, device=q.device, memory_format=memory_format_of(q))
    return [_convolve_backward(node, q, unread, w[0], [True, False, False])[0]]


def has_few_channels(node: Node, shape: Shape) -> bool:
    """Tell whether the adjoint of a node's input, of this shape, has a compiled kernel of its own: that of an image."""
    if node.kind != "conv" or len(shape) != 4 or shape[1] > conv_transpose.FEW_CHANNELS:
        return False
    stride, padding, dilation, transposed, _, groups, _ = node.options
    holds = max(*shape[2:], *stride, *padding) <= _calls.LARGEST
    return holds and not transposed and groups == 1 and set(dilation) == {1}


def adjoint_with_few_channels(node: Node, q: Tensor, w: Tensors, shape: Shape) -> Tensor:
    """The adjoint of a convolution's input of at most four channels, by that kernel."""
    stride, padding, *_ = node.options
    return conv_transpose.conv_transpose_few(q, w[0], None, shape[2:], stride, padding, "linear", 0.0)


def _conv_weights(node: Node, t: Tensors, q: Tensor, w: Tensors) -> Tensor:
    plain = _is_plain(node, w[0])
    found = _products.weight_gradient(t[0], q, w[0].shape, *node.options[:2]) if plain else None
    if found is not None:
        return found
    unread = torch.empty_like(w[0], memory_format=memory_format_of(t[0]))  # again for the shape and layout alone
    return _convolve_backward(node, q, t[0], unread, [False, True, False])[1]


CONV = Rule(_conv_forward, lambda node, t, w: _conv_forward(node, t, w[:1]), _conv_adjoint, _conv_weights)


def _linear_weights(node: Node, t: Tensors, q: Tensor, w: Tensors) -> Tensor:
    return q.reshape(-1, q.shape[-1]).t() @ t[0].reshape(-1, t[0].shape[-1])


LINEAR = Rule(
    lambda node, h, w: torch.nn.functional.linear(h[0], *w),
    lambda node, t, w: torch.nn.functional.linear(t[0], w[0]),
    lambda node, q, w, shapes: [q @ w[0]],
    _linear_weights,
)


# --- elementwise -----------------------------------------------------------------------------------------------------


MUL = Rule(
    lambda node, h, w: h[0] * w[0],
    lambda node, t, w: t[0] * w[0],
    lambda node, q, w, shapes: [(q * w[0]).sum_to_size(shapes[0])],
    lambda node, t, q, w: (q * t[0]).sum_to_size(w[0].shape),
)


def _scaled(node: Node, h: Tensor) -> Tensor:
    factor, divide = node.options
    return h / factor if divide else h * factor


SCALE = Rule(
    lambda node, h, w: _scaled(node, h[0]),
    lambda node, t, w: _scaled(node, t[0]),
    lambda node, q, w, shapes: [_scaled(node, q)],
)


def _expanded(node: Node, t: Tensor) -> Tensor:
    return t.expand(t.shape[0], *node.shape)


SHIFT = Rule(  # by a number, or by a tensor that does not depend on x
    lambda node, h, w: h[0] + (w[0] if w else node.options[0]),
    lambda node, t, w: _expanded(node, t[0]),
    lambda node, q, w, shapes: [q.sum_to_size(shapes[0])],
)


def _combined(node: Node, h: Tensors, w: Tensors) -> Tensor:
    return h[0] + h[1]


ADD = Rule(_combined, _combined, lambda node, q, w, shapes: [q.sum_to_size(shape) for shape in shapes])


# --- shapes ----------------------------------------------------------------------------------------------------------


def _reshaped(node: Node, h: Tensors, w: Tensors) -> Tensor:
    return h[0].reshape(h[0].shape[0], *node.shape)


RESHAPE = Rule(_reshaped, _reshaped, lambda node, q, w, shapes: [q.reshape(shapes[0])])


def _reduced(node: Node, h: Tensors, w: Tensors) -> Tensor:
    axes, keep, mean = node.options
    return h[0].mean(axes, keepdim=keep) if mean else h[0].sum(axes, keepdim=keep)


def _spread(node: Node, q: Tensor, w: Tensors, shapes: list[Shape]) -> list[Tensor]:
    axes, _, mean = node.options
    kept = [1 if axis in axes else size for axis, size in enumerate(shapes[0])]
    count = 1
    for axis in axes:
        count *= shapes[0][axis]
    return [(q.reshape(kept) / count if mean else q.reshape(kept)).expand(shapes[0])]


REDUCE = Rule(_reduced, _reduced, _spread)


def _joined(node: Node, h: Tensors, w: Tensors, *, tangent: bool) -> Tensor:
    axis, order = node.options
    x_parts, w_parts = iter(h), iter(w)
    rows = h[0].shape[0]
    parts = []
    for depends in order:
        part = next(x_parts) if depends else next(w_parts).expand(rows, *[-1] * (h[0].ndim - 1))
        parts.append(torch.zeros_like(part) if tangent and not depends else part)
    return torch.cat(parts, axis)


def _cut(node: Node, q: Tensor, w: Tensors, shapes: list[Shape]) -> list[Tensor]:
    axis, order = node.options
    sizes_x, sizes_w = iter([shape[axis] for shape in shapes]), iter([part.shape[axis] for part in w])
    start, parts = 0, []
    for depends in order:
        size = next(sizes_x if depends else sizes_w)
        if depends:
            parts.append(q.narrow(axis, start, size))
        start += size
    return parts


CAT = Rule(
    lambda node, h, w: _joined(node, h, w, tangent=False),
    lambda node, t, w: _joined(node, t, w, tangent=True),
    _cut,
)


# --- maps without tensors: pools, resampling, padding ----------------------------------------------------------------


def _mapped(node: Node, h: Tensors, w: Tensors) -> Tensor:
    name, *options = node.options
    return MAPS[name][0](h[0], *options)


def _map_adjoint(node: Node, q: Tensor, w: Tensors, shapes: list[Shape]) -> list[Tensor]:
    name, *options = node.options
    return [MAPS[name][1](q, shapes[0], *options)]


MAP = Rule(_mapped, _mapped, _map_adjoint)


def memory_format_of(x: Tensor) -> torch.memory_format:
    """The format torch's kernels would take ``x`` for."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return torch.channels_last
    if x.ndim == 5 and x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous():
        return torch.channels_last_3d
    return torch.contiguous_format


def _like_input(q: Tensor, shape: Shape) -> Tensor:
    return torch.empty(shape, dtype=q.dtype, device=q.device, memory_format=memory_format_of(q))


def _nearest(h: Tensor, size: Shape, scales: tuple) -> Tensor:
    return (aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d)[len(size) - 1](h, size, *scales)


def _nearest_adjoint(q: Tensor, shape: Shape, size: Shape, scales: tuple) -> Tensor:
    kernels = aten.upsample_nearest1d_backward, aten.upsample_nearest2d_backward, aten.upsample_nearest3d_backward
    return kernels[len(size) - 1](q, size, shape, *scales)


def _put_back(q: Tensor, shape: Shape, axis: int, start: int, length: int) -> Tensor:
    whole = torch.zeros(shape, dtype=q.dtype, device=q.device)
    whole.narrow(axis, start, length).copy_(q)
    return whole


MAPS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "avg_pool2d": (aten.avg_pool2d, lambda q, shape, *o: aten.avg_pool2d_backward(q, _like_input(q, shape), *o)),
    "avg_pool3d": (aten.avg_pool3d, lambda q, shape, *o: aten.avg_pool3d_backward(q, _like_input(q, shape), *o)),
    "adaptive_avg_pool2d": (
        aten._adaptive_avg_pool2d,
        lambda q, shape, size: aten._adaptive_avg_pool2d_backward(q, _like_input(q, shape)),
    ),
    "bilinear": (
        lambda h, size, corners, scales: aten.upsample_bilinear2d(h, size, corners, *scales),
        lambda q, shape, size, corners, scales: aten.upsample_bilinear2d_backward(q, size, shape, corners, *scales),
    ),
    "pixel_shuffle": (aten.pixel_shuffle, lambda q, shape, factor: aten.pixel_unshuffle(q, factor)),
    "pixel_unshuffle": (aten.pixel_unshuffle, lambda q, shape, factor: aten.pixel_shuffle(q, factor)),
    "permute": (aten.permute, lambda q, shape, order: q.permute([order.index(axis) for axis in range(q.ndim)])),
    "part": (aten.narrow, _put_back),
    "nearest": (_nearest, _nearest_adjoint),
    "pad": (
        lambda h, pad: aten.constant_pad_nd(h, pad, 0),
        lambda q, shape, pad: aten.constant_pad_nd(q, [-side for side in pad], 0),
    ),
}

RULES: dict[str, Rule] = {
    "conv": CONV, "linear": LINEAR, "mul": MUL, "scale": SCALE, "shift": SHIFT, "add": ADD, "reshape": RESHAPE,
    "reduce": REDUCE, "cat": CAT, "map": MAP,
}  # fmt: skip
