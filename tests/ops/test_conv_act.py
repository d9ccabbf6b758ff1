"""The critic's block: equal to torch's three operators in value and in derivatives of first and second order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ganscale import errors, ops

LAST = torch.channels_last
# (N, C, side, O, kernel, stride, padding): a picture's layer, odd sides, one channel, and one wide enough for a product
SHAPES = [
    (2, 3, 9, 5, 4, 2, 1),
    (1, 1, 7, 2, 3, 1, 0),
    (3, 6, 8, 4, 5, 2, 2),
    (2, 256, 8, 512, 4, 2, 1),
    (2, 4, 5, 3, 1, 1, 0),
]
ACTIVATIONS = ["linear", "relu", "leaky_relu", "tanh"]

pytestmark = pytest.mark.skipif(not ops.build_info()["compiled"], reason="the compiled core is not built")


def _case(shape, dtype=torch.float64, layout=LAST):
    samples, c, side, o, kernel, stride, padding = shape
    torch.manual_seed(0)
    x, weight = torch.randn(samples, c, side, side), torch.randn(o, c, kernel, kernel) / (c * kernel * kernel) ** 0.5
    tensors = x.to(dtype, memory_format=layout), weight.to(dtype, memory_format=layout), torch.randn(o).to(dtype)
    return [t.requires_grad_() for t in tensors], {"stride": stride, "padding": padding}


def _plain(x, weight, bias, activation, stride, padding):
    return ops.reference.bias_act(F.conv2d(x, weight, None, stride, padding), bias, activation, 0.2)


def _all(y, tensors):
    gy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, tensors, gy)]


@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_equals_convolution_bias_and_activation(shape, activation, layout):
    tensors, conv = _case(shape, layout=layout)
    ours = _all(ops.conv_act(*tensors, activation=activation, impl="fused", **conv), tensors)
    torchs = _all(_plain(*tensors, activation, **conv), tensors)
    for mine, truth in zip(ours, torchs, strict=True):
        assert (mine - truth).abs().max() <= 1e-12 * truth.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_as_near_to_float64_as_torch(shape, dtype):
    tensors, conv = _case(shape, dtype)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    truth = _all(_plain(*exact, "tanh", **conv), exact)  # smooth: a kink would turn a rounding into a jump
    ours = _all(ops.conv_act(*tensors, activation="tanh", impl="fused", **conv), tensors)
    torchs = _all(_plain(*tensors, "tanh", **conv), tensors)
    rounding = torch.finfo(dtype).eps
    for mine, theirs, right in zip(ours, torchs, truth, strict=True):
        errors_ = [(found.double() - right).norm() / right.norm() for found in (mine, theirs)]
        assert errors_[0] <= max(2 * errors_[1], 2 * rounding)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_has_exact_first_and_second_derivatives(activation):
    tensors, conv = _case((2, 2, 5, 3, 3, 2, 1))

    def call(*tensors):
        return ops.conv_act(*tensors, activation=activation, impl="fused", **conv)

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


def test_under_autocast_it_is_torchs_convolution_in_that_precision():
    tensors, conv = _case(SHAPES[0], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = ops.conv_act(*tensors, activation="leaky_relu", impl="fused", **conv)
        torchs = _plain(tensors[0], tensors[1], tensors[2].bfloat16(), "leaky_relu", **conv)
    assert ours.dtype == torch.bfloat16
    for mine, truth in zip(_all(ours, tensors), _all(torchs, tensors), strict=True):
        assert mine.dtype == truth.dtype
        assert (mine.double() - truth.double()).norm() <= 2e-2 * truth.double().norm()  # a few roundings of bfloat16


def test_it_compiles_into_torchs_own_operators():
    tensors, conv = _case(SHAPES[0], torch.float32)

    def loss(*tensors):
        return ops.conv_act(*tensors, activation="tanh", impl="fused", **conv).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for mine, truth in zip(
        torch.autograd.grad(compiled(*tensors), tensors), torch.autograd.grad(loss(*tensors), tensors), strict=True
    ):
        torch.testing.assert_close(mine, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["leaky_relu", "relu"])
def test_leaky_relu_takes_no_pass_of_its_own_and_no_activation_drops_a_nan(activation):
    (x, weight, bias), conv = _case(SHAPES[0], torch.float32)
    x.data[1, 0, 4, 4] = torch.nan
    with torch.profiler.profile() as profile:
        y = ops.conv_act(x, weight, bias, activation=activation, impl="fused", **conv)
    called = {event.name for event in profile.events()}
    assert ("mkldnn::_convolution_pointwise" in called) is (activation == "leaky_relu")
    torch.testing.assert_close(y, _plain(x, weight, bias, activation, **conv), equal_nan=True)
    assert y.isnan().any()


def test_an_empty_batch_has_no_pictures_and_gradients_of_zero():
    tensors, conv = _case((0, 3, 8, 4, 4, 2, 1), torch.float32)
    y = ops.conv_act(*tensors, activation="relu", **conv)
    assert y.shape == (0, 4, 4, 4)
    assert not any(g.any() for g in torch.autograd.grad(y.sum(), tensors))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weight": torch.randn(4, 2, 3, 3)}, "as many input channels"),
        ({"weight": torch.randn(4, 3, 3)}, r"be \[N, C, H, W\]"),
        ({"weight": torch.randn(4, 3, 3, 3).double()}, "weight.dtype"),
        ({"bias": torch.randn(3)}, "one number an output channel"),
        ({"stride": 0}, "stride"),
        ({"padding": -1}, "padding"),
        ({"activation": "gelu"}, "activation"),
        ({"weight": torch.randn(4, 3, 9, 9)}, "as large as the kernel"),
        ({"x": torch.randint(0, 9, (2, 3, 8, 8))}, "x.dtype"),
        ({"x": torch.randn(2, 3, 8, 8, device="meta")}, "weight.device must equal x.device"),
        ({"weight": torch.randn(4, 3, 3, 3, device="meta")}, "weight.device must equal x.device"),
        ({"bias": torch.randn(4, device="meta")}, "bias.device must equal x.device"),
    ],
)
def test_what_does_not_fit_is_refused(change, named):
    right = {"x": torch.randn(2, 3, 8, 8), "weight": torch.randn(4, 3, 3, 3), "activation": "relu"}
    with pytest.raises(errors.UserError, match=named):
        ops.conv_act(**{**right, **change})
