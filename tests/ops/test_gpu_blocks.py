"""A generator's blocks on a GPU against their twins. The cases named small are run under compute-sanitizer."""

from __future__ import annotations

import pytest
import torch
from gpu_cases import DTYPES, MARKS, NEAR, assert_replays, bent, convolutions_in, distance, tensor

from ganscale import ops
from ganscale.ops import _bind_conv, conv_transpose

pytestmark = MARKS
UP = {"stride": 2, "padding": 1}
# (x, output channels): to a picture, and between blocks with whole packs of channels or not
SMALL = [((3, 20, 5, 4), 3), ((2, 64, 4, 4), 40), ((2, 9, 5, 3), 11)]
LARGE = [((64, 64, 32, 32), 3), ((64, 128, 16, 16), 64), ((32, 512, 4, 4), 256)]
SHAPES = [pytest.param(*s, id=f"small-{s}") for s in SMALL] + [pytest.param(*s, id=f"large-{s}") for s in LARGE]


def _leaves(shape, out, dtype, last=True):
    x = tensor(*shape, dtype=dtype, last=last)
    weight = tensor(shape[1], out, 4, 4, dtype=dtype, seed=1) * (4 * shape[1]) ** -0.5
    return [t.requires_grad_() for t in (x, weight, tensor(out, dtype=dtype, seed=2))]


def _numbers(out, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return [tensor(out, dtype=wide, seed=seed).requires_grad_() for seed in (3, 4)]


def _with_gradients(y, leaves):
    gy = torch.empty_like(y).copy_(tensor(*y.shape, dtype=y.dtype, seed=9))
    return [y, *torch.autograd.grad(y, leaves, gy)]


def assert_near_float64(ours, plain, exact, dtype, activation):
    """Ours may be twice as far from float64 as torch's, beyond what one rounding explains."""
    slack = 10 * NEAR[dtype] + bent(ours[0], activation)
    for place, (a, b, c) in enumerate(zip(ours, plain, exact, strict=True)):
        assert distance(a, c) <= 2 * distance(b, c) + slack, (place, distance(a, c), distance(b, c))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "out"), SHAPES)
def test_a_block_with_bias_and_activation_is_as_near_float64_as_torch(shape, out, dtype):
    for last in (False, True):
        for activation in ("relu", "tanh"):
            found = []
            for impl, precise in (("fused", dtype), ("reference", dtype), ("reference", torch.float64)):
                leaves = [t.detach().to(precise).requires_grad_() for t in _leaves(shape, out, dtype, last)]
                with convolutions_in("ieee"):
                    y = conv_transpose.conv_transpose_act(*leaves, activation=activation, impl=impl, **UP)
                    found.append(_with_gradients(y, leaves))
            assert_near_float64(*found, dtype, activation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "out"), SHAPES)
