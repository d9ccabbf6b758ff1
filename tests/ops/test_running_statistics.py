"""The running statistics of batch norm: those of nn.BatchNorm2d, moved inside the core where it can write to them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ganscale import ops

pytestmark = pytest.mark.skipif(not ops.build_info()["compiled"], reason="the compiled core is not built")


def _randn(shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("impl", ["reference", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_running_statistics_and_evaluation_equal_nn_batch_norms(dtype, impl):
    layer = nn.BatchNorm2d(5, momentum=0.3).to(dtype)
    nn.init.uniform_(layer.weight, 0.5, 2)
    mean, variance = layer.running_mean.clone(), layer.running_var.clone()
    for step in range(4):
        x = _randn((3, 5, 7, 6), dtype, step) * (step + 1) + step
        expected = layer(x)
        y = ops.norm_act(
            x, layer.weight, layer.bias, mean, variance, training=True, momentum=0.3, activation="linear", impl=impl
        )
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean, layer.running_mean, rtol=1e-6, atol=1e-7)  # sums in another order
    torch.testing.assert_close(variance, layer.running_var, rtol=1e-6, atol=1e-7)
    layer.eval()
    inputs = x.requires_grad_(), layer.weight, layer.bias
    y = ops.norm_act(*inputs, mean, variance, training=False, activation="relu", impl=impl)
    expected = layer(x).relu()
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(y.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def _trained(x, mean, variance, momentum=0.1):
    return ops.norm_act(x, None, None, mean, variance, training=True, momentum=momentum, impl="fused")


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_running_statistics_move_as_by_lerp_but_for_the_last_bit(dtype, momentum):
    torch.manual_seed(0)
    x, wide = (3 * torch.randn(8, 48, 6, 6) + 1).to(dtype), torch.float64 if dtype == torch.float64 else torch.float32
    found, held = torch.randn(2, 48, dtype=wide), torch.zeros(2, 48, dtype=wide)
    _trained(x, *held, momentum=1.0)  # as they are of this batch
    moved = found.clone()
    _trained(x, *moved, momentum=momentum)
    wanted, bit = torch.lerp(found, held, momentum), torch.finfo(wide).eps
    torch.testing.assert_close(moved, wanted, rtol=bit, atol=bit * float(held.max()))  # of what is added up
    if momentum in (0.0, 1.0):
        assert torch.equal(moved, wanted)


def test_running_statistics_that_a_graph_still_needs_are_known_to_have_moved():
    x, mean, variance = torch.randn(4, 16, 8, 8).requires_grad_(), torch.zeros(16), torch.ones(16)
    y = mean.requires_grad_(False) * torch.ones(16, requires_grad=True)  # keeps mean for its backward pass
    _trained(x, mean, variance)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(
    "held", [torch.zeros(16, dtype=torch.float64), torch.zeros(16, 2)[:, 0]], ids=["float64", "strided"]
)
def test_running_statistics_of_another_kind_move_as_well(held):
    x = torch.randn(4, 16, 8, 8)
    usual = torch.zeros(16), torch.zeros(16)
    _trained(x, *usual)
    others = held.clone(memory_format=torch.preserve_format), torch.zeros(16)
    _trained(x, *others)
    torch.testing.assert_close(others[0], usual[0].to(held.dtype))
