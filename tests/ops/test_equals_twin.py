"""Every kernel gives what its plain-torch twin gives, over odd shapes, dtypes and memory layouts.

N batch, C channels, H height, W width.
"""

from __future__ import annotations

import pytest
import torch

from ganscale import ops
from ganscale.ops import _bind, _register, reference

SHAPES = [(1, 1), (3, 7), (2, 600), (1, 3, 5, 7), (2, 5, 1, 1), (3, 1, 9, 4), (2, 3, 33, 31), (5, 17, 4, 4)]
SHAPES += [(4, 64, 8, 8), (2, 3, 3, 4, 5), (16, 2, 1, 3), (4, 700, 2, 1), (1, 2, 150, 131)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ACTIVATIONS = ["linear", "relu", "leaky_relu", "tanh"]
# One rounding of the result in each dtype; sums and tanh get a few.
ROUNDING = {torch.float32: 2**-24, torch.float64: 2**-53, torch.float16: 2**-11, torch.bfloat16: 2**-8}

pytestmark = pytest.mark.skipif(not ops.build_info()["compiled"], reason="the compiled core is not built")


def _layouts(x):
    yield "contiguous", x
    if x.ndim == 4:
        yield "channels_last", x.contiguous(memory_format=torch.channels_last)
    if x.ndim == 5:
        yield "channels_last_3d", x.contiguous(memory_format=torch.channels_last_3d)
    yield "transposed", x.transpose(0, 1).contiguous().transpose(0, 1)
    yield "strided", torch.stack([x, -x], dim=-1)[..., 0]


def _randn(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def assert_as_good_as_torch(ours, twin, exact, dtype, slack=4.0):
    """Our error against float64 is at most twice the twin's, or a few roundings of the dtype."""
    scale = exact.abs().max().clamp(min=1e-30)
    ours_error = ((ours.double() - exact).abs().max() / scale).item()
    twin_error = ((twin.double() - exact).abs().max() / scale).item()
    assert ours.dtype == twin.dtype
    assert ours.shape == twin.shape
    assert ours_error <= max(2 * twin_error, slack * ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_interpolate_equals_its_twin(shape, dtype):
    real, fake, eps = _randn(shape, dtype), _randn(shape, dtype, 1), _randn(shape[:1], dtype, 2).abs()
    exact = reference.interpolate(real.double(), fake.double(), eps.double())
    for _, laid in _layouts(real):
        ours = ops.interpolate(laid, fake, eps, impl="fused")
        assert_as_good_as_torch(ours, reference.interpolate(real, fake, eps), exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 16384), (3, 16385), (1, 70001)], ids=str)
def test_norms_and_penalties_equal_their_twins(shape, dtype):
    g = _randn(shape, dtype)
    exact_penalty, exact_norm = reference.gp_penalty(g.double(), 1.5, False)
    for _, laid in _layouts(g):
        sum_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        twin_penalty, twin_norm = reference.gp_penalty(g, 1.5, False)
        penalty, norm = _register.gp_penalty(laid, 1.5, False)
        # A sum of n terms in blocks of 128 additions a lane: under 130 roundings of the accumulation type.
        assert_as_good_as_torch(norm, twin_norm, exact_norm, sum_dtype, slack=130)
        assert_as_good_as_torch(penalty, twin_penalty, exact_penalty, sum_dtype, slack=260)
        assert_as_good_as_torch(ops.sample_norm(laid, impl="fused"), twin_norm, exact_norm, sum_dtype, slack=130)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bias_act_equals_its_twin(shape, dtype, activation):
    x, bias = _randn(shape, dtype), _randn(shape[1:2], dtype, 1)
    for some_bias in (bias, None):
        exact = reference.bias_act(x.double(), None if some_bias is None else bias.double(), activation, 0.3)
        twin = reference.bias_act(x, some_bias, activation, 0.3)
        for _, laid in _layouts(x):
            ours = _register.bias_act(laid, some_bias, activation, 0.3)
            assert_as_good_as_torch(ours, twin, exact, dtype)
            assert ours.stride() == _bind.dense(laid).stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (64, 3, 1, 1), (2048, 5), (301, 40, 3, 3)], ids=str)
