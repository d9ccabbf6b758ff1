"""Wrong arguments are refused with one clear line, in Python and again in the core; nothing crashes."""

from __future__ import annotations

import warnings
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from ganscale import errors, ops
from ganscale.ops import _extension
from ganscale.ops.conv_transpose import _folded

IMPLS = ["fused", "reference"]
X, ONES = torch.zeros(2, 3, 4, 4), torch.ones(3)


@pytest.mark.parametrize("impl", ["reference", "auto"])
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda i: ops.interpolate(X, X[:1], torch.zeros(2), impl=i), r"fake must have shape \(2, 3, 4, 4\)"),
        (lambda i: ops.interpolate(X, X, torch.zeros(3), impl=i), r"eps must have shape \(2,\)"),
        (lambda i: ops.interpolate(X, X, torch.zeros(2, 1), impl=i), r"eps must have shape \(2,\)"),
        (lambda i: ops.interpolate(X, X.double(), torch.zeros(2), impl=i), "fake.dtype must equal real.dtype"),
        (lambda i: ops.interpolate(X, X.to("meta"), torch.zeros(2), impl=i), "fake.device must equal real.device"),
        (lambda i: ops.interpolate(X, X.numpy(), torch.zeros(2), impl=i), "fake must be a torch.Tensor"),
        (lambda i: ops.bias_act(X, torch.zeros(4), activation="relu", impl=i), r"bias must have shape \(3,\)"),
        (lambda i: ops.bias_act(X.int(), activation="relu", impl=i), "x.dtype must be one of float32"),
        (lambda i: ops.bias_act(X.to(torch.complex64), activation="relu", impl=i), "x.dtype must be one of"),
        (lambda i: ops.bias_act(X, activation="rleu", impl=i), "did you mean relu"),
        (lambda i: ops.bias_act(X, activation="leaky_relu", negative_slope=-0.1, impl=i), "negative_slope must be"),
        (lambda i: ops.bias_act(X, torch.zeros(3).to("meta"), activation="relu", impl=i), "bias.device must equal"),
        (lambda i: ops.channel_sum(torch.zeros(3), impl=i), "x must have an axis for the batch and the channels"),
        (lambda i: ops.sample_norm(torch.tensor(1.0), impl=i), "g must have an axis for the batch"),
        (lambda i: ops.sample_norm(X.to_sparse(), impl=i), "g must be a dense tensor"),
        (lambda i: ops.bias_act(X, activation=None, impl=i), "activation must be one of linear, relu"),
        (lambda i: ops.bias_act(X, activation=["relu"], impl=i), "activation must be one of linear, relu"),
        (lambda i: ops.bias_act(X, activation="relu", negative_slope="0.2", impl=i), "negative_slope must be"),
        (lambda i: ops.affine_act(X, [1.0] * 3, ONES, impl=i), "scale must be a torch.Tensor"),
        (lambda i: ops.affine_act(X, ONES, ONES, mean=[0.0] * 3, impl=i), "mean must be a torch.Tensor"),
        (lambda i: ops.affine_act(X, torch.ones(2, 3), [1.0], impl=i), "shift must be a torch.Tensor"),
        (lambda i: ops.affine_act(X, torch.ones(2, 3), torch.ones(2, 1), impl=i), r"shift must have shape \(2, 3\)"),
        (
            lambda i: ops.affine_act(X, torch.ones(2, 3), torch.ones(2, 3), mean=torch.ones(4), impl=i),
            r"mean must have shape \(3,\)",
        ),
        (lambda i: ops.batch_norm_act(X, None, None, eps=-1.0, impl=i), "eps must be finite and at least 0"),
        (lambda i: ops.batch_norm_act(X, None, None, eps="small", impl=i), "eps must be finite and at least 0"),
    ],
)
def test_a_wrong_argument_is_named(call, said, impl):
    with pytest.raises(errors.UserError, match=said):
        call(impl)


def test_other_ways_to_leave_out_zeros_are_no_dense_tensors_either():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls them new
        csr = torch.eye(3).to_sparse_csr()
    for call in (ops.sample_norm, ops.channel_sum, ops.channel_moments):
        with pytest.raises(errors.UserError, match=r"must be a dense tensor, got torch\.sparse_csr"):
            call(csr)


# --- numbers a channel, in training as in eval ------------------------------------------------------------------------

NUMBERS = {
    "one for all": (torch.ones(1), r"must have shape \(3,\)"),
    "one too many": (torch.ones(4), r"must have shape \(3,\)"),
    "a column": (torch.ones(3, 1), r"must have shape \(3,\)"),
    "a list": ([1.0] * 3, "must be a torch.Tensor, got list"),
    "integers": (torch.ones(3, dtype=torch.int64), "dtype must be one of float32"),
    "elsewhere": (torch.ones(3, device="meta"), "device must equal x.device"),
}


