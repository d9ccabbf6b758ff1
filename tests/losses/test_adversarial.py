"""Laws of the adversarial losses."""

from __future__ import annotations

import pytest
import torch

from ganscale.config import LOSS_NAMES, PENALTY_NAMES
from ganscale.losses import ADVERSARIAL, PENALTIES


def test_registries_hold_exactly_the_names_that_a_config_may_use():
    assert set(ADVERSARIAL) == set(LOSS_NAMES)
    assert {"none", *PENALTIES} == set(PENALTY_NAMES)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_losses_give_one_finite_number_a_sample_even_for_huge_logits(name: str):
    real, fake = torch.tensor([-1e4, 0.0, 1e4]), torch.tensor([1e4, 0.0, -1e4])
    for side in (ADVERSARIAL[name].critic, ADVERSARIAL[name].generator):
        value = side(real, fake)
        assert value.shape == (3,)
        assert value.isfinite().all()


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_a_better_critic_has_a_lower_critic_loss_and_a_better_fake_a_lower_generator_loss(name: str):
    low, high = torch.tensor([-0.5]), torch.tensor([0.5])
    loss = ADVERSARIAL[name]
    assert loss.critic(high, low) < loss.critic(low, high)
    assert loss.generator(low, high) < loss.generator(low, low)


def test_closed_forms():
    zero, one = torch.zeros(1), torch.ones(1)
    log2 = torch.log(torch.tensor(2.0))
    assert torch.allclose(ADVERSARIAL["non-saturating"].critic(zero, zero), 2 * log2)
    assert torch.allclose(ADVERSARIAL["minimax"].generator(zero, zero), -log2)
    assert ADVERSARIAL["hinge"].critic(one, -one) == 0
    assert ADVERSARIAL["wasserstein"].critic(one, -one) == -2
    assert ADVERSARIAL["least-squares"].critic(one, zero) == 0
    assert torch.allclose(ADVERSARIAL["relativistic"].critic(one, one), log2)


def test_minimax_generator_saturates_where_the_critic_wins_and_non_saturating_does_not():
    fake = torch.tensor([-10.0], requires_grad=True)
    (saturated,) = torch.autograd.grad(ADVERSARIAL["minimax"].generator(fake, fake).sum(), fake)
    (alive,) = torch.autograd.grad(ADVERSARIAL["non-saturating"].generator(fake, fake).sum(), fake)
    assert saturated.abs() < 1e-4 < 0.99 < alive.abs()
