"""Transposed convolutions on a GPU against torch's in float64. Cases named small are run under compute-sanitizer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gpu_cases import DTYPES, MARKS, assert_replays, convolutions_in, distance, needs_memory, tensor

from ganscale.ops import _bind, _bind_conv, _extension

pytestmark = MARKS
SLOPE = 0.2
# (N, CI, h, w), CO, kernel, stride, padding, output_padding
FEW = {
    "small-dcgan": ((3, 20, 5, 4), 3, (4, 4), (2, 2), (1, 1), (0, 0)),
    "small-5": ((2, 3, 4, 5), 2, (5, 5), (2, 2), (2, 2), (1, 1)),
    "small-one-phase": ((1, 64, 6, 6), 3, (3, 3), (1, 1), (1, 1), (0, 0)),
    "small-apart": ((2, 8, 4, 6), 4, (3, 5), (2, 3), (1, 2), (0, 1)),
    "small-no-tap": ((1, 9, 3, 5), 1, (1, 1), (2, 2), (0, 0), (1, 1)),
    "small-large-kernel": ((1, 2, 20, 20), 3, (9, 9), (1, 1), (4, 4), (0, 0)),
    "large-dcgan": ((64, 64, 32, 32), 3, (4, 4), (2, 2), (1, 1), (0, 0)),
    "large-wide": ((4, 130, 33, 70), 4, (3, 3), (2, 2), (1, 1), (1, 1)),
}
MANY = {
    "small-dcgan": ((3, 64, 4, 4), 40, (4, 4), (2, 2), (1, 1), (0, 0)),
    "small-first": ((5, 100, 1, 1), 64, (4, 4), (1, 1), (0, 0), (0, 0)),
    "small-5": ((1, 20, 5, 3), 40, (5, 5), (2, 2), (2, 2), (1, 1)),
    "small-odd": ((3, 3, 6, 7), 3, (3, 3), (1, 1), (1, 1), (0, 0)),
    "small-columns": ((1, 64, 3, 3), 130, (3, 3), (2, 2), (1, 1), (1, 1)),
    "small-apart": ((2, 8, 4, 6), 4, (3, 5), (2, 3), (1, 2), (0, 1)),
    "small-no-tap": ((1, 9, 3, 5), 8, (1, 1), (2, 2), (0, 0), (1, 1)),
    "large-512-256": ((64, 512, 4, 4), 256, (4, 4), (2, 2), (1, 1), (0, 0)),
    "large-128-64": ((64, 128, 16, 16), 64, (4, 4), (2, 2), (1, 1), (0, 0)),
    "large-odd": ((7, 129, 31, 33), 131, (5, 3), (2, 1), (2, 0), (1, 0)),
}
# Relative L2 error of our result against float64 where torch's own is no guide: its algorithms may differ in precision.
ROUNDS = {torch.float32: 2e-6, torch.float64: 1e-14, torch.float16: 1e-3, torch.bfloat16: 8e-3}
TF32 = 2e-3  # both factors keep ten bits of their fractions


def _problem(case, dtype, last):
    shape, out, kernel, stride, padding, extra = case
    x = tensor(*shape, dtype=dtype, last=last)
    weight = tensor(shape[1], out, *kernel, dtype=dtype, seed=1) * (shape[1] * kernel[0]) ** -0.5
    size = [
        (side - 1) * s - 2 * p + k + e
        for side, s, p, k, e in zip(shape[2:], stride, padding, kernel, extra, strict=True)
    ]
    exact = F.conv_transpose2d(x.double(), weight.double(), None, stride, padding, extra)
    return x, weight, (tuple(size), stride, padding), exact


def _act(z, activation):
    if activation == "leaky_relu":
        return F.leaky_relu(z, SLOPE)
    return getattr(torch, activation)(z) if activation != "linear" else z


def _image(x):
    return x.data_ptr(), _bind.DTYPES[x.dtype], tuple(x.shape), x.stride()


def _row(numbers):
    return None if numbers is None else _bind.view(numbers, (len(numbers),))


def product(x, weight, where, *, scale=None, shift=None, statistics=False, activation="linear", tf32=False):
    """The core's matrix product: act(convT(x) * scale + shift), or convT(x) and its sums [2, CO] in float64."""
    size, stride, padding = where
    core, conv = _extension.core(), (*stride, *padding)
    last = {"memory_format": torch.channels_last}
    x = x.contiguous(**last)
    y = torch.empty(len(x), weight.shape[1], *size, dtype=x.dtype, device=x.device).contiguous(**last)
    # Where both layouts are the same memory, strides say which is meant.
    x_view, y_view = (
        (t.data_ptr(), _bind.DTYPES[t.dtype], tuple(t.shape), (t[0].numel(), 1, t.shape[3] * t.shape[1], t.shape[1]))
        for t in (x, y)
    )
    bytes_ = core.conv_transpose_workspace_bytes(x_view, _image(weight), y_view, conv, _bind.execution(x))
    workspace = torch.empty(bytes_, dtype=torch.uint8, device=x.device)
    totals = torch.empty(2, weight.shape[1], dtype=torch.float64, device=x.device) if statistics else None
    sums = _bind.view(totals, tuple(totals.shape)) if statistics else None
    run = _bind.execution(x, workspace)
    code = _bind.ACTIVATIONS[activation]
    core.conv_transpose(x_view, _image(weight), _row(scale), _row(shift), y_view, sums, conv, code, SLOPE, tf32, run)
    return (y, totals) if statistics else y


