"""Laws of the networks: shapes, ranges, what is refused, and batch norm over the global batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ganscale.config import MODEL_NAMES, RunConfig, from_mapping
from ganscale.errors import ConfigError
from ganscale.models import MODELS, build_critic, build_generator
from ganscale.models.layers import BatchNormAct


def config(name: str, resolution: object, channels: int = 1, *, width: int = 4) -> RunConfig:
    return from_mapping(
        {
            "data": {"resolution": resolution, "channels": channels},
            "model": {"generator": name, "critic": name, "width": width, "latent": 6},
            "loss": {"name": "reconstruction" if name.endswith("autoencoder") else "non-saturating"},
        }
    )


def test_the_registry_holds_exactly_the_names_that_a_config_may_use():
    assert set(MODELS) == set(MODEL_NAMES)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("resolution", [28, 32, 64, "32x48", "28x56"])
@pytest.mark.parametrize("name", MODELS)
def test_generators_make_bounded_images_and_critics_one_logit_each(name: str, resolution: object, channels: int):
    chosen = config(name, resolution, channels)
    generator, critic = build_generator(chosen), build_critic(chosen)
    images = generator(torch.randn(3, generator.latent))
    assert images.shape == (3, channels, *chosen.data.resolution)
    assert images.abs().max() <= 1
    assert critic(images).shape == (3,)


def test_points_of_the_plane_are_not_bounded():
    generator = build_generator(config("mlp", 1, 2))
    with torch.no_grad():
        generator.out.bias.fill_(5.0)
    assert generator(torch.zeros(1, generator.latent)).max() > 1


@pytest.mark.parametrize("resolution", [7, 30, 33, "28x30"])
def test_a_resolution_that_does_not_halve_evenly_is_refused_with_sizes_that_do(resolution: object):
    with pytest.raises(ConfigError, match=r"be at least 8 and a multiple of \d+ .* use \d+x\d+ or"):
        build_generator(config("dcgan", resolution))


@pytest.mark.parametrize("name", MODELS)
def test_a_critic_treats_every_sample_apart(name: str):
    critic = build_critic(config(name, 28)).double()
    x = torch.randn(5, 1, 28, 28, dtype=torch.float64)
    alone = torch.cat([critic(row) for row in x.split(1)])
    torch.testing.assert_close(critic(x), alone, rtol=1e-12, atol=1e-14)  # sums of another blocking differ by rounding


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_batch_norm_over_one_rank_is_that_of_torch(scale: float):
    torch.manual_seed(0)
    ours, truth = BatchNormAct(3).double(), nn.BatchNorm2d(3).double()
    ours.sum_over_ranks = lambda x: x
    x = scale + torch.randn(4, 3, 5, 5, dtype=torch.float64)
    x_ours, x_truth = x.clone().requires_grad_(), x.clone().requires_grad_()
    weight = torch.randn_like(x)
    (ours(x_ours) * weight).sum().backward()
    (truth(x_truth) * weight).sum().backward()
    # a mean of 1e3 beside a spread of 1 costs three digits of the sixteen
    tolerance = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(ours(x), truth(x), **tolerance)
    torch.testing.assert_close(x_ours.grad, x_truth.grad, **tolerance)
    torch.testing.assert_close(ours.weight.grad, truth.weight.grad, **tolerance)
    torch.testing.assert_close(ours.running_var, truth.running_var, **tolerance)
    torch.testing.assert_close(ours.running_mean, truth.running_mean, **tolerance)
