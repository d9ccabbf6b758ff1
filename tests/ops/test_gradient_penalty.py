"""Gradient penalties of critics whose gradient is known by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ganscale import errors, ops

IMPLS = [
    "reference",
    pytest.param(
        "fused", marks=pytest.mark.skipif(not ops.build_info()["compiled"], reason="the compiled core is not built")
    ),
]
pytestmark = pytest.mark.parametrize("impl", IMPLS)


def _linear(direction):
    """A critic whose gradient is ``direction`` everywhere."""
    return lambda x: (x * direction).flatten(1).sum(1)


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_penalty_of_a_linear_critic_is_the_squared_distance_of_its_norm_from_the_center(samples, impl):
    direction = torch.tensor([3.0, 4.0], dtype=torch.float64)  # norm 5
    x = torch.randn(samples, 2, dtype=torch.float64)
    expected = {(1.0, False): 16.0, (5.0, False): 0.0, (0.0, False): 25.0, (7.0, False): 4.0, (7.0, True): 0.0}
    for (center, one_sided), value in expected.items():
        penalty = ops.gradient_penalty(_linear(direction), x, center=center, one_sided=one_sided, impl=impl)
        torch.testing.assert_close(penalty, torch.full((samples,), value, dtype=torch.float64))


def test_penalty_is_per_sample_and_does_not_see_the_batch(impl):
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    once = ops.gradient_penalty(critic, x, impl=impl)
    twice = ops.gradient_penalty(critic, torch.cat([x, x]), impl=impl)
    torch.testing.assert_close(twice, torch.cat([once, once]), rtol=1e-12, atol=0)
    alone = torch.cat([ops.gradient_penalty(critic, x[i : i + 1], impl=impl) for i in range(5)])
    torch.testing.assert_close(once, alone, rtol=1e-12, atol=0)
    torch.testing.assert_close(twice.mean(), once.mean(), rtol=1e-12, atol=0)


def test_r1_of_a_linear_critic_is_its_squared_weight_norm_and_so_is_the_gradient(impl):
    layer = nn.Linear(6, 1).double()
    penalty = ops.gradient_penalty(layer, torch.randn(4, 6, dtype=torch.float64), center=0.0, impl=impl)
    torch.testing.assert_close(penalty, layer.weight.square().sum().detach().expand(4))
    penalty.mean().backward()
    torch.testing.assert_close(layer.weight.grad, 2 * layer.weight.detach())


@pytest.mark.parametrize(("center", "one_sided"), [(1.0, False), (1.0, True), (0.0, False)])
def test_a_gradient_of_exactly_zero_gives_finite_derivatives(center, one_sided, impl):
    weight = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    penalty = ops.gradient_penalty(
        _linear(weight), torch.randn(2, 3, dtype=torch.float64), center=center, one_sided=one_sided, impl=impl
    )
    torch.testing.assert_close(penalty.detach(), torch.full((2,), 0.0 if one_sided else center**2, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(penalty.sum(), weight)
    assert torch.equal(gradient, torch.zeros(3, dtype=torch.float64))


def test_huge_and_tiny_samples_do_not_spoil_their_neighbours(impl):
    directions = torch.tensor([[3e18, 4e18], [3.0, 4.0], [3e-18, 4e-18]], requires_grad=True)
    penalty = ops.gradient_penalty(lambda x: (x * directions).sum(1), torch.randn(3, 2), impl=impl)
    torch.testing.assert_close(penalty.detach(), torch.tensor([2.5e37, 16.0, 1.0]))
    (gradient,) = torch.autograd.grad(penalty.sum(), directions)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient[1], torch.tensor([4.8, 6.4]))  # 2 (n - 1) / n times the direction


def test_gradient_in_the_parameters_equals_finite_differences(impl):
    torch.manual_seed(0)
    weight = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 6, dtype=torch.float64)

    def penalty(w):
        return ops.gradient_penalty(lambda t: torch.tanh(t @ w.T).sum(1), x, impl=impl)

    assert torch.autograd.gradcheck(penalty, (weight,))


def test_penalty_is_differentiable_in_an_input_that_carries_a_graph(impl):
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    penalty = ops.gradient_penalty(lambda t: t.pow(3).sum(1) / 3, x * 1.0, center=0.0, impl=impl)
    (gradient,) = torch.autograd.grad(penalty.sum(), x)
    torch.testing.assert_close(gradient, 4 * x.detach() ** 3)  # the penalty is sum x^4


def test_penalty_works_where_gradients_are_off_and_then_carries_no_graph(impl):
    layer = nn.Linear(3, 1)
    with torch.no_grad():
        penalty = ops.gradient_penalty(layer, torch.randn(2, 3), center=0.0, impl=impl)
    assert not penalty.requires_grad
    torch.testing.assert_close(penalty, layer.weight.detach().square().sum().expand(2))


def test_16_bit_gradients_are_summed_in_float32(impl):
    direction = torch.full((4096,), 16.0, dtype=torch.float16)  # the sum of squares, 2^20, is beyond float16
    penalty = ops.gradient_penalty(_linear(direction), torch.zeros(2, 4096, dtype=torch.float16), center=0.0, impl=impl)
    assert penalty.dtype == torch.float32
    assert penalty.tolist() == [2.0**20] * 2


def test_a_channels_last_batch_gives_the_same_penalties(impl):
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(4 * 36, 1)).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    plain = ops.gradient_penalty(critic, x, impl=impl)
    last = ops.gradient_penalty(critic, x.contiguous(memory_format=torch.channels_last), impl=impl)
    torch.testing.assert_close(last, plain, rtol=1e-12, atol=0)


def test_an_empty_batch_gives_no_penalties(impl):
    assert ops.gradient_penalty(nn.Linear(3, 1), torch.empty(0, 3), impl=impl).shape == (0,)


@pytest.mark.parametrize(
    ("critic", "named"),
    [
        (lambda x: x.sum(1).mean(), "one row of logits a sample"),
        (lambda x: x.detach().sum(1), "depend on its input"),
        (lambda x: torch.zeros(2, requires_grad=True) * 1, "depend on its input"),
        (lambda x: (x.sum(1), x), "one tensor of logits"),
        (lambda x: x.sum(1)[:1], "one row of logits a sample"),
    ],
)
def test_a_critic_that_cannot_be_penalised_is_refused(critic, named, impl):
    with pytest.raises(errors.UserError, match=named):
        ops.gradient_penalty(critic, torch.randn(2, 3), impl=impl)


@pytest.mark.parametrize(
    ("x", "named"),
    [
        (torch.ones(2, 3, dtype=torch.int64), "x.dtype must be one of"),
        (torch.ones(2, 3, dtype=torch.complex64), "x.dtype must be one of"),
        (torch.eye(3).to_sparse(), "x must be a dense tensor"),
        ("csr", "x must be a dense tensor"),
        (torch.ones(3), "x must have an axis for the batch and the channels"),
        (torch.ones(2, 3).numpy(), "x must be a torch.Tensor"),
        ([[1.0, 2.0, 3.0]], "x must be a torch.Tensor"),
    ],
    ids=["integer", "complex", "sparse", "csr", "one axis", "array", "list"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_what_is_no_batch_of_floats_is_refused(x, named, impl):
    x = torch.eye(3).to_sparse_csr() if isinstance(x, str) else x  # which warns that it is new
    with pytest.raises(errors.UserError, match=named):
        ops.gradient_penalty(nn.Linear(3, 1), x, impl=impl)


def test_a_critic_that_is_elsewhere_is_torchs_error(impl):
    with pytest.raises(RuntimeError, match="meta"):
        ops.gradient_penalty(
            nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).to("meta"), torch.ones(2, 3), impl=impl
        )


@pytest.mark.parametrize("center", [-1.0, float("nan"), float("inf")])
def test_a_center_that_is_no_norm_is_refused(center, impl):
    with pytest.raises(errors.UserError, match="center must be a finite norm"):
        ops.gradient_penalty(nn.Linear(3, 1), torch.randn(2, 3), center=center, impl=impl)
