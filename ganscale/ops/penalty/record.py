"""Which torch functions the fused penalty understands, and how a call of each becomes a node.

A recorder gets the call's own arguments and either writes a node down or raises NotUnderstood with what the call is;
the session puts the module in front. What is understood is linear or piecewise linear in x, and keeps samples apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganscale import ops
from ganscale.ops.penalty.trace import LOW_OR_SINGLE, NotUnderstood, Session, Traced

Recorder = Callable[..., Traced]
RECORDERS: dict[Callable, Recorder] = {}

SMOOTH = "is smooth, not piecewise linear"
STATISTICS = "divides by statistics of x"
PICKS = "picks values by comparison"
WHAT = {
    "batch_norm": "mixes samples", "instance_norm": STATISTICS, "group_norm": STATISTICS, "layer_norm": STATISTICS,
    "rms_norm": STATISTICS, "local_response_norm": STATISTICS, "normalize": STATISTICS, "std": STATISTICS,
    "var": STATISTICS, "dropout": "draws at random", "softmax": SMOOTH, "prelu": "has a slope that is learned",
    "scaled_dot_product_attention": SMOOTH, "multi_head_attention_forward": SMOOTH,
    "max_pool2d": PICKS, "adaptive_max_pool2d": PICKS, "max": PICKS, "amax": PICKS,
    **dict.fromkeys(("softplus", "silu", "gelu", "tanh", "sigmoid", "elu", "selu", "celu", "mish", "hardswish", "exp",
                     "log", "sqrt", "rsqrt", "square", "pow", "sin", "cos", "softsign", "logsigmoid"), SMOOTH),
}  # fmt: skip


def describe(func: Callable) -> str:
    """Say why a call of ``func`` is not understood."""
    name = getattr(func, "__name__", str(func))
    if name == "fn":  # torch's switch between pooling with and without indices
        name = "max_pool2d"
    name = name.strip("_")
    return f"calls {name}, which {WHAT[name]}" if name in WHAT else f"calls {name}, which is not in the table"


def records(*functions: Callable | None) -> Callable[[Recorder], Recorder]:
    """Put a recorder into the table, for each of ``functions``."""

    def register(recorder: Recorder) -> Recorder:
        for function in functions:
            RECORDERS[function] = recorder
        return recorder

    return register


# --- arguments -------------------------------------------------------------------------------------------------------


def as_x(part: object) -> Traced:
    """Require a value that depends on x."""
    if not isinstance(part, Traced):
        raise NotUnderstood("takes a value that depends on x where only a weight is understood")
    return part


def constant(session: Session, part: object) -> Tensor:
    """Require a plain tensor that does not depend on x and that the operator can hold beside x."""
    if isinstance(part, Traced) or not isinstance(part, Tensor):
        raise NotUnderstood("multiplies values that depend on x")
    x = session.x
    if type(part) not in (Tensor, nn.Parameter, nn.Buffer) or part.is_inference():
        raise NotUnderstood(f"reads a {type(part).__name__}")
    if part.device != x.device or part.layout != torch.strided:
        raise NotUnderstood(f"reads a tensor on {part.device}, {part.layout}")
    castable = session.autocast and part.dtype in LOW_OR_SINGLE and x.dtype in LOW_OR_SINGLE
    if part.dtype != x.dtype and not castable:
        raise NotUnderstood(f"reads {part.dtype} beside {x.dtype}")
    return part


def require(condition: bool, otherwise: str) -> None:
    """Raise NotUnderstood(otherwise) unless ``condition`` holds."""
    if not condition:
        raise NotUnderstood(otherwise)


def _product_dtype(session: Session, h: Traced) -> torch.dtype:
    """Return what a convolution or matrix product gives: the autocast dtype, where there is one."""
    dtype = session.dtypes[h.value]
    return session.autocast if session.autocast and dtype in LOW_OR_SINGLE else dtype


def repeated(value: int | tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return one number an axis, as torch reads its convolution arguments."""
    many = tuple(value) if isinstance(value, (tuple, list, torch.Size)) else (value,)
    return tuple(int(v) for v in (many * count if len(many) == 1 else many))


def broadcast(session: Session, h: Traced, other: Tensor) -> tuple[int, ...]:
    """Return the shape of one sample of h combined elementwise with a constant; samples must stay apart."""
    shape = session.shape(h.value)
    try:
        joint = torch.broadcast_shapes(shape, other.shape)
    except RuntimeError:
        raise NotUnderstood("combines shapes that do not fit") from None
    require(len(joint) == len(shape) and joint[0] == shape[0], "combines shapes that do not fit")
    return tuple(joint[1:])


def shifted(session: Session, h: Traced, other: Tensor | float) -> Traced:
    """h + what does not depend on x."""
    if not isinstance(other, Tensor):
        return session.add("shift", [h], [], (float(other),), session.shape(h.value)[1:])
    other = constant(session, other)
    dtype = torch.promote_types(session.dtypes[h.value], other.dtype)
    return session.add("shift", [h], [other], (), broadcast(session, h, other), dtype)


