"""Claim: every elementwise operator against its plain-torch twin, forward, and backward where it has one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ganscale import ops
from ganscale.bench.lines import BY_NAME, LAYOUTS, Case, Line, Settings, compare
from ganscale.ops._choice import PAYS_FROM

CLAIM = "elementwise"
SHAPES = ((8, 64, 8, 8), (64, 64, 16, 16), (64, 128, 32, 32))
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
TWIN = "plain torch"

# (name, its key in PAYS_FROM, layout, call of an implementation's name)
Operator = tuple[str, str, str, Callable[[str], object]]


def _forward_backward(x: Tensor, call: Callable[[], Tensor], gy: Tensor, *others: Tensor) -> None:
    torch.autograd.grad(call(), (x, *others), gy)


def _interpolate(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Iterator[Operator]:
    real, fake = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    eps = torch.rand(shape[0], device=device).to(dtype)
    yield "interpolate", "interpolate", "nchw", lambda impl: ops.interpolate(real, fake, eps, impl=impl)


def _norms(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Iterator[Operator]:
    g = torch.randn(shape, device=device).to(dtype).requires_grad_()
    yield "sample_norm", "sample_norm", "nchw", lambda impl: ops.sample_norm(g.detach(), impl=impl)


def _bias_act(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Iterator[Operator]:
    for layout, memory_format in LAYOUTS.items():
        x = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
        bias = torch.randn(shape[1], device=device).to(dtype).requires_grad_()
        gy = torch.randn_like(x)
        for act in ("relu", "leaky_relu", "tanh"):

            def forward(impl: str, x: Tensor = x, bias: Tensor = bias, act: str = act) -> Tensor:
                return ops.bias_act(x, bias, activation=act, impl=impl)

            def both(impl: str, x: Tensor = x, bias: Tensor = bias, gy: Tensor = gy, forward=forward) -> None:
                _forward_backward(x, lambda: forward(impl), gy, bias)

            yield f"bias_act {act} f+b", act, layout, both
        yield "channel_sum", "channel_sum", layout, lambda impl, x=x: ops.channel_sum(x.detach(), impl=impl)


def measure(settings: Settings) -> Iterator[Line]:
    """Yield the lines of this claim; none has a goal: "auto" takes a kernel only where it pays."""
    for dtype, kind in DTYPES.items():
        for shape in SHAPES[-1:] if settings.quick else SHAPES:
            for operators in (_interpolate, _norms, _bias_act):
                for name, key, layout, call in operators(shape, kind, settings.device):
                    size = "x".join(map(str, shape))
                    what = name if math.prod(shape) >= PAYS_FROM[key] else name + BY_NAME
                    case = Case(claim=CLAIM, what=what, shape=size, dtype=dtype, layout=layout)
                    peers = {TWIN: lambda call=call: call("reference")}
                    yield from compare(settings, case, peers=peers, ours=lambda call=call: call("fused"))