def test_a_block_with_batch_norm_is_as_near_float64_as_torch(shape, out, dtype):
    found = []
    for impl, precise in (("fused", dtype), ("reference", dtype), ("reference", torch.float64)):
        x, weight, bias = (t.detach().to(precise).requires_grad_() for t in _leaves(shape, out, dtype))
        gamma, beta = _numbers(out, precise)
        running = torch.zeros_like(gamma), torch.ones_like(gamma)
        leaves = x, weight, gamma, beta
        with convolutions_in("ieee"):
            y = conv_transpose.conv_transpose_norm_act(
                x, weight, bias, gamma, beta, *running, training=True, activation="leaky_relu", impl=impl, **UP
            )
            found.append([*_with_gradients(y, leaves), *running])
    assert_near_float64(*found, dtype, "leaky_relu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "out"), SHAPES)
def test_known_statistics_are_folded_into_the_product(shape, out, dtype):
    x, weight, bias = _leaves(shape, out, dtype)
    gamma, beta = _numbers(out, dtype)
    running = tensor(out, dtype=gamma.dtype, seed=5), tensor(out, dtype=gamma.dtype, seed=6).square() + 0.5
    found = []
    for impl, precise in (("fused", dtype), ("reference", dtype), ("reference", torch.float64)):
        image = [t.detach().to(precise) for t in (x, weight, bias)]
        wide = [t.detach().double() if precise == torch.float64 else t.detach() for t in (gamma, beta, *running)]
        with torch.no_grad(), convolutions_in("ieee"):
            y = conv_transpose.conv_transpose_norm_act(*image, *wide, training=False, impl=impl, **UP)
        found.append([y])
    assert_near_float64(*found, dtype, "relu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "out"),
    [
        pytest.param((3, 3, 9, 8), 20, id="small-image"),
        pytest.param((2, 40, 5, 4), 9, id="small"),
        pytest.param((64, 3, 64, 64), 64, id="large-image"),
        pytest.param((64, 128, 16, 16), 256, id="large"),
    ],
)
def test_a_critic_s_block_is_as_near_float64_as_torch(shape, out, dtype):
    for last in (False, True):
        found = []
        for impl, precise in (("fused", dtype), ("reference", dtype), ("reference", torch.float64)):
            x = tensor(*shape, dtype=dtype, last=last)
            weight = tensor(out, shape[1], 4, 4, dtype=dtype, seed=1) * (16 * shape[1]) ** -0.5
            bias = tensor(out, dtype=dtype, seed=2)
            leaves = [t.to(precise).requires_grad_() for t in (x, weight, bias)]
            with convolutions_in("ieee"):
                y = ops.conv_act(*leaves, activation="leaky_relu", impl=impl, **UP)
                found.append(_with_gradients(y, leaves))
        assert_near_float64(*found, dtype, "leaky_relu")


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_the_product_follows_the_precision_that_torch_is_told(precision):
    x, weight, _ = _leaves((32, 128, 16, 16), 64, torch.float32)
    exact = torch.conv_transpose2d(x.double(), weight.double(), None, 2, 1)
    with convolutions_in(precision):
        assert _bind_conv.rounds_to_tf32() is (precision == "tf32")
        y = conv_transpose.conv_transpose_act(x, weight, activation="linear", impl="fused", **UP)
    far = distance(y, exact)
    assert far <= 2e-6 if precision == "ieee" else 1e-5 < far < 2e-3


def test_small_derivatives_of_the_picture_s_layer_are_those_of_the_formula():
    leaves = _leaves((2, 3, 3, 2), 3, torch.float64)

    def forward(*leaves):
        return conv_transpose.conv_transpose_act(*leaves, activation="tanh", impl="fused", **UP)

    # cuDNN, which has part of the gradients, may sum in another order each time
    assert torch.autograd.gradcheck(forward, leaves, nondet_tol=1e-10)
    assert torch.autograd.gradgradcheck(forward, leaves, nondet_tol=1e-10)


def test_small_operators_obey_torch_s_rules():
    x, weight, bias = _leaves((2, 8, 4, 4), 8, torch.float32)
    conv = [2, 2], [1, 1], [0, 0]
    torch.library.opcheck(conv_transpose._conv_transpose_act, (x, weight, bias, *conv, "tanh", 0.2, True))
    torch.library.opcheck(conv_transpose._conv_transpose_totals, (x, weight, *conv))


def test_small_autocast_regions_multiply_in_16_bits():
    x, weight, bias = _leaves((2, 16, 4, 4), 24, torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cuda", dtype=dtype):
            y = conv_transpose.conv_transpose_act(x, weight, bias, activation="relu", impl="fused", **UP)
        assert y.dtype == dtype
        exact = torch.conv_transpose2d(x.double(), weight.double(), bias.double(), 2, 1).relu()
        assert distance(y, exact) <= 4 * NEAR[dtype]


def test_small_empty_batches_give_empty_pictures():
    for out in (3, 40):
        x, weight, bias = _leaves((0, 8, 4, 4), out, torch.float32)
        y = conv_transpose.conv_transpose_act(x, weight, bias, activation="tanh", impl="fused", **UP)
        assert y.shape == (0, out, 8, 8)
        gx, gw, _ = torch.autograd.grad(y.sum(), (x, weight, bias))
        assert gx.shape == x.shape
        assert not gw.any()


def test_a_generator_s_forward_pass_can_be_captured_in_a_cuda_graph():
    x, weight, _ = _leaves((8, 64, 8, 8), 32, torch.bfloat16)
    gamma, beta = _numbers(32, torch.bfloat16)
    picture, bias = tensor(32, 3, 4, 4, dtype=torch.bfloat16, seed=7) * 0.1, tensor(3, dtype=torch.bfloat16)

    def step():
        with torch.no_grad():
            h = conv_transpose.conv_transpose_norm_act(
                x, weight, None, gamma, beta, None, None, training=True, impl="fused", **UP
            )
            return (conv_transpose.conv_transpose_act(h, picture, bias, activation="tanh", impl="fused", **UP),)

    assert_replays(step, [x, weight, gamma, picture])
