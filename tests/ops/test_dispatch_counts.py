"""What the blocks compute and what they do not: counted, so that idle work cannot come back unseen."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ganscale import ops
from ganscale.ops import reference_norm

pytestmark = pytest.mark.skipif(not ops.build_info()["compiled"], reason="the compiled core is not built")

BACKWARD = "aten::convolution_backward"


def _randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


def _called(function):
    """The operators that ran, and which gradients each convolution_backward computed."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        function()
    names, masks = [], []
    for event in profile.events():
        names.append(event.name)
        if event.name == BACKWARD:
            masks.append(event.concrete_inputs[-1])
    return names, masks


def _backward(function, tensors, wanted):
    """``_called`` of the gradients of ``wanted`` of the named tensors, in a graph that needs no others."""
    leaves = {name: t.detach().requires_grad_(name in wanted) for name, t in tensors.items()}
    y = function(**leaves)
    gy = torch.ones_like(y)
    return _called(lambda: torch.autograd.grad(y, [leaves[name] for name in wanted], gy))


CONV_MASKS = {
    ("x", "weight", "bias"): [[True, True, False]],
    ("x",): [[True, False, False]],
    ("weight",): [[False, True, False]],
    ("weight", "bias"): [[False, True, False]],
    ("bias",): [],
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("wanted", CONV_MASKS, ids="-".join)
@pytest.mark.parametrize("channels", [6, 3])
def test_conv_act_computes_the_gradients_that_are_asked_for_and_no_others(channels, wanted, layout):
    x, weight = (t.contiguous(memory_format=layout) for t in (_randn(2, channels, 8, 8), _randn(5, channels, 4, 4)))
    tensors = {"x": x, "weight": weight, "bias": _randn(5)}

    def block(**tensors):
        return ops.conv_act(**tensors, stride=2, padding=1, activation="leaky_relu", impl="fused")

    names, masks = _backward(block, tensors, wanted)
    expected = [list(mask) for mask in CONV_MASKS[wanted]]
    if channels == 3:  # the gradient of a picture has a kernel of ours
        expected = [[False, *mask[1:]] for mask in expected if mask[1]]
    assert masks == expected
    assert "aten::convolution" not in names
    assert "aten::sum" not in names  # the gradient of the bias is a kernel's
    forward, _ = _called(lambda: block(**tensors))
    assert forward.count("aten::convolution") == 1
    assert not {"aten::leaky_relu", "aten::add", "aten::add_"} & set(forward)


NORM_MASKS = {
    ("x", "weight", "bias", "gamma", "beta"): [[True, True, False]],
    ("x", "gamma"): [[True, False, False]],
    ("weight",): [[False, True, False]],
    ("bias",): [],
    ("gamma", "beta"): [],
}
OF_TORCH = {"aten::native_batch_norm", "aten::native_batch_norm_backward", "aten::relu", "aten::threshold_backward"}


@pytest.mark.parametrize("wanted", NORM_MASKS, ids="-".join)
@pytest.mark.parametrize("training", [True, False])
def test_a_generators_block_computes_the_gradients_that_are_asked_for_and_no_others(training, wanted):
    tensors = {"x": _randn(2, 6, 4, 4), "weight": _randn(6, 5, 4, 4)}
    tensors |= {name: torch.rand(5, dtype=torch.float64) for name in ("bias", "gamma", "beta")}

    def block(x, weight, bias, gamma, beta):
        held = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
        how = {"stride": 2, "padding": 1, "training": training, "impl": "fused"}
        return ops.conv_transpose_norm_act(x, weight, bias, gamma, beta, *held, **how)

    names, masks = _backward(block, tensors, wanted)
    assert masks == NORM_MASKS[wanted]
    assert not {"aten::convolution", *OF_TORCH} & set(names)
    forward, _ = _called(lambda: block(**tensors))
    assert forward.count("aten::convolution") == 1
    assert not OF_TORCH & set(forward)


PASSES = {"aten::sum", "aten::mean", "aten::mul", "aten::add", "aten::sub", "aten::div", "aten::where", "aten::copy_"}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_batch_norm_with_its_activation_leaves_no_pass_over_the_image_to_torch(layout):
    x = _randn(4, 5, 6, 6).contiguous(memory_format=layout).requires_grad_()
    gamma, beta = (torch.rand(5, dtype=torch.float64).requires_grad_() for _ in range(2))
    held, gy = (torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)), torch.ones_like(x)

    def both():
        y = ops.norm_act(x, gamma, beta, *held, training=True, impl="fused")
        torch.autograd.grad(y, (x, gamma, beta), gy)

    names, _ = _called(both)
    assert not (OF_TORCH | PASSES) & set(names)


# They look at a tensor but not at its elements.
IDLE = {"aten::empty_like", "aten::new_empty", "aten::detach", "detach", "aten::view", "aten::as_strided"}
OURS = {
    "interpolate": lambda x: ops.interpolate(x, x, torch.rand(len(x)).to(x.dtype), impl="fused"),
    "sample_norm": lambda x: ops.sample_norm(x, impl="fused"),
    "channel_sum": lambda x: ops.channel_sum(x, impl="fused"),
    "channel_moments": lambda x: ops.channel_moments(x, impl="fused"),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OURS)
def test_one_kernel_of_ours_is_all_that_passes_over_the_image(name, dtype, layout):
    x = _randn(4, 5, 6, 6).to(dtype).contiguous(memory_format=layout)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        OURS[name](x)
    over = [event.name for event in profile.events() if list(x.shape) in event.input_shapes]
    ours = [each for each in over if each.startswith("ganscale::")]
    assert set(over) <= IDLE | set(ours)
    assert len(ours) <= 1  # none where the core is called without torch's dispatcher


class _Called(TorchDispatchMode):
    """Writes down which operators are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_no_number_is_copied_from_the_host_which_a_gpu_would_wait_for():
    x, gamma, beta = _randn(4, 3, 5, 5), _randn(3), _randn(3)
    with _Called() as called:
        totals = reference_norm.totals(x)
        found = reference_norm.differentiable_backward(x, x, gamma, beta, 1e-5, "relu", 0.2)
    assert totals[-1] == 100
    assert len(found) == 3
    assert "aten::sum" in called.names
    assert not {"aten::lift_fresh", "aten::_local_scalar_dense"} & called.names
