"""How near the kernels come to what the machine can do: memory traffic against a plain copy, arithmetic against a
matrix product, both measured in the same run.

A line's peer is the time that the copy (or the product) would need for the same bytes (or operations), so its ratio is
the share of the roofline that was reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ganscale import ops
from ganscale.bench.blocks import DTYPES, LAYERS, OUTPUT, UP, PlainNorm, forward, forward_backward, inputs
from ganscale.bench.lines import BY_NAME, Case, Line, Settings
from ganscale.bench.timing import fastest
from ganscale.ops.conv_transpose import FEW_CHANNELS

CLAIM = "roofline"
SHAPE = {"cpu": (64, 64, 64, 64), "cuda": (512, 64, 64, 64)}
COPY_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30}
PRODUCT_SIDE = 8192
TRAFFIC_GOAL, ARITHMETIC_GOAL = 0.8, 0.6  # on a GPU


def copy_bandwidth(settings: Settings) -> float:
    """Return bytes a second, read plus written, of a copy between two tensors that fit no cache of a GPU."""
    source = torch.ones(COPY_BYTES[settings.device] // 4, device=settings.device)
    target = torch.empty_like(source)
    best = fastest({"copy": lambda: target.copy_(source)}, rounds=settings.rounds, device=settings.device)
    return 2 * source.numel() * 4 / best["copy"]


def product_rate(settings: Settings) -> float:
    """Return operations a second of a square bfloat16 matrix product."""
    a = torch.randn(PRODUCT_SIDE, PRODUCT_SIDE, device=settings.device, dtype=torch.bfloat16)
    b = torch.randn_like(a)
    best = fastest({"product": lambda: a @ b}, rounds=settings.rounds, device=settings.device)
    return 2 * PRODUCT_SIDE**3 / best["product"]


def traffic(dtype: torch.dtype, device: str) -> dict[str, tuple[Callable[[], object], int]]:
    """Return name -> (call, bytes it has to move at least)."""
    x = torch.randn(SHAPE[device], device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    other, eps = torch.randn_like(x), torch.rand(len(x), device=device).to(dtype)
    bias = torch.randn(x.shape[1], device=device).to(dtype)
    scale, shift = torch.rand(2, x.shape[1], device=device)
    norm = PlainNorm(x.shape[1]).to(device)
    size = x.numel() * x.element_size()
    return {
        "interpolate": (lambda: ops.interpolate(x, other, eps, impl="fused"), 3 * size),
        "sample_norm": (lambda: ops.sample_norm(x, impl="fused"), size),
        "channel_sum": (lambda: ops.channel_sum(x, impl="fused"), size),
        "bias_act relu": (lambda: ops.bias_act(x, bias, activation="relu", impl="fused"), 2 * size),
        "affine_act relu": (lambda: ops.affine_act(x, scale, shift, activation="relu", impl="fused"), 2 * size),
        # x for the statistics, x and y; then gy and x for the sums, gy, x and gx
        "batch norm + ReLU forward": (forward(norm.ours, x), 3 * size),
        "batch norm + ReLU f+b": (forward_backward(norm.ours, norm, x), 8 * size),
    }


def measure(settings: Settings) -> Iterator[Line]:
    """Yield the lines of this claim; goals stand on a GPU only."""
    cuda = settings.device == "cuda"
    bandwidth = copy_bandwidth(settings)
    peer = f"copy at {bandwidth / 1e9:.0f} GB/s"
    for dtype, kind in DTYPES.items():
        for name, (call, moved) in traffic(kind, settings.device).items():
            best = fastest({"ours": call}, rounds=settings.rounds, device=settings.device)["ours"]
            case = Case(claim=CLAIM, what=name, shape="x".join(map(str, SHAPE[settings.device])), dtype=dtype)
            goal = TRAFFIC_GOAL if cuda else None
            yield case.line(peer, 1e3 * moved / bandwidth, 1e3 * best, goal=goal)
    if cuda:
        yield from _arithmetic(settings)


def _arithmetic(settings: Settings, batch: int = 512) -> Iterator[Line]:
    rate = product_rate(settings)
    peer = f"matrix product at {rate / 1e12:.0f} TFLOP/s"
    for wide, narrow, side in (*LAYERS, OUTPUT):
        x = inputs(batch, wide, side, torch.bfloat16, settings.device)
        weight = torch.randn(wide, narrow, 4, 4, device=settings.device, dtype=torch.bfloat16)
        bias = torch.randn(narrow, device=settings.device, dtype=torch.bfloat16)

        def call(x=x, weight=weight, bias=bias) -> object:
            return ops.conv_transpose_act(x, weight, bias, activation="relu", impl="fused", **UP)

        best = fastest({"ours": call}, rounds=settings.rounds, device="cuda")["ours"]
        operations = 2 * batch * side * side * wide * narrow * 16
        product = narrow > FEW_CHANNELS  # fewer are a matter of traffic
        what = f"conv_transpose_act to {narrow}{BY_NAME if product else ''}"
        case = Case(claim=CLAIM, what=what, shape=f"{batch}x{wide}x{side}x{side}", dtype="bf16")
        goal = ARITHMETIC_GOAL if product else None
        yield case.line(peer, 1e3 * operations / rate, 1e3 * best, goal=goal)