def test_channel_sum_equals_its_twin(shape, dtype):
    x = _randn(shape, dtype)
    exact = x.double().sum([axis for axis in range(x.ndim) if axis != 1])
    for _, laid in _layouts(x):
        ours = ops.channel_sum(laid, impl="fused")
        assert_as_good_as_torch(ours, reference.channel_sum(x), exact, dtype, slack=260)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_gradients_of_bias_act_equal_the_twins(activation, layout):
    x = _randn((3, 5, 7, 6), torch.float64).contiguous(memory_format=layout).requires_grad_()
    bias, gy = _randn((5,), torch.float64, 1).requires_grad_(), _randn((3, 5, 7, 6), torch.float64, 2)
    grads = {}
    for impl in ("reference", "fused"):
        y = ops.bias_act(x, bias, activation=activation, impl=impl)
        grads[impl] = torch.autograd.grad(y, (x, bias), gy)
    for ours, twin in zip(grads["fused"], grads["reference"], strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-13, atol=1e-13)  # float64, sums of 126 terms


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_special_values_come_out_as_torchs(activation):
    x = torch.tensor([[float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, -1e-40, 3e38]])
    ours = _register.bias_act(x, None, activation, 0.2)
    torch.testing.assert_close(ours, reference.bias_act(x, None, activation, 0.2), equal_nan=True, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_16_bit_number_survives_the_way_through_a_kernel(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).reshape(1, -1)
    out = _register.bias_act(every, None, "linear", 0.0)
    torch.testing.assert_close(out, every, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounding_to_16_bits_is_torchs(dtype):
    share = torch.tensor([0.5], dtype=dtype)
    every = torch.arange(0, 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[every.isfinite()][None]
    shifted = every.roll(1, dims=1)
    exact = (every.double() * 0.5 + shifted.double() * 0.5).float().to(dtype)  # float32 holds the sum exactly enough
    ours = _register.gp_interpolate(every, shifted, share)
    torch.testing.assert_close(ours, exact, rtol=0, atol=0)


def test_tanh_is_within_three_units_in_the_last_place_of_float64s():
    x = torch.cat([torch.linspace(-12, 12, 200001), torch.logspace(-40, 0, 20001)])[None]
    exact = torch.tanh(x.double())
    spacing = torch.nextafter(exact.float().abs(), torch.tensor(float("inf"))) - exact.float().abs()
    error = (_register.bias_act(x, None, "tanh", 0.0).double() - exact).abs() / spacing
    assert error.max() <= 3


def test_bits_do_not_depend_on_the_number_of_threads():
    g, x = _randn((3, 70001), torch.float32), _randn((64, 24, 9, 9), torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(
                [*_register.gp_penalty(g, 1.0, False), _register.channel_sum(x), _register.bias_act(x, None, "tanh", 0)]
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (0, 3)], ids=str)
def test_empty_tensors_give_empty_results(shape):
    x = torch.empty(shape, requires_grad=True)
    bias = torch.zeros(3, requires_grad=True)
    y = ops.bias_act(x, bias, activation="relu", impl="fused")
    assert y.shape == x.shape
    gx, gb = torch.autograd.grad(y.sum(), (x, bias))
    assert gx.shape == x.shape
    assert torch.equal(gb, torch.zeros(3))
    assert ops.interpolate(x, x, torch.rand(shape[0]), impl="fused").shape == x.shape
    assert torch.equal(ops.sample_norm(x, impl="fused"), torch.zeros(shape[0]))
    penalty, norm = _register.gp_penalty(x, 2.0, False)
    twin_penalty, twin_norm = reference.gp_penalty(x, 2.0, False)
    assert torch.equal(penalty, twin_penalty)
    assert torch.equal(norm, twin_norm)