@pytest.mark.parametrize("impl", ["reference", "auto"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("what", ["gamma", "beta", "running_mean", "running_var", "offset"])
def test_batch_norm_wants_one_number_a_channel_of_each(what, numbers, training, impl):
    right = {"gamma": None, "beta": None, "running_mean": torch.zeros(3), "running_var": torch.ones(3), "offset": None}
    wrong, said = NUMBERS[numbers]
    with pytest.raises(errors.UserError, match=rf"^{what}[. ]{said}"):
        ops.norm_act(X, **{**right, what: wrong}, training=training, impl=impl)
    if what == "offset":
        return
    weight = torch.zeros(5, 3, 1, 1)
    right.pop("offset")
    with pytest.raises(errors.UserError, match=rf"^{what}[. ]{said}"):
        ops.conv_transpose_norm_act(
            torch.zeros(2, 5, 4, 4), weight, None, **{**right, what: wrong}, training=training, impl=impl
        )


@pytest.mark.parametrize("training", [True, False])
def test_statistics_may_be_kept_in_another_type_than_they_are_summed_in(training):
    x, found = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)), []
    for dtype in (torch.float32, torch.float64):
        held = torch.full((3,), 0.5, dtype=dtype), torch.full((3,), 2.0, dtype=dtype)
        y = ops.norm_act(x, None, None, *held, training=training)
        assert {t.dtype for t in held} == {dtype}
        found.append((y, *(t.float() for t in held)))
    torch.testing.assert_close(*found)


def test_a_norm_that_is_folded_into_a_convolution_is_that_norm_and_checks_its_numbers():
    generator = torch.Generator().manual_seed(0)
    weight, numbers = torch.zeros(5, 3, 1, 1), [torch.rand(3, generator=generator) + 0.5 for _ in range(5)]
    z = torch.randn(2, 3, 4, 4, generator=generator)
    bias, gamma, beta, mean, variance = numbers
    for some_bias, some_gamma, some_beta in product((bias, None), (gamma, None), (beta, None)):
        scale, shift = _folded(weight, some_bias, some_gamma, some_beta, mean, variance, 1e-5)
        shifted = z if some_bias is None else z + bias.reshape(3, 1, 1)
        expected = F.batch_norm(shifted, mean, variance, some_gamma, some_beta)
        torch.testing.assert_close(z * scale.reshape(3, 1, 1) + shift.reshape(3, 1, 1), expected)
    with pytest.raises(errors.UserError, match=r"gamma must have shape \(3,\)"):
        _folded(weight, None, torch.ones(5), None, mean, variance, 1e-5)
    with pytest.raises(errors.ConfigError, match="did you mean relu"), torch.no_grad():
        ops.conv_transpose_norm_act(
            torch.zeros(2, 5, 4, 4), weight, None, None, None, mean, variance, training=False, activation="gelu"
        )


# --- none at all, and very many ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["reference", "auto", "fused"])
def test_tensors_without_channels_have_no_numbers(impl):
    if impl == "fused" and not ops.build_info()["compiled"]:
        pytest.skip("the compiled core is not built")
    x, none = torch.zeros(2, 0, 3, requires_grad=True), torch.zeros(0, requires_grad=True)
    assert ops.channel_moments(x, impl=impl).shape == (2, 0)
    assert ops.channel_sum(x, impl=impl).shape == (0,)
    for y in (
        ops.bias_act(x, none, activation="relu", impl=impl),
        ops.affine_act(x, none, none, impl=impl),
        ops.batch_norm_act(x, none, none, impl=impl)[0],
        ops.norm_act(x, none, none, none.detach(), none.detach(), training=True, impl=impl),
    ):
        assert y.shape == x.shape
        assert [g.shape for g in torch.autograd.grad(y.sum(), (x, none))] == [x.shape, none.shape]


IMAGE = torch.ones(1, 3, 1, 1)
UP = {"few": torch.ones(3, 2, 1, 1), "many": torch.ones(3, 8, 1, 1)}


@pytest.mark.parametrize("impl", ["reference", "auto"])
@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("stride", 2**40, "at most 1048576"),
        ("stride", 2**70, "at most 1048576"),
        ("padding", 2**40, "at most 1048576"),
        ("stride", True, "an integer of at least 1"),
        ("stride", (1, 2**21), "at most 1048576"),
    ],
)
def test_steps_that_no_image_has_are_refused(option, value, said, impl):
    how = {option: value, "activation": "relu", "impl": impl}
    for weight in UP.values():
        with pytest.raises(errors.UserError, match=f"{option} must be {said}"):
            ops.conv_transpose_act(IMAGE, weight, **how)
    with pytest.raises(errors.UserError, match=f"{option} must be {said}"):
        ops.conv_act(IMAGE, torch.ones(2, 3, 1, 1), **how)


