"""Transposed convolution with bias, batch norm and activation: equal to torch's, exact to second order, no idle work.

N batch, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ganscale import errors, ops
from ganscale.ops import conv_transpose, reference_conv
from tests.ops.test_equals_twin import ROUNDING

# kernel, stride, padding, output padding
GEOMETRIES = [
    (4, 2, 1, 0),
    (4, 2, 0, 1),
    (5, 2, 2, 1),
    (3, 1, 1, 0),
    (3, 2, 0, 0),
    (2, 2, 0, 0),
    (1, 3, 0, 2),
    (4, 2, 3, 0),
]
IMAGES = [(1, 5, 5, 7), (2, 8, 3, 3), (3, 1, 4, 9), (2, 33, 6, 2)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ACTIVATIONS = ["linear", "relu", "leaky_relu", "tanh"]
LAYOUTS = [torch.contiguous_format, torch.channels_last]

pytestmark = pytest.mark.skipif(not ops.build_info()["compiled"], reason="the compiled core is not built")


def _randn(shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _layer(image, channels, kernel, dtype=torch.float64):
    """x, weight and bias, of which the outputs have order 1."""
    weight = _randn((image[1], channels, kernel, kernel), seed=1) / (image[1] ** 0.5 * kernel / 2)
    return _randn(image, dtype), weight.to(dtype), _randn((channels,), dtype, 2)


def assert_as_good_as_torch(ours, twin, exact, dtype):
    """Error against float64 at most twice torch's, or 8 roundings of numbers of order 1 in 16 bits, 2e-5 in 32."""
    scale = exact.abs().max().clamp(min=1).item()
    ours_error, twin_error = ((t.double() - exact).abs().max().item() / scale for t in (ours, twin))
    assert (ours.dtype, ours.shape) == (twin.dtype, twin.shape)
    floor = {torch.float32: 2e-5, torch.float64: 1e-12}.get(dtype, 8 * ROUNDING[dtype])
    assert ours_error <= max(2 * twin_error, floor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_values_equal_torchs(geometry, channels, dtype):
    kernel, stride, padding, extra = geometry
    conv = {"stride": stride, "padding": padding, "output_padding": extra}
    for turn, image in enumerate(IMAGES):
        if min((side - 1) * stride - 2 * padding + kernel + extra for side in image[2:]) < 1:
            continue
        x, weight, bias = _layer(image, channels, kernel, dtype)
        activation, bias = ACTIVATIONS[turn], bias if turn != 1 else None
        how = {"activation": activation, "negative_slope": 0.3, **conv}
        doubles = x.double(), weight.double(), None if bias is None else bias.double()
        exact = ops.conv_transpose_act(*doubles, **how, impl="reference")
        twin = ops.conv_transpose_act(x, weight, bias, **how, impl="reference")
        odd = torch.stack([x, -x], dim=-1)[..., 0]
        for laid in (x, x.contiguous(memory_format=torch.channels_last), odd, x.flip(3).flip(3)):
            ours = ops.conv_transpose_act(
                laid, weight.transpose(0, 1).contiguous().transpose(0, 1), bias, **how, impl="fused"
            )
            assert_as_good_as_torch(ours, twin, exact, dtype)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
def test_the_output_keeps_the_layout_of_the_input(layout):
    for channels in (3, 6):
        x, weight, bias = _layer((2, 8, 4, 4), channels, 4)
        y = ops.conv_transpose_act(x.contiguous(memory_format=layout), weight, bias, stride=2, padding=1, impl="fused")
        assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [3, 5])