# --- few output channels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", FEW.values(), ids=FEW.keys())
def test_few_channels_with_bias_and_activation_are_as_near_as_rounding_allows(case, dtype):
    for last in (False, True):
        x, weight, where, exact = _problem(case, dtype, last)
        bias = tensor(weight.shape[1], dtype=dtype, seed=2)
        with convolutions_in("ieee"):
            y = _bind_conv.few(x, weight, None, *where, "linear", SLOPE)
        assert distance(y, exact) <= ROUNDS[dtype]
        for activation in ("leaky_relu", "tanh"):
            with convolutions_in("ieee"):
                y = _bind_conv.few(x, weight, bias, *where, activation, SLOPE)
            expected = _act(exact + bias.double().reshape(1, -1, 1, 1), activation)
            assert distance(y, expected) <= ROUNDS[dtype]
            assert y.is_contiguous() or last


@pytest.mark.parametrize("case", FEW.values(), ids=FEW.keys())
def test_few_channels_are_rounded_to_tf32_only_where_torch_may(case):
    x, weight, where, exact = _problem(case, torch.float32, True)
    for precision, most in (("tf32", TF32), ("ieee", ROUNDS[torch.float32])):
        with convolutions_in(precision):
            assert distance(_bind_conv.few(x, weight, None, *where, "linear", SLOPE), exact) <= most


