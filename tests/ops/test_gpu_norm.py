"""Batch norm with its activation on a GPU against the twins. The cases named small are run under compute-sanitizer."""

from __future__ import annotations

import pytest
import torch
from gpu_cases import DTYPES, MARKS, assert_near, assert_replays, distance, needs_memory, tensor

from ganscale.ops import norm

pytestmark = MARKS
ACTIVATIONS = ["linear", "relu", "leaky_relu", "tanh"]
# Whole packs of channels or not, runs that packs divide or not, one channel, several rows read as one, more bands.
SMALL = [(2, 1, 3, 5), (2, 3, 4, 8), (3, 40, 5, 7), (5, 64), (8, 5, 1, 1), (2, 3, 9, 9)]
LARGE = [(64, 512, 4, 4), (64, 64, 32, 32), (7, 130, 33, 31), (300, 3, 64, 64), (100003, 24)]
SHAPES = [*(pytest.param(s, id=f"small-{s}") for s in SMALL), *(pytest.param(s, id=f"large-{s}") for s in LARGE)]


def _numbers(x, seed):
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return tensor(x.shape[1], dtype=wide, seed=seed).requires_grad_()


def _layouts(shape, dtype, seed=0):
    plain = tensor(*shape, dtype=dtype, seed=seed)
    yield plain
    if len(shape) == 4 and shape[1] > 1 and shape[2] * shape[3] > 1:
        yield plain.contiguous(memory_format=torch.channels_last)


def _passes(x, activation, impl, affine=True):
    """Output, statistics, and gradients of one forward and backward pass."""
    x = x.detach().requires_grad_()
    gamma, beta = (_numbers(x, 1), _numbers(x, 2)) if affine else (None, None)
    y, mean, variance = norm.batch_norm_act(x, gamma, beta, activation=activation, impl=impl)
    gy = torch.empty_like(y).copy_(tensor(*x.shape, dtype=x.dtype, seed=3))
    leaves = (x, gamma, beta) if affine else (x,)
    return [y, mean, variance, *torch.autograd.grad(y, leaves, gy)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_equals_its_twin(shape, dtype):
    for x in _layouts(shape, dtype):
        for activation in ACTIVATIONS:
            ours, twins = (_passes(x, activation, impl) for impl in ("fused", "reference"))
            assert ours[0].stride() == x.stride()
            assert_near(ours, twins, dtype, activation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_affine_map_with_activation_equals_its_twin(shape, dtype):
    for x in _layouts(shape, dtype):
        scale, shift, mean = (_numbers(x, seed) for seed in (4, 5, 6))
        gy = tensor(*shape, dtype=dtype, seed=7)
        for activation in ACTIVATIONS:
            both = []
            for impl in ("fused", "reference"):
                leaf = x.detach().requires_grad_()
                y = norm.affine_act(leaf, scale, shift, mean=mean, activation=activation, impl=impl)
                both.append([y, *torch.autograd.grad(y, (leaf, scale, shift), gy)])
            assert_near(*both, dtype, activation)


def test_small_statistics_of_a_large_mean_are_exact():
    for shape, last in (((64, 5, 9, 9), False), ((64, 8, 9, 9), True)):
        x = (tensor(*shape, last=last) + 1000.0).requires_grad_()
        y, mean, variance = norm.batch_norm_act(x, None, None, activation="linear", impl="fused")
        wide = x.detach().double()
        exact = wide.var([0, 2, 3], unbiased=False)
        assert distance(mean, wide.mean([0, 2, 3])) < 1e-6
        assert distance(variance, exact) < 1e-6
        centred = (wide - wide.mean([0, 2, 3], keepdim=True)) / (exact + 1e-5).sqrt().reshape(1, -1, 1, 1)
        assert distance(y, centred) < 1e-6


def test_small_first_and_second_derivatives_are_those_of_the_formula():
    x = tensor(3, 4, 3, 2, dtype=torch.float64).requires_grad_()
    gamma, beta = _numbers(x, 1), _numbers(x, 2)

    def forward(x, gamma, beta):
        return norm.batch_norm_act(x, gamma, beta, activation="tanh", impl="fused")[0]

    assert torch.autograd.gradcheck(forward, (x, gamma, beta))
    assert torch.autograd.gradgradcheck(forward, (x, gamma, beta))


def test_small_batch_norm_repeats_bit_by_bit_whatever_the_layout_of_the_gradient():
    x = tensor(16, 24, 9, 9, last=True)
    first = _passes(x, "leaky_relu", "fused")
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, _passes(x, "leaky_relu", "fused"), strict=True))


def test_small_tensors_past_an_aligned_address_take_the_scalar_path():
    store = tensor(2 * 8 * 6 * 4 + 1)
    x = store[1:].view(2, 8, 6, 4)
    assert_near(_passes(x, "relu", "fused"), _passes(x, "relu", "reference"), torch.float32, "relu")


def test_small_empty_batches_have_no_output_and_no_gradient():
    x = torch.empty(0, 4, 3, 3, device="cuda", requires_grad=True)
    scale, shift = (torch.ones(4, device="cuda", requires_grad=True) for _ in range(2))
    y = norm.affine_act(x, scale, shift, activation="relu", impl="fused")
    assert y.shape == x.shape
    gx, gscale, gshift = torch.autograd.grad(y.sum(), (x, scale, shift))
    assert gx.shape == x.shape
    assert not gscale.any()
    assert not gshift.any()


def test_batch_norm_can_be_captured_in_a_cuda_graph():
    x, gamma, beta = tensor(8, 16, 32, 32, last=True), tensor(16, seed=1), tensor(16, seed=2)
    x, gamma, beta = (t.requires_grad_() for t in (x, gamma, beta))

    def step():
        y = norm.batch_norm_act(x, gamma, beta, activation="leaky_relu", impl="fused")[0]
        return y.detach(), *torch.autograd.grad(y.square().sum(), (x, gamma, beta))

    assert_replays(step, [x, gamma, beta])


def test_more_than_2_to_31_elements_are_normalised():
    needs_memory(14)
    channels, count = 8, 2**28 + 3
    x = torch.empty(count, channels, device="cuda", dtype=torch.bfloat16).normal_()
    y, mean, variance = norm.batch_norm_act(x, None, None, activation="relu", impl="fused")
    assert mean.abs().max() < 1e-3
    assert (variance - 1).abs().max() < 1e-2
    for rows in (slice(0, 1000), slice(count - 1000, count)):
        expected = ((x[rows].float() - mean) * (variance + 1e-5).rsqrt()).relu()
        assert distance(y[rows], expected) < 1e-2
