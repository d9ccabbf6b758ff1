"""Attacks on latents: a linear generator moves by its first singular value; ball, joint curves, refusals."""

from __future__ import annotations

import pytest
import torch
import toys
from torch import nn

from ganscale.explain import Subject, explain
from ganscale.explain.errors import ExplainInputError, ExplainTargetError, ZeroGradientError

LATENT, SIDE = 6, 14


def latents(count: int) -> torch.Tensor:
    return torch.randn(count, LATENT, generator=torch.Generator().manual_seed(5))


def pair(generator: nn.Module, critic: nn.Module | None) -> Subject:
    return Subject(
        name="pair", fn=critic or (lambda x: x.flatten(1).sum(1)), generator=generator, critic=critic, value_range=None
    )


def test_a_linear_generator_is_moved_by_the_budget_times_its_first_singular_value():
    generator = toys.LinearGenerator(LATENT, SIDE).double()
    found = explain(generator, latents(3).double(), "attack-latent", steps=200)
    first = torch.linalg.svdvals(generator.start.weight.detach())[0]
    truth = found.values["latent_budgets"] * first
    torch.testing.assert_close(found.values["image_change"][:, 0], truth.expand(3, -1), rtol=1e-6, atol=0)
    assert (found.values["random_image_change"] < truth).all()
    assert not found.not_better_than_random


def test_a_linear_critics_logit_is_moved_by_the_budget_times_the_norm_of_its_gradient():
    generator = toys.LinearGenerator(LATENT, SIDE).double()
    critic = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 1, bias=False), nn.Flatten(0)).double()
    found = explain(pair(generator, critic), latents(3).double(), "attack-latent")
    weight = critic[1].weight.detach()[0]
    reach = found.values["latent_budgets"] * (generator.start.weight.detach().T @ weight).norm()
    moved = found.values["logits"] - found.values["clean_logits"][:, None, None]
    torch.testing.assert_close(moved[:, 1], reach.expand(3, -1), rtol=1e-6, atol=0)
    torch.testing.assert_close(moved[:, 2], -reach.expand(3, -1), rtol=1e-6, atol=0)
    pixels = found.values["pixel_logits"] - found.values["clean_logits"][:, None]
    torch.testing.assert_close(pixels, found.values["image_change"][:, 1] * weight.norm(), rtol=1e-6, atol=0)
    # what the generator cannot reach: the part of the critic's gradient outside its image
    assert 0 < found.scores["share_of_pixel_attack"].value < 1


def test_no_latent_attack_leaves_its_ball_and_larger_balls_hold_stronger_attacks():
    found = explain(pair(toys.LinearGenerator(LATENT, SIDE), toys.conv_critic()), latents(5), "attack-latent")
    budgets = found.values["latent_budgets"]
    assert (found.values["length"] <= budgets * (1 + 1e-5)).all()
    assert (found.values["image_change"][:, 0].diff(dim=1) > 0).all()
    assert (found.values["logits"][:, 1].diff(dim=1) > 0).all()
    assert (found.values["logits"][:, 2].diff(dim=1) < 0).all()
    assert found.values["latent_images"].shape == (5, 5, 1, SIDE, SIDE)
    shown = found.values["latent_images"]
    change = (shown[:, 2] - shown[:, 0]).double().flatten(1).norm(dim=1)
    torch.testing.assert_close(change, found.values["image_change"][:, 0, -1])


def test_an_isotropic_generator_has_no_direction_better_than_random():
    generator = toys.LinearGenerator(9, 3)
    with torch.no_grad():
        generator.start.weight.copy_(torch.eye(9))
    found = explain(generator, torch.randn(4, 9), "attack-latent")
    assert found.scores["image_change_per_step"].value == pytest.approx(1.0, rel=1e-5)
    assert found.scores["image_change_per_step"].control == pytest.approx(1.0, rel=1e-5)


def test_what_latent_attacks_cannot_use_is_refused():
    class Stuck(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return (z.sign() + 0 * z).reshape(-1, 1, 2, 3)

    with pytest.raises(ZeroGradientError, match="latent"):
        explain(Stuck(), latents(2), "attack-latent")
    with pytest.raises(ExplainTargetError, match="generator"):
        explain(Subject(name="critic", fn=toys.conv_critic()), latents(2), "attack-latent")
    with pytest.raises(ExplainInputError, match="latents"):
        explain(toys.LinearGenerator(LATENT, SIDE), torch.zeros(2, LATENT, 1), "attack-latent")
