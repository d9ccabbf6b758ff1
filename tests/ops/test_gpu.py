"""The CUDA kernels against the twins, on a GPU. The cases named small are those run under compute-sanitizer."""

from __future__ import annotations

import pytest
import torch

from ganscale import ops
from ganscale.ops import _register, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not ops.build_info()["cuda"], reason="the core was built without CUDA"),
]
SMALL = [(1, 1), (3, 7), (2, 3, 5, 7), (2, 64, 4, 4), (3, 5, 9, 8)]
LARGE = [(4, 70001), (64, 64, 32, 32), (300, 129, 3, 3), (8, 3, 128, 128)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Results are rounded once; sums have their own order, and float16 exponents end at 65504.
CLOSE = {
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float16: {"rtol": 4e-3, "atol": 4e-3},
    torch.bfloat16: {"rtol": 3e-2, "atol": 3e-2},
}


def _half_square(x):
    """A critic whose gradient at x is x."""
    return x.square().flatten(1).sum(1) / 2


def _everything(shape, dtype, device, impl):
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device) for _ in range(2))
    bias = torch.randn(shape[1], generator=generator, dtype=torch.float64).to(dtype).to(device).requires_grad_()
    eps = torch.rand(shape[0], generator=generator, dtype=torch.float64).to(dtype).to(device)
    layouts = [x, x.contiguous(memory_format=torch.channels_last)] if x.ndim == 4 else [x]
    results = []
    for laid in layouts:
        leaf = laid.detach().requires_grad_()
        results += [ops.interpolate(laid, other, eps, impl=impl), ops.sample_norm(laid, impl=impl)]
        results += [ops.channel_sum(laid, impl=impl) / x[:, 0].numel() ** 0.5]
        for activation in ("linear", "relu", "leaky_relu", "tanh"):
            y = ops.bias_act(leaf, bias, activation=activation, impl=impl)
            results += [y.detach(), *torch.autograd.grad(y, (leaf, bias), other)]
            results[-1] = results[-1] / x[:, 0].numel() ** 0.5
        precise = leaf if dtype == torch.float64 else leaf.float()
        penalty = ops.gradient_penalty(_half_square, precise / max(1.0, x[0].numel() ** 0.5), impl=impl)
        results += [penalty.detach(), *torch.autograd.grad(penalty.sum(), leaf)]
    return results


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [*(pytest.param(s, id=f"small-{s}") for s in SMALL), *(pytest.param(s, id=f"large-{s}") for s in LARGE)]
)
def test_cuda_kernels_equal_the_twins(shape, dtype):
    ours = _everything(shape, dtype, "cuda", "fused")
    twins = _everything(shape, dtype, "cuda", "reference")
    for a, b in zip(ours, twins, strict=True):
        torch.testing.assert_close(a, b, **CLOSE[dtype])


def test_small_unaligned_tensors_take_the_scalar_path():
    store = torch.randn(2 * 3 * 64 + 1, device="cuda")
    x = store[1:].view(2, 3, 64)  # 4 bytes past an aligned address
    torch.testing.assert_close(_register.bias_act(x, None, "tanh", 0.0), torch.tanh(x))
    torch.testing.assert_close(ops.sample_norm(x, impl="fused"), reference.gp_penalty(x, 1.0, False)[1])


def test_small_results_repeat_bit_by_bit():
    g = torch.randn(7, 70001, device="cuda")
    first = _register.gp_penalty(g, 1.0, False)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, _register.gp_penalty(g, 1.0, False), strict=True))


def test_small_kernels_run_on_the_current_stream():
    stream = torch.cuda.Stream()
    x = torch.zeros(64, 4096, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(20):
            x = x + 1
        norm = ops.sample_norm(x, impl="fused")
    stream.synchronize()
    torch.testing.assert_close(norm, torch.full((64,), 20.0 * 64, device="cuda"))


def test_the_ops_can_be_captured_in_a_cuda_graph():
    x, bias = torch.randn(8, 16, 32, 32, device="cuda"), torch.randn(16, device="cuda")

    def step():
        return ops.sample_norm(ops.bias_act(x, bias, activation="tanh", impl="fused"), impl="fused")

    for _ in range(3):  # loads every kernel: loading one while capturing is an error
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        norm = step()
    x.normal_()
    graph.replay()
    torch.testing.assert_close(norm, step())


def test_double_backward_through_a_critic_equals_the_twins():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 16, 3, device="cuda", dtype=torch.float64)
    x = torch.randn(4, 3, 16, 16, device="cuda", dtype=torch.float64)
    gradients = []
    for impl in ("fused", "reference"):

        def critic(t, impl=impl):
            return ops.bias_act(conv(t), conv.bias, activation="leaky_relu", impl=impl).flatten(1).sum(1)

        penalty = ops.gradient_penalty(critic, x, impl=impl)
        gradients.append(torch.autograd.grad(penalty.sum(), conv.weight)[0])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
