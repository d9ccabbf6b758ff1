"""Every operator against its plain-torch twin: ``python -m benchmarks.ops [--device cuda] [--rounds N]``.

One line a case: microseconds of the twin, of the compiled kernel, and their ratio (above 1: the kernel is faster).
Both run in the same process in turns; each number is the minimum over rounds. Ratios below 1 are printed like others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.timing import fastest
from ganscale import ops

Case = tuple[str, Callable[[str], object]]
SHAPES = {"small": (8, 64, 8, 8), "medium": (64, 64, 16, 16), "large": (64, 128, 32, 32)}


def _forward_backward(x: Tensor, call: Callable[[], Tensor], gy: Tensor, *others: Tensor) -> None:
    torch.autograd.grad(call(), (x, *others), gy)


def _interpolate(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Iterator[Case]:
    real, fake = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    eps = torch.rand(shape[0], device=device).to(dtype)
    yield "interpolate", lambda impl: ops.interpolate(real, fake, eps, impl=impl)


def _norms(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Iterator[Case]:
    g = torch.randn(shape, device=device).to(dtype).requires_grad_()
    yield "sample_norm", lambda impl: ops.sample_norm(g.detach(), impl=impl)
    ones = torch.ones(shape[0], device=device)

    def penalty(impl: str) -> None:
        # The critic 0.5 |x|^2 has gradient x, so that nothing but the penalty's own work is in the measurement.
        value = ops.gradient_penalty(lambda x: 0.5 * x.square().flatten(1).sum(1), g, impl=impl)
        torch.autograd.grad(value, g, ones.to(value.dtype))

    yield "gradient_penalty f+b", penalty


def _bias_act(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Iterator[Case]:
    for layout in (torch.contiguous_format, torch.channels_last):
        suffix = "nhwc" if layout == torch.channels_last else "nchw"
        x = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout).requires_grad_()
        bias = torch.randn(shape[1], device=device).to(dtype).requires_grad_()
        gy = torch.randn_like(x)
        for act in ("relu", "leaky_relu", "tanh"):

            def forward(impl: str, x: Tensor = x, bias: Tensor = bias, act: str = act) -> Tensor:
                return ops.bias_act(x, bias, activation=act, impl=impl)

            def both(impl: str, x: Tensor = x, bias: Tensor = bias, gy: Tensor = gy, forward=forward) -> None:
                _forward_backward(x, lambda: forward(impl), gy, bias)

            yield f"bias_act {act} f+b {suffix}", both
        yield f"channel_sum {suffix}", lambda impl, x=x: ops.channel_sum(x.detach(), impl=impl)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.device == "cpu":
        torch.set_num_threads(1)
        where = f"CPU, 1 thread, kernels {ops.build_info().get('cpu_kernels')}, process time"
    else:
        where = f"{torch.cuda.get_device_name()}, device events"
    print(f"# {where}; torch {torch.__version__}; minimum of {options.rounds} interleaved rounds")
    print(f"{'operator':28s} {'dtype':9s} {'shape':17s} {'torch us':>10s} {'ours us':>10s} {'ratio':>7s}")
    for dtype in (getattr(torch, name) for name in options.dtypes.split(",")):
        for shape in SHAPES.values():
            for cases in (_interpolate, _norms, _bias_act):
                for name, call in cases(shape, dtype, options.device):
                    contenders = {impl: lambda impl=impl, call=call: call(impl) for impl in ("reference", "fused")}
                    best = fastest(contenders, rounds=options.rounds, device=options.device)
                    twin, ours = best["reference"] * 1e6, best["fused"] * 1e6
                    size = "x".join(map(str, shape))
                    kind = str(dtype).removeprefix("torch.")
                    print(f"{name:28s} {kind:9s} {size:17s} {twin:10.1f} {ours:10.1f} {twin / ours:7.2f}", flush=True)


if __name__ == "__main__":
    main()