# --- any number of output channels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", MANY.values(), ids=MANY.keys())
def test_the_product_with_an_affine_map_and_activation_is_as_near_as_rounding_allows(case, dtype):
    x, weight, where, exact = _problem(case, dtype, True)
    scale, shift = tensor(weight.shape[1], seed=3), tensor(weight.shape[1], seed=4)
    assert distance(product(x, weight, where), exact) <= ROUNDS[dtype]
    affine = exact * scale.double().reshape(1, -1, 1, 1) + shift.double().reshape(1, -1, 1, 1)
    for activation in ("leaky_relu", "tanh"):
        y = product(x, weight, where, scale=scale, shift=shift, activation=activation)
        assert distance(y, _act(affine, activation)) <= ROUNDS[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", MANY.values(), ids=MANY.keys())
def test_the_product_returns_the_sums_of_what_it_stores(case, dtype):
    x, weight, where, _ = _problem(case, dtype, True)
    y, totals = product(x, weight, where, statistics=True)
    assert torch.equal(y, product(x, weight, where))
    wide = y.double()
    size = wide.abs().sum([0, 2, 3])
    assert ((totals[0] - wide.sum([0, 2, 3])).abs() <= 1e-5 * size + 1e-9).all()
    assert distance(totals[1], wide.square().sum([0, 2, 3])) < 1e-5


def test_small_statistics_of_a_large_mean_are_exact():
    x = torch.ones(4, 8, 6, 6, device="cuda").contiguous(memory_format=torch.channels_last)
    x[:, 1] += tensor(4, 6, 6) * 1e-2
    weight = torch.full((8, 16, 1, 1), 125.0, device="cuda")
    y, totals = product(x, weight, ((6, 6), (1, 1), (0, 0)), statistics=True)
    count = y[:, 0].numel()
    mean = totals[0] / count
    variance = totals[1] / count - mean.square()
    assert distance(variance, y.double().var([0, 2, 3], unbiased=False)) < 1e-5


@pytest.mark.parametrize("case", MANY.values(), ids=MANY.keys())
def test_tf32_rounds_to_ten_bits_and_ieee_does_not(case):
    x, weight, where, exact = _problem(case, torch.float32, True)
    rounded, ieee = (distance(product(x, weight, where, tf32=tf32), exact) for tf32 in (True, False))
    assert ieee <= ROUNDS[torch.float32]
    assert rounded <= TF32
    if x.shape[1] > 1:
        assert rounded > 10 * ieee  # else the flag would choose nothing


def test_small_products_repeat_bit_by_bit():
    x, weight, where, _ = _problem(MANY["small-dcgan"], torch.bfloat16, True)
    first = product(x, weight, where, statistics=True)
    for _ in range(5):
        again = product(x, weight, where, statistics=True)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_small_images_past_an_aligned_address_are_copied_first():
    store = tensor(2 * 5 * 5 * 8 + 1, dtype=torch.bfloat16)
    x = store[1:].view(2, 5, 5, 8).permute(0, 3, 1, 2)
    weight = tensor(8, 16, 4, 4, dtype=torch.bfloat16, seed=1)
    exact = F.conv_transpose2d(x.double(), weight.double(), None, 2, 1)
    assert distance(product(x, weight, ((10, 10), (2, 2), (1, 1))), exact) <= ROUNDS[torch.bfloat16]


def test_small_float64_is_refused():
    x, weight, where, _ = _problem(MANY["small-odd"], torch.float64, True)
    with pytest.raises(ValueError, match="float64"):
        product(x, weight, where)


def test_transposed_convolutions_can_be_captured_in_a_cuda_graph():
    x, weight, where, _ = _problem(MANY["large-128-64"], torch.bfloat16, True)
    picture, few, small, _ = _problem(FEW["small-dcgan"], torch.float32, False)
    bias = tensor(3, seed=2)

    def step():
        y, totals = product(x, weight, where, statistics=True)
        return y, totals, _bind_conv.few(picture, few, bias, *small, "tanh", SLOPE)

    assert_replays(step, [x, weight, picture, few])


def test_more_than_2_to_31_input_elements_are_gathered():
    needs_memory(24)
    samples, channels, side = 2050, 256, 64
    x = torch.empty(samples, channels, side, side, device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last).normal_()
    weight = tensor(channels, 8, 2, 2, dtype=torch.bfloat16, seed=1)
    y = product(x, weight, ((2 * side, 2 * side), (2, 2), (0, 0)))
    picture = _bind_conv.few(x, weight[:, :3], None, (2 * side, 2 * side), (2, 2), (0, 0), "linear", SLOPE)
    for n in (0, samples - 1):
        exact = F.conv_transpose2d(x[n : n + 1].double(), weight.double(), None, 2)
        assert distance(y[n : n + 1], exact) <= ROUNDS[torch.bfloat16]
        assert distance(picture[n : n + 1], exact[:, :3]) <= ROUNDS[torch.bfloat16]
