"""The operator behind the fused penalty: derivatives, what torch demands of an operator, counts of work, memory."""

from __future__ import annotations

import itertools

import pytest
import torch
from penalty_cases import case, seeded_biases
from torch import nn

from ganscale import errors, ops
from ganscale.ops.penalty import op as penalty_op
from ganscale.ops.penalty import plan as penalty_plan
from ganscale.ops.penalty.trace import Session

COMPILED = ops.build_info()["compiled"]
CORES = [pytest.param(True, marks=pytest.mark.skipif(not COMPILED, reason="the compiled core is not built")), False]


@pytest.fixture(autouse=True)
def _watched(monkeypatch):
    monkeypatch.setattr(penalty_plan, "PAYS_FROM", 0)


def _arguments(critic, x, *, compiled, center=1.0, one_sided=False):
    """What the operator is called with for a critic."""
    session = Session(x.detach().requires_grad_())
    with torch.enable_grad():
        planned = penalty_plan.plan(session, session.run(critic), x)
    leaves = [t.detach().contiguous().requires_grad_() for t in planned.tensors]
    return planned.x, leaves, planned.program, center, one_sided, compiled, True


@pytest.mark.parametrize("name", ["k4s2p1-17", "residual", "two-heads", "bias-act", "arithmetic", "mlp"])
def test_gradients_of_every_tensor_equal_finite_differences(name):
    critic, x = case(name, samples=2)
    x, leaves, program, *rest = _arguments(critic, x, compiled=COMPILED)
    with torch.no_grad():
        center = penalty_op.forward(x, leaves, program, *rest)[1].mean().item() / 2

    def penalty(*leaves):
        return penalty_op.forward(x, list(leaves), program, center, *rest[1:])[0]

    # Fast mode compares along random directions: masks flip only where a step of 1e-6 meets an edge.
    assert torch.autograd.gradcheck(penalty, leaves, fast_mode=True)


@pytest.mark.parametrize("compiled", CORES)
@pytest.mark.parametrize("name", ["k4s2p1-17", "residual", "two-heads", "arithmetic", "mlp", "volumes"])
def test_opcheck_finds_nothing_wrong(name, compiled):
    critic, x = case(name)
    critic, x = critic.float(), x.float()
    for layout in (torch.contiguous_format, torch.channels_last) if x.ndim == 4 else (torch.contiguous_format,):
        arguments = _arguments(critic, x.contiguous(memory_format=layout), compiled=compiled)
        assert set(torch.library.opcheck(penalty_op.forward, arguments).values()) == {"SUCCESS"}
        with torch.no_grad():
            _, norm, g, kept, masks = penalty_op.forward(*arguments)
        tensors = [t.detach() for t in arguments[1]]
        rest = (*arguments[2:5], compiled, list(range(len(tensors))))
        done = torch.library.opcheck(penalty_op.backward, (torch.rand(4), norm, g, tensors, kept, masks, *rest))
        assert set(done.values()) == {"SUCCESS"}


@pytest.mark.parametrize(("center", "one_sided"), [(0.0, False), (0.5, True)])
def test_opcheck_finds_nothing_wrong_with_the_other_penalties(center, one_sided):
    critic, x = case("mlp")
    arguments = _arguments(critic.float(), x.float(), compiled=COMPILED, center=center, one_sided=one_sided)
    assert set(torch.library.opcheck(penalty_op.forward, arguments).values()) == {"SUCCESS"}
    with torch.no_grad():
        _, norm, g, kept, masks = penalty_op.forward(*arguments)
    tensors = [t.detach() for t in arguments[1]]
    rest = (*arguments[2:6], list(range(len(tensors))))
    done = torch.library.opcheck(penalty_op.backward, (torch.rand(4), norm, g, tensors, kept, masks, *rest))
    assert set(done.values()) == {"SUCCESS"}


