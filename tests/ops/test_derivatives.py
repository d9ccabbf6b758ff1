"""Derivatives to second order in float64, what torch demands of an operator, and what must stay undefined."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ganscale import ops
from ganscale.ops import _register

SMOOTH_AND_NOT = ["linear", "relu", "leaky_relu", "tanh"]

pytestmark = pytest.mark.skipif(not ops.build_info()["compiled"], reason="the compiled core is not built")


def _away_from_zero(*shape, seed=0):
    """Numbers at least 0.1 from the kink at 0, which finite differences must not cross."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x + 0.1 * x.sign()).requires_grad_()


def check_twice(function, *inputs):
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("activation", SMOOTH_AND_NOT)
def test_bias_act_has_exact_first_and_second_derivatives(activation):
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    check_twice(lambda x, b: _register.bias_act(x, b, activation, 0.2), _away_from_zero(2, 3, 2, 3), bias)
    last = _away_from_zero(2, 3, 2, 3).detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    check_twice(lambda x: _register.bias_act(x, None, activation, 0.2), last)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh"])
def test_act_backward_has_exact_first_and_second_derivatives(activation):
    gy, y = _away_from_zero(2, 3, 4, seed=1), _away_from_zero(2, 3, 4)
    check_twice(lambda a, b: _register.act_backward(a, b, activation, 0.2), gy, y)


def test_interpolate_has_exact_first_and_second_derivatives():
    eps = torch.rand(3, dtype=torch.float64, requires_grad=True)
    check_twice(_register.gp_interpolate, _away_from_zero(3, 4), _away_from_zero(3, 4, seed=1), eps)


def test_channel_sum_has_exact_first_and_second_derivatives():
    check_twice(_register.channel_sum, _away_from_zero(2, 3, 2, 2))


@pytest.mark.parametrize(("center", "one_sided"), [(1.0, False), (0.0, False), (1.0, True), (9.0, True)])
def test_norm_and_penalty_have_exact_first_and_second_derivatives(center, one_sided):
    g = _away_from_zero(3, 2, 5)
    check_twice(lambda g: _register.gp_penalty(g, center, one_sided), g)
    check_twice(_register.sample_norm2, g)
    check_twice(lambda g: ops.sample_norm(g, impl="fused"), g)


def test_opcheck_finds_nothing_wrong():
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    last = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    odd = torch.randn(4, 3, 4, 5).transpose(0, 2)
    bias = torch.randn(3, requires_grad=True)
    cases = [(_register.gp_interpolate, (x, x.detach().clone(), torch.rand(2)))]
    for t in (x, last, odd):
        cases += [
            (_register.sample_norm2, (t,)),
            (_register.channel_sum, (t,)),
            (_register.gp_penalty, (t, 1.0, False)),
        ]
        cases += [(_register.bias_act, (t, bias if t.shape[1] == 3 else None, act, 0.2)) for act in SMOOTH_AND_NOT]
        cases += [(_register.act_backward, (t, t.detach().clone(), "tanh", 0.2))]
    for operator, arguments in cases:
        done = torch.library.opcheck(operator, arguments)
        assert set(done.values()) == {"SUCCESS"}


def test_the_ops_trace_into_one_graph():
    def loss(x, bias):
        return ops.sample_norm(ops.bias_act(x, bias, activation="tanh", impl="fused"), impl="fused").sum()

    torch._dynamo.reset()
    x, bias = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(3, requires_grad=True)
    traced = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(traced(x, bias), (x, bias))
    plain = torch.autograd.grad(loss(x, bias), (x, bias))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("of", ["parameters", "x"])
@pytest.mark.parametrize("name", ["bias_act", "conv_act", "conv_transpose_act", "sample_norm", "channel_sum"])
def test_derivatives_by_a_transform_are_those_of_autograd_whichever_tensor_it_follows(name, of):
    def draw(*shape):
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)

    act = {"activation": "tanh"}
    layer, parameters = {
        "bias_act": (lambda x, b: ops.bias_act(x, b, **act), [draw(3)]),
        "conv_act": (lambda x, w, b: ops.conv_act(x, w, b, padding=1, **act), [draw(4, 3, 3, 3), draw(4)]),
        "conv_transpose_act": (
            lambda x, w, b: ops.conv_transpose_act(x, w, b, stride=2, padding=1, **act),
            [draw(3, 4, 4, 4), draw(4)],
        ),
        "sample_norm": (lambda x, s: ops.sample_norm(s * x), [draw(1)]),
        "channel_sum": (lambda x, s: ops.channel_sum(s * x), [draw(1)]),
    }[name]
    tensors = [draw(2, 3, 5, 5), *parameters]
    first, last = (1, len(tensors)) if of == "parameters" else (0, 1)

    def loss(*followed):
        return layer(*tensors[:first], *followed, *tensors[last:]).square().sum()

    followed = tuple(tensors[first:last])
    with ops.using("fused"):
        by_transform = torch.func.grad(loss, tuple(range(len(followed))))(*followed)
        _, forward = torch.func.jvp(loss, followed, followed)
        leaves = [tensor.clone().requires_grad_() for tensor in followed]
        plain = torch.autograd.grad(loss(*leaves), leaves)
    for a, b in zip(by_transform, plain, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(forward, sum((a * b).sum() for a, b in zip(plain, followed, strict=True)))


def _critic(impl):
    class Act(nn.Module):
        def forward(self, x):
            return ops.piecewise_linear(x, negative_slope=0.2, impl=impl)

    torch.manual_seed(0)
    convs = [nn.Conv2d(c, c + 1, 3, padding=1) for c in range(1, 5)]
    layers = [layer for conv in convs for layer in (conv, Act())]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(5 * 36, 1)).double()


def _penalty_gradients(impl):
    critic, x = _critic(impl), torch.randn(2, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    penalty = ops.gradient_penalty(critic, x, impl="reference").sum()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        penalty.backward()
    counts = {event.key: event.count for event in profile.key_averages()}
    gradients = {name: p.grad for name, p in critic.named_parameters()}
    return gradients, counts.get("aten::convolution_backward", 0)


def test_piecewise_linear_kernels_spare_the_convolutions_on_zero_gradients():
    twin, twin_convolutions = _penalty_gradients("reference")
    ours, our_convolutions = _penalty_gradients("fused")
    for name, gradient in twin.items():
        if ours[name] is None:  # undefined: what torch spends whole convolutions to find zero
            assert gradient is None or not gradient.any()
        else:
            torch.testing.assert_close(ours[name], gradient, rtol=1e-12, atol=1e-14)
    assert (our_convolutions, twin_convolutions) == (0, 4)  # torch's: one a convolution, all on zeros


def test_an_undefined_gradient_stays_undefined():
    gy, y = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    gx = _register.act_backward(gy, y, "leaky_relu", 0.2)
    to_gy, to_y = torch.autograd.grad(gx.sum(), (gy, y), allow_unused=True)
    assert to_gy is not None
    assert to_y is None
