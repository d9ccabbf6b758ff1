"""The fused gradient penalty on a GPU: exact, no wait for the device, and one CUDA graph."""

from __future__ import annotations

import pytest
import torch
from penalty_cases import CASES, assert_same, case, penalty_and_gradients

from ganscale import ops
from ganscale.ops import _choice

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not ops.build_info()["cuda"], reason="the core was built without CUDA"),
]
IMAGES = [name for name in CASES if len(CASES[name][1]) == 3]


@pytest.fixture(params=["kernels", "plain torch"], autouse=True)
def _core(request, monkeypatch):
    if request.param == "plain torch":
        monkeypatch.setattr(_choice, "obstacle", lambda device: "turned off by the test")


def _on_gpu(name, *, samples=4, dtype=torch.float64, layout=torch.contiguous_format):
    critic, x = case(name, samples=samples)
    x = x.to("cuda", dtype)
    return critic.to("cuda", dtype), x.contiguous(memory_format=layout) if x.ndim == 4 else x


@pytest.mark.parametrize("name", CASES)
def test_small_penalties_and_gradients_equal_automatic_differentiation(name):
    for layout in (torch.contiguous_format, torch.channels_last) if name in IMAGES else (torch.contiguous_format,):
        found = []
        for impl in ("auto", "reference"):
            critic, x = _on_gpu(name, layout=layout)
            found.append(penalty_and_gradients(critic, x, impl, list(critic.parameters()), center=0.2))
        assert_same(*found, tolerance=1e-11)  # sums of cuDNN have orders of their own


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["k4s2p1-16", "residual", "bias-act"])
def test_errors_under_autocast_are_at_most_twice_those_of_torch(name, dtype):
    def found(impl, precise):
        critic, x = _on_gpu(name, samples=64, dtype=torch.float64 if precise else torch.float32)
        with torch.autocast("cuda", dtype=dtype, enabled=not precise):
            penalty = ops.gradient_penalty(critic, x, impl=impl)
        gradients = torch.autograd.grad(penalty.mean() * 64, list(critic.parameters()), allow_unused=True)
        return torch.cat(
            [g.flatten().double() for g, p in zip(gradients, critic.parameters(), strict=True) if p.ndim > 1]
        )

    exact = found("reference", precise=True)
    errors = [(found(impl, precise=False) - exact).norm() for impl in ("auto", "reference")]
    assert errors[0] <= 2 * errors[1]


def test_the_host_does_not_wait_for_the_device():
    critic, x = _on_gpu("k4s2p1-16", dtype=torch.float32)
    ops.gradient_penalty(critic, x).mean().backward()  # loads kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.gradient_penalty(critic, x).mean().backward()  # raises where the host waits
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(p.grad.isfinite().all() for p in critic.parameters())


def test_a_penalty_and_its_gradients_are_one_cuda_graph():
    critic, x = _on_gpu("k4s2p1-16", dtype=torch.float32, samples=8)

    def step():
        critic.zero_grad(set_to_none=False)
        ops.gradient_penalty(critic, x).mean().backward()

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    x.normal_()
    graph.replay()
    ours = [p.grad.clone() for p in critic.parameters()]
    step()
    for a, p in zip(ours, critic.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)
