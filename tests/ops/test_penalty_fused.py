"""The fused gradient penalty equals plain automatic differentiation, in every kind of critic it takes."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from penalty_cases import (
    CASES,
    KINDS,
    Projection,
    assert_same,
    case,
    options_of,
    penalty_and_gradients,
    seeded_biases,
)

from ganscale import errors, ops
from ganscale.ops import _choice
from ganscale.ops.penalty import plan as penalty_plan

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
IMAGES = [name for name in CASES if len(CASES[name][1]) == 3]


def _both(name, layout, kind):
    """The penalties and gradients of a case, fused and plain, each from a critic of its own."""
    found = []
    for impl in ("auto", "reference"):
        critic, x = case(name)
        x = x.contiguous(memory_format=LAYOUTS[layout])
        options = options_of(kind, case(name)[0], x)
        found.append(penalty_and_gradients(critic, x, impl, list(critic.parameters()), **options))
    return found


@pytest.fixture(params=["kernels", "plain torch"], autouse=True)
def _core(request, monkeypatch):
    """Take the fused way for the smallest critics too, with and without the compiled core."""
    monkeypatch.setattr(penalty_plan, "PAYS_FROM", 0)
    if request.param == "plain torch":
        monkeypatch.setattr(_choice, "obstacle", lambda device: "turned off by the test")
    elif not ops.build_info()["compiled"]:
        pytest.skip("the compiled core is not built")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_penalty_and_every_gradient_equal_automatic_differentiation(name, kind):
    critic, x = case(name)
    assert ops.explain_choice(critic, x).path == "fused", ops.explain_choice(critic, x).reason
    ours, plain = _both(name, "contiguous", kind)
    assert_same(ours, plain)
    if name != "linear":  # whose norms are all the center
        weights = [n.endswith("weight") for n, _ in critic.named_parameters()]
        assert all(g.abs().max() > 0 for g, weight in zip(plain[1], weights, strict=True) if weight)


@pytest.mark.parametrize("name", IMAGES)
def test_the_same_holds_with_channels_last(name):
    assert_same(*_both(name, "channels_last", "two-sided"))


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("name", ["k4s2p1-17", "residual", "two-heads", "mlp"])
def test_samples_do_not_see_each_other(name, samples):
    critic, x = case(name)
    whole = ops.gradient_penalty(critic, x)
    torch.testing.assert_close(ops.gradient_penalty(critic, x[:samples]), whole[:samples], rtol=1e-12, atol=0)


def test_a_condition_goes_in_as_a_callable_of_x_alone():
    torch.manual_seed(0)
    critic = seeded_biases(Projection().double())
    x, y = torch.randn(4, 2, 7, 7, dtype=torch.float64), torch.tensor([0, 4, 1, 1])
    for conditional in (lambda x: critic(x, y), functools.partial(critic, y=y)):
        assert ops.explain_choice(conditional, x).path == "fused"
        parameters = list(critic.parameters())
        ours = penalty_and_gradients(conditional, x, "auto", parameters)
        assert_same(ours, penalty_and_gradients(conditional, x, "reference", parameters))
        assert ours[1][2].abs().max() > 0  # the embedding is reached


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_with_gradient_zero_has_gradient_zero(kind):
    critic, x = case("relu")
    with torch.no_grad():
        critic[0].bias.fill_(-5.0)  # every unit is off at x = 0, and a few are on elsewhere
        x[1] = 0
        x *= 3
    options = {"center": 0.0 if kind == "zero" else 0.1, "one_sided": kind == "one-sided"}
    parameters = list(critic.parameters())
    ours = penalty_and_gradients(critic, x, "auto", parameters, **options)
    assert ours[0][1] == {"two-sided": 0.1**2, "one-sided": 0.0, "zero": 0.0}[kind]
    assert_same(ours, penalty_and_gradients(critic, x, "reference", parameters, **options))
    assert all(g.isfinite().all() for g in ours[1])
    alone = penalty_and_gradients(critic, x[1:2], "auto", parameters, **options)
    assert not any(g.any() for g in alone[1])


def test_weights_that_are_computed_get_their_gradient():
    weight = torch.randn(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    gain = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64)

    def critic(x):
        demodulated = gain * weight / weight.square().sum((1, 2, 3), keepdim=True).sqrt()
        return F.relu(F.conv2d(x, demodulated)).sum((1, 2, 3))

    ours = penalty_and_gradients(critic, x, "auto", [weight, gain])
    assert_same(ours, penalty_and_gradients(critic, x, "reference", [weight, gain]))


def test_gradients_add_up_over_calls_and_with_other_losses():
    critic, x = case("k4s2p1-16")
    for _ in range(2):
        ops.gradient_penalty(critic, x).mean().backward()
    critic(x).mean().backward()
    ours = [p.grad for p in critic.parameters()]
    critic, x = case("k4s2p1-16")
    (2 * ops.gradient_penalty(critic, x, impl="reference").mean() + critic(x).mean()).backward()
    for a, p in zip(ours, critic.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-11, atol=1e-14)


def test_one_graph_can_be_differentiated_for_several_samples():
    critic, x = case("k4s2p1-16")
    penalty, plain = ops.gradient_penalty(critic, x), ops.gradient_penalty(critic, x, impl="reference")
    for n in range(len(x)):
        ours = torch.autograd.grad(penalty[n], critic[0].weight, retain_graph=True)[0]
        other = torch.autograd.grad(plain[n], critic[0].weight, retain_graph=True)[0]
        torch.testing.assert_close(ours, other, rtol=1e-11, atol=1e-14)


def test_parameters_that_want_no_gradient_get_none():
    critic, x = case("k4s2p1-16")
    critic[2].requires_grad_(False)
    penalty = ops.gradient_penalty(critic, x)
    penalty.sum().backward()
    assert critic[2].weight.grad is None
    assert critic[2].bias.grad is None
    first = critic[0].weight.grad
    critic.zero_grad()
    ops.gradient_penalty(critic, x, impl="reference").sum().backward()
    torch.testing.assert_close(first, critic[0].weight.grad, rtol=1e-11, atol=1e-14)
    critic.requires_grad_(False)
    assert not ops.gradient_penalty(critic, x).requires_grad


def test_values_without_a_graph_where_gradients_are_off():
    critic, x = case("residual")
    expected = ops.gradient_penalty(critic, x, impl="reference").detach()
    with torch.no_grad():
        penalty = ops.gradient_penalty(critic, x)
    assert not penalty.requires_grad
    torch.testing.assert_close(penalty, expected, rtol=1e-12, atol=0)


def test_an_input_that_wants_a_gradient_gets_zeros():
    critic, x = case("k4s2p1-16")
    x.requires_grad_()
    assert ops.explain_choice(critic, x).path == "fused"
    ops.gradient_penalty(critic, x).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))  # as the masks do not change with x, but on a set of measure zero


def test_infinite_weights_are_not_hidden():
    critic, x = case("k4s2p1-16")
    with torch.no_grad():
        critic[2].weight[0, 0, 0, 0] = float("inf")
    ours, plain = (ops.gradient_penalty(critic, x, impl=impl).detach() for impl in ("auto", "reference"))
    assert torch.equal(ours.isfinite(), plain.isfinite())
    assert not ours.isfinite().any()


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("pixel", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["relu", "k4s2p1-16", "mlp", "linear", "two-heads"])
def test_a_pixel_that_is_no_number_makes_its_samples_penalty_nan_and_no_others(name, pixel, impl):
    critic, x = case(name)
    clean = penalty_and_gradients(critic, x, impl, list(critic.parameters()))[0]
    x[1].view(-1)[3] = pixel
    penalties, gradients = penalty_and_gradients(critic, x, impl, list(critic.parameters()))
    assert penalties.isnan().tolist() == [False, True, False, False]
    others = torch.tensor([0, 2, 3])
    torch.testing.assert_close(penalties[others], clean[others], rtol=1e-12, atol=0)
    assert any(g.isnan().any() for g in gradients)  # so that a step cannot be taken with them


@pytest.mark.parametrize("center", [0.0, 1.0])
def test_a_nan_that_only_watched_activations_would_show_comes_out(center):
    critic, x = case("relu")
    x[1, 0, 3, 3] = float("nan")

    def piecewise(x):
        return torch.cumsum(critic(x), 1)[:, -1]  # an operator that the fused way does not know

    assert ops.explain_choice(piecewise, x).path == "piecewise"
    assert ops.gradient_penalty(piecewise, x, center=center).isnan().tolist() == [False, True, False, False]


LAID_OUT = {
    "strided": lambda x: torch.stack([x, -x], -1)[..., 0],
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "expanded": lambda x: x[:1].expand_as(x),
    "cut from more": lambda x: torch.cat([x, x])[1 : 1 + len(x)],
}


@pytest.mark.parametrize("how", LAID_OUT)
@pytest.mark.parametrize("name", ["k4s2p1-17", "two-heads", "volumes"])
def test_the_memory_of_x_does_not_matter_and_is_left_alone(name, how):
    critic, x = case(name)
    laid_out = LAID_OUT[how](x)
    dense, parameters = laid_out.clone(memory_format=torch.contiguous_format), list(critic.parameters())
    assert ops.explain_choice(critic, laid_out).path == "fused"
    ours = penalty_and_gradients(critic, laid_out, "auto", parameters)
    assert_same(ours, penalty_and_gradients(critic, dense, "reference", parameters))
    assert torch.equal(laid_out, dense)


def test_kernels_that_are_asked_for_and_are_not_there_are_missed(monkeypatch):
    critic, x = case("k4s2p1-16")
    monkeypatch.setattr(_choice, "obstacle", lambda device: "turned off by the test")
    with pytest.raises(errors.MissingPackageError, match="turned off by the test"):
        ops.gradient_penalty(critic, x, impl="fused")
