"""Laws of the gradient penalties, on a linear critic whose gradient is known: D(x) = <w, x>, |grad D| = |w|."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ganscale.config import override
from ganscale.losses import PENALTIES, describe_penalty
from ganscale.models import build_critic
from ganscale.presets import preset

SHAPE = (3, 4, 5)


def linear_critic(norm: float) -> nn.Module:
    critic = nn.Sequential(nn.Flatten(), nn.Linear(60, 1), nn.Flatten(0)).double()
    with torch.no_grad():
        critic[1].weight.copy_(torch.randn(1, 60).double())
        critic[1].weight.mul_(norm / critic[1].weight.norm())
    return critic


EXPECTED = {
    "wgan-gp": lambda n: (n - 1) ** 2,
    "wgan-gp-one-sided": lambda n: max(0.0, n - 1) ** 2,
    "r1": lambda n: n**2 / 2,
    "r2": lambda n: n**2 / 2,
    "r1-r2": lambda n: n**2,
}


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("norm", [0.3, 2.0])
@pytest.mark.parametrize("name", PENALTIES)
def test_penalty_of_a_linear_critic_has_its_closed_form_for_any_batch(name: str, norm: float, count: int):
    torch.manual_seed(0)
    real, fake = torch.randn(2, count, *SHAPE).double()
    center = 1.0 if name.startswith("wgan") else 0.0
    value = PENALTIES[name](linear_critic(norm), real, fake, torch.rand(count).double(), center=center)
    assert value.shape == (count,)
    torch.testing.assert_close(value, torch.full_like(value, EXPECTED[name](norm)), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", PENALTIES)
def test_repeating_the_batch_changes_no_sample(name: str):
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(60, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)).double()
    real, fake = torch.randn(2, 3, *SHAPE).double()
    eps = torch.rand(3).double()
    once = PENALTIES[name](critic, real, fake, eps, center=0.0)
    twice = PENALTIES[name](critic, real.repeat(2, 1, 1, 1), fake.repeat(2, 1, 1, 1), eps.repeat(2), center=0.0)
    torch.testing.assert_close(twice, once.repeat(2), atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_says_whether_it_reads_generated_images_and_needs_none_where_it_does_not(name: str):
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(60, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)).double()
    real, one, other = torch.randn(3, 3, *SHAPE).double()
    penalty, eps = PENALTIES[name], torch.rand(3).double()
    with_one, with_other = (penalty(critic, real, fake, eps, center=0.0) for fake in (one, other))
    assert penalty.reads_fake is not torch.equal(with_one, with_other)
    if not penalty.reads_fake:
        assert torch.equal(penalty(critic, real, None, eps, center=0.0), with_one)


@pytest.mark.parametrize("name", PENALTIES)
def test_penalty_gradient_in_the_weights_equals_finite_differences(name: str):
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(60, 4), nn.Softplus(), nn.Linear(4, 1), nn.Flatten(0)).double()
    real, fake, eps = *torch.randn(2, 2, *SHAPE).double(), torch.rand(2).double()
    center = 0.1 if name.startswith("wgan") else 0.0

    def value() -> torch.Tensor:
        return PENALTIES[name](critic, real, fake, eps, center=center).sum()

    weight = critic[1].weight
    (gradient,) = torch.autograd.grad(value(), weight)
    step = 1e-6
    for index in [(0, 0), (1, 17), (3, 59)]:
        with torch.no_grad():
            weight[index] += step
        above = value()
        with torch.no_grad():
            weight[index] -= 2 * step
        below = value()
        with torch.no_grad():
            weight[index] += step
        # central differences at 1e-6 carry about 1e-10 of rounding, so 1e-7 is clear of it
        torch.testing.assert_close(gradient[index], (above - below) / (2 * step), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("wgan-gp-fashion", {}, "wgan-gp, fused (piecewise linear in x"),
        ("dcgan-fashion", {}, "r1, fused (piecewise linear in x"),
        ("hinge-fashion", {"penalty.name": "none"}, "none"),
        ("r3gan-gaussians", {}, "r1-r2, "),
    ],
)
def test_a_run_can_say_which_way_its_penalty_is_computed(name: str, changes: dict, said: str):
    config = override(preset(name), changes)
    assert describe_penalty(config, build_critic(config)).startswith(said)