def _stack(layers, act=nn.LeakyReLU):
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(6, 8, 4, 2, 1), act(0.2) if act is nn.LeakyReLU else act())
    for _ in range(layers - 1):
        critic.extend([nn.Conv2d(8, 8, 3, padding=1), act(0.2) if act is nn.LeakyReLU else act()])
    return seeded_biases(critic[:-1]), torch.randn(3, 6, 8, 8)


def _count(call):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        call()
    names = [event.name for event in profile.events()]
    return names.count("aten::convolution"), names.count("aten::convolution_backward")


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_the_fused_penalty_convolves_2L_minus_2_times_and_differentiates_2L_times(layers):
    critic, x = _stack(layers)
    assert ops.explain_choice(critic, x).path == "fused"
    assert _count(lambda: ops.gradient_penalty(critic, x).sum().backward()) == (2 * (layers - 1), 2 * layers)
    with torch.no_grad():
        assert _count(lambda: ops.gradient_penalty(critic, x)) == (layers - 1, layers)


class _Total(nn.Module):
    """A linear end that the table does not know."""

    def forward(self, h):
        return torch.einsum("nchw->n", h)


@pytest.mark.parametrize("inplace", [False, True])
def test_the_piecewise_penalty_of_five_convolutions_convolves_15_times_and_differentiates_5_times(inplace):
    critic, x = _stack(5)
    critic.append(_Total())
    for act in critic[1:-1:2]:
        act.inplace = inplace
    assert ops.explain_choice(critic, x).path == "piecewise"
    counts = [
        _count(lambda impl=impl: ops.gradient_penalty(critic, x, impl=impl).sum().backward())
        for impl in ("auto", "reference")
    ]
    assert counts == [(15, 5), (15, 9)]  # what plain autograd adds is spent on gradients that are zero


def test_a_second_derivative_is_refused_with_the_way_out():
    critic, x = case("k4s2p1-16")
    penalty = ops.gradient_penalty(critic, x).sum()
    (gradient,) = torch.autograd.grad(penalty, critic[0].weight, create_graph=True)
    with pytest.raises(errors.UserError, match="impl='reference'"):
        gradient.square().sum().backward()


def test_writing_into_a_weight_before_backward_is_noticed():
    critic, x = case("k4s2p1-16")
    penalty = ops.gradient_penalty(critic, x).sum()
    with torch.no_grad():
        critic[2].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        penalty.backward()


def test_results_repeat_bit_by_bit_on_any_number_of_threads():
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            critic, x = _stack(3)
            penalty = ops.gradient_penalty(critic.double(), x.double())
            penalty.sum().backward()
            found.append([penalty.detach(), *(p.grad for p in critic.parameters())])
    finally:
        torch.set_num_threads(before)
    for a, b, c in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)  # the convolutions are torch's, and so is their order
        assert torch.equal(a, c)


def _peak_bytes(call):
    """The most bytes of tensors that live at once during a call, on top of those that lived before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("act", [nn.LeakyReLU, nn.ReLU])
def test_the_fused_penalty_needs_at_most_half_the_memory_of_automatic_differentiation(act):
    torch.manual_seed(0)
    sizes = [3, 32, 64, 128]
    layers = [nn.Sequential(nn.Conv2d(a, b, 4, 2, 1), act()) for a, b in itertools.pairwise(sizes)]
    critic, x = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 64, 1)), torch.randn(32, 3, 64, 64)
    peaks = {}
    for impl in ("auto", "reference"):
        critic.zero_grad(set_to_none=False)
        peaks[impl] = _peak_bytes(lambda impl=impl: ops.gradient_penalty(critic, x, impl=impl).mean().backward())
    activations = 4 * 32 * (32 * 32**2 + 64 * 16**2 + 128 * 8**2)
    assert peaks["reference"] > 3 * activations  # the count sees what autograd keeps
    assert peaks["auto"] <= 0.5 * peaks["reference"], peaks