def test_gradients_equal_torchs(channels, dtype, activation):
    x, weight, bias = _layer((2, 7, 5, 4), channels, 4, dtype)
    gy = _randn((2, channels, 10, 8), dtype, 3)
    for layout in LAYOUTS:
        gradients = []
        for impl, wide in (("fused", False), ("reference", False), ("reference", True)):
            inputs = [t.double() if wide else t for t in (x.contiguous(memory_format=layout), weight, bias)]
            inputs = [t.detach().requires_grad_() for t in inputs]
            y = ops.conv_transpose_act(*inputs, stride=2, padding=1, activation=activation, impl=impl)
            gradients.append(torch.autograd.grad(y, inputs, gy.to(y.dtype)))
        for ours, twin, exact in zip(*gradients, strict=True):
            assert_as_good_as_torch(ours, twin, exact, dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("geometry", [(4, 2, 1, 0), (3, 2, 1, 1), (3, 1, 0, 0)], ids=str)
@pytest.mark.parametrize("channels", [3, 5])
def test_first_and_second_derivatives_are_exact(channels, geometry, activation):
    kernel, stride, padding, extra = geometry
    inputs = [t.requires_grad_() for t in _layer((2, 2, 3, 2), channels, kernel)]
    for layout in LAYOUTS:
        inputs[0] = inputs[0].detach().contiguous(memory_format=layout).requires_grad_()

        def function(*inputs):
            conv = {"stride": stride, "padding": padding, "output_padding": extra}
            return ops.conv_transpose_act(*inputs, **conv, activation=activation, impl="fused")

        # Finite differences move z by less than 1e-5; no z of this seed is that close to the kink.
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("channels", [3, 5])
def test_piecewise_linear_activations_have_no_second_derivative_towards_what_they_saw(channels):
    x, weight, bias = (t.requires_grad_() for t in _layer((2, 4, 3, 3), channels, 4))
    y = ops.conv_transpose_act(x, weight, bias, stride=2, padding=1, activation="leaky_relu", impl="fused")
    (gx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    to_bias, to_weight = torch.autograd.grad(gx.square().sum(), (bias, weight), allow_unused=True)
    assert to_bias is None
    assert to_weight is not None


def _convolutions(function):
    """How many gradients each convolution_backward computed, and how many convolutions there were."""
    masks, forward = [], 0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        function()
    for event in profile.events():
        if event.name == "aten::convolution_backward":
            masks.append(event.concrete_inputs[-1])
        forward += event.name == "aten::convolution"
    return masks, forward


@pytest.mark.parametrize("channels", [3, 5])
def test_no_convolution_is_computed_that_nobody_asked_for(channels):
    x, weight, bias = (t.requires_grad_() for t in _layer((2, 4, 3, 3), channels, 4))
    for wanted, mask in (((x, weight, bias), [True, True, False]), ((weight,), [False, True, False]), ((bias,), None)):
        for t in (x, weight, bias):
            t.requires_grad_(any(t is w for w in wanted))
        y = ops.conv_transpose_act(x, weight, bias, stride=2, padding=1, activation="relu", impl="fused")
        masks, forward = _convolutions(lambda y=y, wanted=wanted: torch.autograd.grad(y.sum(), wanted))
        assert masks == ([] if mask is None else [mask])
        assert forward == 0


def test_opcheck_finds_nothing_wrong():
    for channels in (3, 5):
        for layout in LAYOUTS:
            x, weight, bias = (t.float().requires_grad_() for t in _layer((2, 4, 3, 5), channels, 4))
            x = x.detach().contiguous(memory_format=layout).requires_grad_()
            for activation in ACTIVATIONS:
                arguments = (x, weight, bias, [2, 2], [1, 1], [0, 0], activation, 0.2, False)
                done = torch.library.opcheck(conv_transpose._conv_transpose_act, arguments)
                assert set(done.values()) == {"SUCCESS"}


def test_a_generator_traces_into_one_graph():
    def loss(x, first, second, gamma, beta, mean, variance):
        how = {"stride": 2, "padding": 1, "impl": "fused"}
        h = ops.conv_transpose_norm_act(x, first, None, gamma, beta, mean, variance, training=True, **how)
        return ops.conv_transpose_act(h, second, activation="tanh", **how).square().sum()

    torch._dynamo.reset()
    x, first, _ = _layer((3, 4, 3, 3), 6, 4, torch.float32)
    second = _randn((6, 3, 4, 4), torch.float32, 7)
    inputs = [t.requires_grad_() for t in (x, first, second, torch.ones(6), torch.zeros(6))]
    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        running = torch.zeros(6), torch.ones(6)
        results.append((*torch.autograd.grad(function(*inputs, *running), inputs), *running))
    for plain, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, plain, rtol=1e-5, atol=1e-5)


# --- batch norm in between -------------------------------------------------------------------------------------------


def _block(impl, x, weight, bias, norm, training, activation="relu", **more):
    how = {"stride": 2, "padding": 1, "momentum": 0.3, "training": training, "activation": activation, "impl": impl}
    return ops.conv_transpose_norm_act(
        x, weight, bias, norm.weight, norm.bias, norm.running_mean, norm.running_var, **how, **more
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("impl", ["reference", "fused"])
@pytest.mark.parametrize("channels", [3, 6])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_block_equals_torchs_in_training_and_evaluation(channels, impl, layout, with_bias):
    x, weight, bias = _layer((3, 4, 5, 4), channels, 4)
    x, bias = x.contiguous(memory_format=layout), bias if with_bias else None
    ours, theirs = (nn.BatchNorm2d(channels, momentum=0.3).double() for _ in range(2))
    inputs = [t.requires_grad_() for t in (x, weight, bias) if t is not None]
    gy = _randn((3, channels, 10, 8), seed=4)
    for training in (True, True, False):
        theirs.train(training)
        y = _block(impl, x, weight, bias, ours, training)
        plain = theirs(F.conv_transpose2d(x, weight, bias, 2, 1)).relu()
        torch.testing.assert_close(y, plain, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-12, atol=1e-12)
        our_gradients = torch.autograd.grad(y, [*inputs, ours.weight, ours.bias], gy)
        their_gradients = torch.autograd.grad(plain, [*inputs, theirs.weight, theirs.bias], gy)
        for a, b in zip(our_gradients, their_gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        if training and with_bias:
            assert not our_gradients[2].any()  # exactly 0, where torch's has rounding left over


@pytest.mark.parametrize("channels", [3, 5])
def test_second_derivatives_of_a_block_are_exact(channels):
    x, weight, bias = (t.requires_grad_() for t in _layer((2, 2, 2, 3), channels, 4))
    norm = nn.BatchNorm2d(channels).double()
    for training in (True, False):

        def function(x, weight, bias, gamma, beta, training=training):
            how = {"stride": 2, "padding": 1, "training": training, "activation": "leaky_relu", "impl": "fused"}
            running = norm.running_mean.clone(), norm.running_var.clone()
            return ops.conv_transpose_norm_act(x, weight, bias, gamma, beta, *running, **how)

        inputs = (x, weight, bias, norm.weight, norm.bias)
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_casts_what_torch_casts(dtype):
    x, weight, bias = (t.float().requires_grad_() for t in _layer((3, 4, 5, 4), 6, 4))
    norm = nn.BatchNorm2d(6)
    last = _randn((6, 3, 4, 4), torch.float32, 5).requires_grad_()
    results = []
    for impl in ("fused", "reference"):
        with torch.autocast("cpu", dtype=dtype):
            h = _block(impl, x, weight, bias, norm, True)
            y = ops.conv_transpose_act(h, last, None, stride=2, padding=1, activation="tanh", impl=impl)
        assert (h.dtype, y.dtype) == (dtype, dtype)
        results.append(torch.autograd.grad(y.float().square().sum(), (x, weight, last, norm.weight)))
    for ours, twin in zip(*results, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - twin).norm() <= 8 * ROUNDING[dtype] * twin.norm()  # a few roundings in each of two layers
    with torch.autocast("cpu", dtype=dtype):
        wide = ops.conv_transpose_act(x.double(), last[:4].double(), None, impl="fused")
    assert wide.dtype == torch.float64


# --- bits, edges, refusals -------------------------------------------------------------------------------------------


def _results():
    for geometry in ((4, 2, 1, 0), (5, 2, 2, 1), (3, 1, 1, 0)):
        kernel, stride, padding, extra = geometry
        for image in ((1, 9, 13, 11), (2, 16, 8, 8), (5, 3, 17, 2)):
            for dtype in DTYPES:
                x, weight, bias = _layer(image, 3, kernel, dtype)
                for layout in LAYOUTS:
                    yield ops.conv_transpose_act(
                        x.contiguous(memory_format=layout),
                        weight,
                        bias,
                        stride=stride,
                        padding=padding,
                        output_padding=extra,
                        activation="tanh",
                        impl="fused",
                    )


def test_bits_depend_neither_on_the_run_nor_on_where_threads_cut_the_rows():
    before, seen = torch.get_num_threads(), set()
    try:
        for threads in (1, 1, 2, 3, 5):
            torch.set_num_threads(threads)
            digest = hashlib.sha256()
            for y in _results():
                digest.update(y.contiguous().view(torch.uint8).numpy().tobytes())
            seen.add(digest.hexdigest())
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 1


def test_every_instruction_set_gives_torchs_values():
    code = "from tests.ops.test_conv_transpose import check_values; check_values()"
    for isa in ops.build_info()["cpu_features"]:
        environment = {**os.environ, "GANSCALE_ISA": isa}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def check_values():
    for dtype in DTYPES:
        for geometry in GEOMETRIES[:5]:
            for channels in (1, 2, 3, 4):
                test_values_equal_torchs(geometry, channels, dtype)


def test_tanh_saturates_at_one_and_nan_stays_nan():
    x = torch.full((1, 2, 3, 3), 1e4)
    x[0, 0, 1, 1] = float("nan")
    for channels in (3, 5):
        weight = torch.ones(2, channels, 1, 1)
        y = ops.conv_transpose_act(x, weight, activation="tanh", impl="fused")
        assert y.isnan().nonzero().tolist() == [[0, c, 1, 1] for c in range(channels)]
        assert set(y[~y.isnan()].tolist()) == {1.0}


@pytest.mark.parametrize("impl", ["reference", "fused"])
@pytest.mark.parametrize("channels", [3, 5])
def test_an_empty_batch_comes_out_empty(channels, impl):
    x, weight, bias = (t.requires_grad_() for t in _layer((0, 4, 3, 3), channels, 4))
    norm = nn.BatchNorm2d(channels).double()
    for y in (
        ops.conv_transpose_act(x, weight, bias, stride=2, padding=1, impl=impl),
        _block(impl, x, weight, bias, norm, True),
        _block(impl, x, weight, bias, norm, False),
    ):
        assert y.shape == (0, channels, 6, 6)
        assert not torch.autograd.grad(y.sum(), weight)[0].any()


def test_a_block_that_leaves_one_value_a_channel_raises():
    x, weight, _ = _layer((1, 4, 1, 1), 3, 1)
    with pytest.raises(errors.UserError, match="more than one value a channel"):
        ops.conv_transpose_norm_act(x, weight, None, None, None, None, None, training=True, impl="fused")


X, W = torch.zeros(2, 3, 4, 4), torch.zeros(3, 2, 4, 4)


@pytest.mark.parametrize("impl", ["reference", "fused"])
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda i: ops.conv_transpose_act(X[0], W, impl=i), r"x and weight must be \[N, C, H, W\]"),
        (lambda i: ops.conv_transpose_act(X, W[0], impl=i), r"x and weight must be \[N, C, H, W\]"),
        (lambda i: ops.conv_transpose_act(X, W[:2], impl=i), "as many input channels"),
        (lambda i: ops.conv_transpose_act(X, W.double(), impl=i), "weight.dtype must equal x.dtype"),
        (lambda i: ops.conv_transpose_act(X, W, torch.zeros(3), impl=i), r"bias must have shape \(2,\)"),
        (lambda i: ops.conv_transpose_act(X, W, stride=0, impl=i), "stride must be an integer of at least 1"),
        (lambda i: ops.conv_transpose_act(X, W, stride=(2, 2, 2), impl=i), "stride must be an integer"),
        (lambda i: ops.conv_transpose_act(X, W, stride=2.0, impl=i), "stride must be an integer"),
        (lambda i: ops.conv_transpose_act(X, W, padding=-1, impl=i), "padding must be an integer of at least 0"),
        (lambda i: ops.conv_transpose_act(X, W, output_padding=1, impl=i), "output_padding must be less than stride"),
        (lambda i: ops.conv_transpose_act(X, W, padding=9, impl=i), "the output must be at least 1x1"),
        (lambda i: ops.conv_transpose_act(X, W[:, :0], impl=i), "the output must be at least 1x1"),
        (lambda i: ops.conv_transpose_act(X, W, activation="gelu", impl=i), "activation must be a known name"),
        (lambda i: ops.conv_transpose_act(X.numpy(), W, impl=i), "x must be a torch.Tensor"),
        (lambda i: ops.conv_transpose_act(X.to("meta"), W, impl=i), "weight.device must equal x.device"),
        (lambda i: ops.conv_transpose_act(X, W.to("meta"), impl=i), "weight.device must equal x.device"),
        (lambda i: ops.conv_transpose_act(X, W, W[0, :, 0, 0].to("meta"), impl=i), "bias.device must equal x.device"),
        (
            lambda i: ops.conv_transpose_norm_act(X, W, None, torch.ones(3), None, None, None, training=True, impl=i),
            r"gamma must have shape \(2,\)",
        ),
    ],
)
def test_a_wrong_argument_is_named(call, said, impl):
    with pytest.raises(errors.UserError, match=said):
        call(impl)


def test_the_twin_is_torchs_own():
    x, weight, bias = _layer((2, 4, 3, 3), 5, 4)
    y = reference_conv.conv_transpose_act(x, weight, bias, (2, 2), (1, 1), (0, 0), "leaky_relu", 0.1)
    torch.testing.assert_close(y, F.leaky_relu(F.conv_transpose2d(x, weight, bias, 2, 1), 0.1))