# --- convolutions and matrix products --------------------------------------------------------------------------------


def _tensors(session: Session, h: Traced, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    return [constant(session, part) for part in (weight, bias) if part is not None]


def _conv(axes: int) -> Recorder:
    def record(session, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        h, tensors = as_x(input), _tensors(session, input, weight, bias)
        shape = session.shape(h.value)
        stride, dilation = repeated(stride, axes), repeated(dilation, axes)
        require(len(shape) == axes + 2 == weight.ndim, "gets an input of unusual shape")
        kernel = weight.shape[2:]
        if padding == "same":
            require(all(d * (k - 1) % 2 == 0 for d, k in zip(dilation, kernel, strict=True)), "pads unevenly")
            padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
        padding = repeated(0 if padding == "valid" else padding, axes)
        sides = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(shape[2:], padding, dilation, kernel, stride, strict=True)
        ]
        require(min(sides) > 0 and shape[1] == weight.shape[1] * groups, "gets an input of unusual shape")
        options = (stride, padding, dilation, False, (0,) * axes, groups, weight.numel())
        return session.add("conv", [h], tensors, options, (weight.shape[0], *sides), _product_dtype(session, h))

    return record


def _conv_transpose(axes: int) -> Recorder:
    def record(session, input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
        h, tensors = as_x(input), _tensors(session, input, weight, bias)
        shape = session.shape(h.value)
        require(len(shape) == axes + 2 == weight.ndim, "gets an input of unusual shape")
        stride, padding, dilation = (repeated(v, axes) for v in (stride, padding, dilation))
        extra = repeated(output_padding, axes)
        sides = [
            (n - 1) * s - 2 * p + d * (k - 1) + e + 1
            for n, p, d, k, s, e in zip(shape[2:], padding, dilation, weight.shape[2:], stride, extra, strict=True)
        ]
        require(min(sides) > 0 and shape[1] == weight.shape[0], "gets an input of unusual shape")
        options = (stride, padding, dilation, True, extra, groups, weight.numel())
        return session.add(
            "conv", [h], tensors, options, (weight.shape[1] * groups, *sides), _product_dtype(session, h)
        )

    return record


for _axes, _functions in enumerate(
    ((torch.conv1d, torch.conv_transpose1d), (torch.conv2d, torch.conv_transpose2d),
     (torch.conv3d, torch.conv_transpose3d)), 1,
):  # fmt: skip
    RECORDERS[_functions[0]], RECORDERS[_functions[1]] = _conv(_axes), _conv_transpose(_axes)


@records(F.linear)
def _linear(session, input, weight, bias=None):
    h, tensors = as_x(input), _tensors(session, input, weight, bias)
    shape = session.shape(h.value)
    require(len(shape) >= 2 == weight.ndim and shape[-1] == weight.shape[1], "gets an input of unusual shape")
    return session.add("linear", [h], tensors, (), (*shape[1:-1], weight.shape[0]), _product_dtype(session, h))


@records(torch.matmul, Tensor.matmul, torch.mm, Tensor.mm)
def _matmul(session, input, other):
    return _linear(session, input, constant(session, other).t() if other.ndim == 2 else other)


# --- activations -----------------------------------------------------------------------------------------------------


def _act(session: Session, h: Traced, bias: Tensor | None, slope: float, inplace: bool = False) -> Traced:
    require(isinstance(slope, (int, float)) and math.isfinite(slope) and slope >= 0, f"has a negative slope of {slope}")
    tensors = [] if bias is None else [constant(session, bias)]
    shape = session.shape(h.value)[1:]
    result = session.add("act", [h], tensors, (float(slope),), shape)
    return session.rebind(h, result) if inplace else result


@records(F.relu)
def _relu(session, input, inplace=False):
    return _act(session, as_x(input), None, 0.0, inplace)


@records(torch.relu, Tensor.relu)
def _relu_function(session, input):
    return _act(session, as_x(input), None, 0.0)


@records(torch.relu_, Tensor.relu_, F.relu_)
def _relu_in_place(session, input):
    return _act(session, as_x(input), None, 0.0, True)


@records(F.leaky_relu)
def _leaky_relu(session, input, negative_slope=0.01, inplace=False):
    return _act(session, as_x(input), None, negative_slope, inplace)


@records(F.leaky_relu_)
def _leaky_relu_in_place(session, input, negative_slope=0.01):
    return _act(session, as_x(input), None, negative_slope, True)


@records(ops.bias_act)
def _bias_act(session, x, bias=None, *, activation, negative_slope=0.2, impl="auto"):
    if activation in ("relu", "leaky_relu"):
        slope = 0.0 if activation == "relu" else negative_slope
        if bias is not None:
            require(bias.ndim == 1 and bias.shape[0] == session.shape(as_x(x).value)[1], "gets an unusual bias")
        return _act(session, as_x(x), bias, slope)
    require(activation == "linear", f"calls {activation}, which {SMOOTH}")
    if bias is None:
        return x
    return shifted(session, as_x(x), bias.reshape(-1, *[1] * (len(session.shape(x.value)) - 2)))
