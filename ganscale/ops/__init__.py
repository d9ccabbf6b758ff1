"""Operators of the training path: compiled kernels, each beside a plain-torch twin that gives the same result.

Every operator takes ``impl="auto" | "reference" | "fused"``; ``using`` (in a block), ``use_impl`` and the environment
variable GANSCALE_IMPL set what "auto" means. Inputs are float32, float64, float16 or bfloat16; sums are kept in float32
(float64 for float64), in a fixed order, so equal inputs give equal bits on any number of threads. Wrong arguments raise
UserError.

N batch, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from ganscale import errors
from ganscale.ops import _calls, _check, _choice, _extension, _register, conv, reference
from ganscale.ops._choice import plain_torch, use_impl, using
from ganscale.ops.conv_transpose import conv_transpose_act, conv_transpose_norm_act
from ganscale.ops.frozen import Frozen, freeze
from ganscale.ops.norm import affine_act, batch_norm_act, channel_moments, norm_act
from ganscale.ops.penalty import explain_choice, gradient_penalty
from ganscale.ops.windowed import Windowed

__all__ = [
    "Frozen",
    "Windowed",
    "affine_act",
    "batch_norm_act",
    "bias_act",
    "build_info",
    "channel_moments",
    "channel_sum",
    "conv_act",
    "conv_transpose_act",
    "conv_transpose_norm_act",
    "describe",
    "explain_choice",
    "freeze",
    "gradient_penalty",
    "interpolate",
    "norm_act",
    "piecewise_linear",
    "plain_torch",
    "sample_norm",
    "use_impl",
    "using",
]


def interpolate(real: Tensor, fake: Tensor, eps: Tensor, *, impl: str = "auto") -> Tensor:
    """Return eps * real + (1 - eps) * fake [N, ...], one eps [N] a sample (Gulrajani et al. 2017, algorithm 1)."""
    _check.floating("real", real, least_axes=1)
    _check.floating("fake", fake, least_axes=1)
    _check.floating("eps", eps, least_axes=1)
    _check.alike("fake", fake, "real", real)
    _check.alike("eps", eps, "real", real)
    _check.shaped("fake", fake, real.shape, "that of real")
    _check.shaped("eps", eps, real.shape[:1], "one number a sample")
    fused = _choice.use_fused(impl, real, "interpolate")
    return (_register.gp_interpolate if fused else reference.interpolate)(real, fake, eps)


def sample_norm(g: Tensor, *, impl: str = "auto") -> Tensor:
    """Return [N] Euclidean norms of the samples g [N, ...]; the gradient at a norm of 0 is 0, as is torch's."""
    _check.floating("g", g, least_axes=1)
    fused = _choice.use_fused(impl, g, "sample_norm")
    return reference.safe_sqrt((_register.sample_norm2 if fused else reference.sample_norm2)(g))


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str,
    negative_slope: float = 0.2,
    impl: str = "auto",
) -> Tensor:
    """Return act(x + bias) for x [N, C, ...] and bias [C], in the memory layout of x.

    ``activation`` is "linear", "relu", "leaky_relu" (with ``negative_slope`` >= 0) or "tanh". Twice differentiable;
    the kernels give the piecewise linear ones no second derivative at all, rather than zeros, which spares a gradient
    penalty whole backward passes. Under autocast the bias follows the dtype of x.
    """
    if has_torch_function_unary(x):  # somebody watches torch's calls, and this one among them
        options = {"activation": activation, "negative_slope": negative_slope, "impl": impl}
        return handle_torch_function(bias_act, (x,), x, bias, **options)
    _check.floating("x", x, least_axes=1 if bias is None else 2)
    _check.activation(activation, negative_slope)
    if bias is not None:
        _check.floating("bias", bias, least_axes=1)
        if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
            bias = bias.to(x.dtype)
        _check.alike("bias", bias, "x", x)
        _check.shaped("bias", bias, x.shape[1:2], "one number a channel")
    elif activation == "linear":
        return x
    run = reference.bias_act
    if _choice.use_fused(impl, x, activation):
        run = _register.EagerBiasAct.apply if _calls.is_plain(x) else _register.bias_act
    return run(x, bias, activation, float(negative_slope))


def conv_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    activation: str,
    negative_slope: float = 0.2,
    impl: str = "auto",
) -> Tensor:
    """Return act(conv2d(x, weight) + bias) for x [N, C, H, W], weight [O, C, KH, KW], bias [O]: a critic's block.

    Groups and dilation are 1, padding is with zeros. Twice differentiable in all tensors, as ``bias_act``. Under
    autocast x, weight and bias are cast as torch casts them for a convolution. Raises UserError for shapes, dtypes or
    numbers that do not fit together.
    """
    stride, padding = _calls.pair("stride", stride, 1), _calls.pair("padding", padding, 0)
    act = {"activation": activation, "negative_slope": negative_slope, "impl": impl}
    if has_torch_function_unary(x):  # who watches sees torch's convolution
        return bias_act(torch.nn.functional.conv2d(x, weight, None, stride, padding), bias, **act)
    _check.activation(activation, negative_slope)
    with _calls.cast_once(x, weight, bias) as (x, weight, bias):
        conv.check(x, weight, bias, stride, padding)
        if conv.takes(x, impl):
            return conv.ConvAct.apply(x, weight, bias, stride, padding, activation, float(negative_slope))
        return bias_act(torch.nn.functional.conv2d(x, weight, None, stride, padding), bias, **act)


def piecewise_linear(x: Tensor, *, negative_slope: float = 0.2, impl: str = "auto") -> Tensor:
    """Return x where positive, else negative_slope * x (slope >= 0; 0 is ReLU); ``bias_act`` without a bias."""
    activation = "leaky_relu" if negative_slope else "relu"
    return bias_act(x, activation=activation, negative_slope=negative_slope, impl=impl)


def channel_sum(x: Tensor, *, impl: str = "auto") -> Tensor:
    """Return [C] sums of x [N, C, ...] over all axes but the channels: the gradient of a bias."""
    _check.floating("x", x, least_axes=2)
    fused = _choice.use_fused(impl, x, "channel_sum")
    return (_register.channel_sum if fused else reference.channel_sum)(x)


def build_info() -> dict[str, object]:
    """Return what the compiled core is and can do here; ``compiled`` is False, with the ``reason``, without it.

    Keys: version, compiled, cuda (kernels built), cuda_archs (list), cuda_devices (usable now), cuda_problem, openmp,
    compiler, cpu_features (instruction sets this CPU runs), cpu_kernels (the one in use), impl (what "auto" means now).
    """
    facts = _extension.facts()
    if not facts:
        return {"compiled": False, "cuda": False, "reason": _extension.problem(), "impl": _choice.resolve("auto")}
    archs = [arch for arch in str(facts["cuda_archs"]).split(",") if arch]
    return {"compiled": True, **facts, "cuda_archs": archs, "impl": _choice.resolve("auto")}


def describe() -> str:
    """Return one line for a run's header: which implementation is on, and why."""
    try:
        impl = _choice.resolve("auto")
    except errors.UserError as error:
        return str(error)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    why = _choice.obstacle(device)
    if impl == "reference":
        return "plain torch (ops.impl=reference)"
    if why:
        return f"plain torch ({why})"
    kind = "CUDA" if device.type == "cuda" else f"C++, {_extension.facts()['cpu_kernels']}"
    small = "; plain torch for small tensors" if impl == "auto" else ""
    return f"compiled ({kind}{small})"
