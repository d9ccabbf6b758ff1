"""Blocks and pieces against plain torch over whole tables of geometries, sizes and types, forward and backward.

Activations are smooth where gradients are compared: at a kink a rounding would become a jump. N batch, C channels.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from ganscale import ops
from ganscale.ops import _register, conv_transpose, norm
from tests.ops.test_conv_transpose import DTYPES, GEOMETRIES, IMAGES, LAYOUTS, _layer, _randn, assert_as_good_as_torch
from tests.ops.test_norm_act import ACTIVATIONS, SHAPES, _layouts

pytestmark = pytest.mark.skipif(not ops.build_info()["compiled"], reason="the compiled core is not built")


def _sides(geometry, image):
    kernel, stride, padding, extra = geometry
    return [(side - 1) * stride - 2 * padding + kernel + extra for side in image[2:]]


def _three(function, tensors, gy):
    """Values and gradients by us, by torch, and by torch in float64."""
    for impl, wide in (("fused", False), ("reference", False), ("reference", True)):
        inputs = [t.detach().double() if wide else t.detach() for t in tensors]
        inputs = [t.requires_grad_() for t in inputs]
        y = function(impl, *inputs)
        yield [y.detach(), *torch.autograd.grad(y, inputs, gy.to(y.dtype))]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_block_and_its_gradients_equal_torchs(geometry, dtype, training):
    kernel, stride, padding, extra = geometry
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for turn, image in enumerate(IMAGES):
        size = _sides(geometry, image)
        if min(size) < 1 or image[0] * size[0] * size[1] < 8:  # statistics of a few values are mostly rounding
            continue
        if image[1] * kernel == 1:  # the norm takes a channel's only weight away, and what is left of its gradient
            continue
        channels = (5, 3)[turn % 2]
        x, weight, bias = _layer(image, channels, kernel, dtype)
        gamma, beta = _randn((channels,), wide, 4) + 2, _randn((channels,), wide, 5)
        gy = _randn((image[0], channels, *size), dtype, 6)
        how = {"stride": stride, "padding": padding, "output_padding": extra, "training": training}
        how["activation"] = ("tanh", "linear")[turn // 2]

        def block(impl, x, weight, bias, gamma, beta, channels=channels, how=how):
            running = torch.full((channels,), 0.3, dtype=gamma.dtype), torch.full((channels,), 1.5, dtype=gamma.dtype)
            if impl == "reference":
                z = F.conv_transpose2d(x, weight, bias, stride, padding, extra)
                z = F.batch_norm(z, *running, gamma, beta, training)
                return torch.tanh(z) if how["activation"] == "tanh" else z
            return ops.conv_transpose_norm_act(x, weight, bias, gamma, beta, *running, impl=impl, **how)

        for layout in LAYOUTS:
            tensors = x.contiguous(memory_format=layout), weight, bias, gamma, beta
            for ours, twin, exact in zip(*_three(block, tensors, gy), strict=True):
                if dtype == torch.float64:  # a sum of squares loses mean^2 / variance roundings of 1e-16
                    assert (ours - exact).abs().max() <= 1e-10 * exact.abs().max().clamp(min=1)
                else:
                    assert_as_good_as_torch(ours, twin, exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_gradients_of_conv_transpose_act_equal_torchs(geometry, channels, dtype):
    kernel, stride, padding, extra = geometry
    conv = {"stride": stride, "padding": padding, "output_padding": extra}
    for turn, image in enumerate(IMAGES):
        if min(_sides(geometry, image)) < 1:
            continue
        gy = _randn((image[0], channels, *_sides(geometry, image)), dtype, 3)

        def layer(impl, *tensors, activation=("tanh", "linear")[turn % 2]):
            return ops.conv_transpose_act(*tensors, activation=activation, impl=impl, **conv)

        x, *rest = _layer(image, channels, kernel, dtype)
        for layout in LAYOUTS:
            for ours, twin, exact in zip(*_three(layer, (x.contiguous(memory_format=layout), *rest), gy), strict=True):
                assert_as_good_as_torch(ours, twin, exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_affine_map_with_activation_equals_torchs(shape, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, gy = _randn(shape, dtype), _randn(shape, dtype, 2)
    scale, shift, mean = (_randn(shape[1:2], wide, seed) for seed in (3, 4, 5))
    for activation, centred in product(ACTIVATIONS, (True, False)):

        def affine(impl, x, scale, shift, activation=activation, centred=centred):
            known = mean.to(scale.dtype) if centred else None
            return ops.affine_act(x, scale, shift, mean=known, activation=activation, negative_slope=0.3, impl=impl)

        smooth = activation in ("linear", "tanh")
        for laid in _layouts(x) if centred else (x,):
            found = list(_three(affine, (laid, scale, shift), gy))
            for ours, twin, exact in zip(*(tensors[: None if smooth else 1] for tensors in found), strict=True):
                assert_as_good_as_torch(ours, twin, exact, dtype)


# --- what torch demands of an operator, with the arguments that are usually left out ----------------------------------


def _affine_arguments(**changes):
    x, stats = _randn((2, 3, 4, 5), torch.float32), torch.rand(6, 3)
    chosen = {"mean": stats[0], "sums": True, **changes}
    return {
        "forward": (x.requires_grad_(), chosen["mean"], *(n.clone().requires_grad_() for n in stats[1:3]), "tanh", 0.2),
        "backward": (x.detach(), x.detach(), chosen["mean"], *stats[1:3], "relu", 0.2, chosen["sums"]),
    }


CASES = {
    "affine_act with a mean": lambda: (norm._affine_act, _affine_arguments()["forward"]),
    "its backward with a mean": lambda: (norm._affine_act_backward, _affine_arguments()["backward"]),
    "its backward without sums": lambda: (norm._affine_act_backward, _affine_arguments(sums=False)["backward"]),
    "its backward with neither": lambda: (
        norm._affine_act_backward,
        _affine_arguments(sums=False, mean=None)["backward"],
    ),
    "few channels without bias": lambda: (conv_transpose._conv_transpose_act, _up(3)),
    "many channels without bias": lambda: (conv_transpose._conv_transpose_act, _up(6)),
    "bias_act without bias": lambda: (_register.bias_act, (_up(3)[0], None, "leaky_relu", 0.2)),
    "a penalty of center 0": lambda: (_register.gp_penalty, (_up(3)[0], 0.0, False)),
    "a one-sided penalty": lambda: (_register.gp_penalty, (_up(3)[0], 3.0, True)),
}


def _up(channels):
    x, weight, _ = (t.float().requires_grad_() for t in _layer((2, 4, 3, 5), channels, 4))
    return x, weight, None, [2, 2], [1, 1], [0, 0], "leaky_relu", 0.2, False


@pytest.mark.parametrize("name", CASES)
def test_opcheck_finds_nothing_wrong(name):
    assert set(torch.library.opcheck(*CASES[name]()).values()) == {"SUCCESS"}
