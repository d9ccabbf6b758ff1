"""Wrong arguments are refused with one clear line, in Python and again in the core; nothing crashes."""

from __future__ import annotations

import pytest
import torch

from ganscale import errors, ops
from ganscale.ops import _extension

X = torch.zeros(2, 3, 4, 4)


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
    ],
)
def test_a_wrong_argument_is_named(call, said, impl):
    with pytest.raises(errors.UserError, match=said):
        call(impl)


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
