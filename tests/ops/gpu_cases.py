"""What the tests of the CUDA kernels share: their marks, random tensors, distances, and replayed graphs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from ganscale import ops

MARKS = [
    pytest.mark.gpu,
    pytest.mark.skipif(not ops.build_info()["cuda"], reason="the core was built without CUDA"),
]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Relative L2 distance that rounding explains: a result is rounded once or twice to its type.
NEAR = {torch.float32: 2e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def tensor(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, last: bool = False) -> Tensor:
    """The same normal numbers on every machine, rounded to ``dtype``; channels_last where ``last``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to("cuda", dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def distance(a: Tensor, b: Tensor) -> float:
    """Relative L2 distance of a from b, in float64; infinite where either is not finite."""
    a, b = a.detach().double(), b.detach().double()
    assert a.shape == b.shape, (a.shape, b.shape)
    far = (a - b).norm() / b.norm().clamp(min=1e-30) if a.numel() else a.new_zeros(())
    return far.item() if torch.isfinite(a).all() and torch.isfinite(b).all() else float("inf")


def bent(y: Tensor, activation: str) -> float:
    """What a few elements that fall on the other side of a bend may add to the distance of a gradient.

    Of float32 numbers about one in ten million is that near to 0: none is expected of a small tensor.
    """
    return 4 / y.numel() ** 0.5 if activation in ("relu", "leaky_relu") and y.numel() > 1e5 else 0.0


def assert_near(ours, others, dtype: torch.dtype, activation: str) -> None:
    """Compare results and gradients, the output first. 5: gradients pass through more roundings than one."""
    limit = 5 * NEAR[dtype] + bent(ours[0], activation)
    for place, (a, b) in enumerate(zip(ours, others, strict=True)):
        assert distance(a, b) <= limit, (place, distance(a, b))


def assert_replays(step: Callable[[], tuple[Tensor, ...]], inputs: list[Tensor]) -> None:
    """Capture ``step`` in a CUDA graph, change its inputs, and compare a replay with a plain call, bit by bit."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # loads every kernel: loading one while capturing is an error
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for x in inputs:
            x.mul_(1.25)
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, step(), strict=True):
        assert torch.equal(a, b)


@contextlib.contextmanager
def convolutions_in(precision: str) -> Iterator[None]:
    """float32 convolutions in "ieee" or "tf32"."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def needs_memory(gigabytes: float) -> None:
    """Skip where the GPU has less free memory than that."""
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes:g} GiB of GPU memory, {free:.1f} are free")
