"""What the operators ask of their arguments; a broken rule is a UserError before anything is computed."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor

from ganscale.errors import UserError, unknown
from ganscale.ops._bind import ACTIVATIONS, DTYPES

FLOATS = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)


def floating(what: str, x: object, *, least_axes: int) -> None:
    """Require a dense real floating tensor with at least ``least_axes`` axes."""
    if not isinstance(x, Tensor):
        raise UserError(what, "be a torch.Tensor", type(x).__name__, "wrap it with torch.as_tensor")
    if x.dtype not in DTYPES:
        raise UserError(f"{what}.dtype", f"be one of {FLOATS}", str(x.dtype), f"convert it, as {what}.float()")
    if x.layout != torch.strided or x.is_nested:
        raise UserError(what, "be a dense tensor", str(x.layout), f"use {what}.to_dense()")
    if x.ndim < least_axes:
        axes = "the batch" if least_axes == 1 else "the batch and the channels"
        raise UserError(what, f"have an axis for {axes}", f"shape {tuple(x.shape)}", "add the missing axes")


def alike(what: str, x: Tensor, other: str, like: Tensor) -> None:
    """Require the dtype and device of ``like``."""
    if x.dtype != like.dtype:
        raise UserError(f"{what}.dtype", f"equal {other}.dtype ({like.dtype})", str(x.dtype), "convert one of them")
    if x.device != like.device:
        raise UserError(f"{what}.device", f"equal {other}.device ({like.device})", str(x.device), "move one of them")


def shaped(what: str, x: Tensor, shape: tuple[int, ...], why: str) -> None:
    """Require one exact shape, which ``why`` explains."""
    if tuple(x.shape) != tuple(shape):
        raise UserError(what, f"have shape {tuple(shape)} ({why})", f"shape {tuple(x.shape)}", "reshape or slice it")


def activation(name: str, negative_slope: float) -> None:
    """Require a known activation and a slope that keeps the sign of its input."""
    if not isinstance(name, str):
        raise UserError("activation", f"be one of {', '.join(ACTIVATIONS)}", type(name).__name__, "give its name")
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    if not _at_least_zero(negative_slope):
        raise UserError("negative_slope", "be finite and at least 0", negative_slope, "use e.g. 0.2")


def eps(value: float) -> None:
    """Require what may be added to a variance."""
    if not _at_least_zero(value):
        raise UserError("eps", "be finite and at least 0", value, "use e.g. 1e-5")


def _at_least_zero(value: object) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value) and value >= 0


def center(value: float) -> None:
    """Require a target norm that a norm can have."""
    if not _at_least_zero(value):
        raise UserError("center", "be a finite norm, at least 0", value, "use 1 (WGAN-GP) or 0 (R1, R2)")