@pytest.mark.skipif(not ops.build_info()["compiled"], reason="the compiled core is not built")
def test_the_largest_steps_and_sides_beyond_them_are_right():
    for weight in UP.values():
        y = ops.conv_transpose_act(IMAGE, weight, stride=2**20, activation="linear", impl="fused")
        assert torch.equal(y, torch.full((1, weight.shape[1], 1, 1), 3.0))
    row = torch.ones(1, 2, 1, 2**20 + 7, requires_grad=True)
    y = ops.conv_transpose_act(row, torch.ones(2, 3, 1, 2), activation="linear", impl="fused")
    assert y.sum() == 2 * 2 * 3 * row.shape[3]
    weight = torch.ones(8, 2, 1, 2)
    y = ops.conv_act(row, weight, activation="linear", impl="fused")
    (gx,) = torch.autograd.grad(y.sum(), row)
    assert gx.sum() == 2 * 2 * 8 * (row.shape[3] - 1)
    row.requires_grad_(False)
    found = [ops.gradient_penalty(lambda x: F.conv2d(x, weight).relu().mean((1, 2, 3)), row, impl=i) for i in IMPLS]
    torch.testing.assert_close(*found)


def test_an_unknown_implementation_is_named():
    with pytest.raises(errors.ConfigError, match="did you mean fused"):
        ops.bias_act(X, activation="relu", impl="fuse")
    with pytest.raises(errors.ConfigError, match="impl must be a known name"):
        ops.use_impl("fuse")


@pytest.mark.parametrize("size", [3, 2**17])
@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_nan_comes_out_as_nan_and_so_do_its_gradients(impl, size):
    g = torch.ones(2, size)
    g[1, 0] = float("nan")
    assert ops.sample_norm(g, impl=impl).isnan().tolist() == [False, True]
    assert ops.channel_sum(g, impl=impl).isnan().nonzero().tolist() == [[0]]
    for center, one_sided in ((1.0, False), (1.0, True), (0.0, False)):
        x = g.clone().requires_grad_()
        penalty = ops.gradient_penalty(
            lambda t: t.square().sum(1) / 2, x, center=center, one_sided=one_sided, impl=impl
        )
        assert penalty.isnan().tolist() == [False, True]
        (gradient,) = torch.autograd.grad(penalty.sum(), x)
        assert gradient.isnan().any(1).tolist() == [False, True]


# --- the core itself ------------------------------------------------------------------------------------------------

CPU = (-1, 1, 0, 0, 0)


def _view(x, *, shape=None, stride=None, dtype=None, pointer=None):
    return (
        x.data_ptr() if pointer is None else pointer,
        0 if dtype is None else dtype,
        tuple(x.shape) if shape is None else shape,
        x.stride() if stride is None else stride,
    )


@pytest.mark.skipif(not ops.build_info()["compiled"], reason="the compiled core is not built")
def test_the_core_refuses_what_the_python_layer_never_sends():
    core = _extension.core()
    g, out, scratch = torch.ones(2, 8), torch.zeros(2), torch.zeros(64)
    ready = (-1, 1, 0, scratch.data_ptr(), 256)
    wrong = {
        "point at an element": (_view(g, pointer=0), _view(out), ready),
        "address": (_view(g, pointer=g.data_ptr() + 1), _view(out), ready),
        "dtype code 0..3": (_view(g, dtype=9), _view(out), ready),
        "2 axes": (_view(g, shape=(16,), stride=(1,)), _view(out), ready),
        "positive sizes": (_view(g, shape=(2, -8)), _view(out), ready),
        "fit in memory": (_view(g, shape=(2**40, 2**40), stride=(2**40, 1)), _view(out), ready),
        "be dense": (_view(g, stride=(-8, 1)), _view(out), ready),
        "size 2 on axis 0": (_view(g), _view(out, shape=(1,)), ready),
        "have dtype code 0, got 1": (_view(g), _view(out, dtype=1), ready),
        "workspace must hold": (_view(g), _view(out), CPU),
        "threads must be positive": (_view(g), _view(out), (-1, 0, 0, scratch.data_ptr(), 256)),
        "device must be -1": (_view(g), _view(out), (-7, 1, 0, scratch.data_ptr(), 256)),
        "a view must be": ((1, 2), _view(out), ready),
        "at most 5 axes": (_view(g, shape=(1,) * 6, stride=(1,) * 6), _view(out), ready),
    }
    for said, arguments in wrong.items():
        with pytest.raises(ValueError, match=said):
            core.sample_norm2(*arguments)
    with pytest.raises(TypeError):
        core.sample_norm2(g, out, ready)
    planes = _view(g, shape=(1, 2, 8), stride=(16, 8, 1))
    with pytest.raises(ValueError, match="activation must be code"):
        core.bias_act(planes, None, planes, 7, 0.2, CPU)
    assert out.tolist() == [0.0, 0.0]
    core.sample_norm2(_view(g), _view(out), ready)
    assert out.tolist() == [8.0, 8.0]


@pytest.mark.skipif(
    not ops.build_info()["compiled"] or torch.cuda.is_available(), reason="the compiled core is not built, or a GPU is"
)
def test_a_call_for_a_gpu_that_is_not_there_is_an_error_not_a_crash():
    core = _extension.core()
    g, out, scratch = torch.ones(2, 8), torch.zeros(2), torch.zeros(64)
    with pytest.raises(RuntimeError, match=r"GPU|CUDA"):
        core.sample_norm2(_view(g), _view(out), (0, 1, 0, scratch.data_ptr(), 256))
