"""Features: maps are what a forward pass computes, and the best input of a linear unit is its weight."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import toys
from torch import nn
from torch.nn.functional import cosine_similarity

from ganscale.explain import Earlier, Subject, explain
from ganscale.explain.errors import ExplainOptionError, ExplainTargetError, LayerError

LATENT, SIDE = 6, 14


def latents(count: int) -> torch.Tensor:
    return torch.randn(count, LATENT, generator=torch.Generator().manual_seed(4))


def subject(critic: nn.Module | None = None) -> Subject:
    critic = critic or toys.conv_critic()
    generator = toys.ConvGenerator(LATENT, SIDE)
    return Subject(name="pair", fn=critic, module=critic, generator=generator, critic=critic, value_range=None)


def test_maps_are_those_of_a_forward_pass_by_hand():
    pair = subject()
    found = explain(pair, latents(5), "feature-maps", channels=3)
    assert found.meta["layers"] == ["hidden", "up"]
    generator = pair.generator
    with torch.no_grad():
        x = torch.relu(generator.start(latents(5))).unflatten(1, (4, 7, 7))
        hidden = generator.hidden(x)
        up = generator.up(torch.relu(hidden))
    for place, by_hand in enumerate((hidden, up)):
        channels = found.values[f"channels_{place}"]
        assert torch.equal(found.values[f"map_{place}"], by_hand[:4, channels])
    spread = hidden.double().transpose(0, 1).flatten(1).std(dim=1)
    assert found.values["channels_0"].tolist() == spread.argsort(descending=True)[:3].tolist()


def test_earlier_maps_are_those_of_the_earlier_networks_in_the_channels_of_today():
    pair, torch_state = subject(), torch.random.get_rng_state()
    old_generator, old_critic = copy.deepcopy(pair.generator), copy.deepcopy(pair.critic)
    with torch.no_grad():
        for network in (old_generator, old_critic):
            for parameter in network.parameters():
                parameter.mul_(0.5)
    before = Earlier(images=1000, generator=old_generator.eval(), critic=old_critic.eval())
    past = replace(pair, earlier=(before,))
    found = explain(past, latents(5), "feature-maps", channels=3, checkpoints=2)
    first = latents(5)[:1]
    with torch.no_grad():
        drawn = old_generator(first)
        hidden = old_generator.hidden(torch.relu(old_generator.start(first)).unflatten(1, (4, 7, 7)))
        seen = old_critic[0](pair.generator(first))
    assert found.values["past_times"].tolist() == [1000]
    assert torch.equal(found.values["past_images"][0], drawn[0])
    assert torch.equal(found.values["past_0"][0], hidden[0, found.values["channels_0"]])
    critic = explain(past, latents(5), "feature-maps", network="D", checkpoints=2)
    of_today = seen[0, critic.values["channels_0"]]  # drawn alone here, with four others there: float32 rounding
    assert torch.allclose(critic.values["past_0"][0], of_today, rtol=0, atol=1e-6)
    older = replace(pair, earlier=(replace(before, images=500), before))
    assert explain(older, latents(5), "feature-maps", checkpoints=2).values["past_times"].tolist() == [1000]
    assert "past_times" not in explain(older, latents(5), "feature-maps").values, "nobody asked for them"
    plain = explain(pair, latents(5), "feature-maps", channels=3)
    assert torch.equal(plain.values["map_0"], found.values["map_0"])
    assert torch.equal(torch.random.get_rng_state(), torch_state)


def test_what_is_asked_of_checkpoints_that_are_not_there_is_said():
    found = explain(subject(), latents(5), "feature-maps", checkpoints=3)
    assert "past_times" not in found.values
    assert found.meta["warnings"] == ["3 checkpoints were asked for, 1 are kept (checkpoint.keep)"]
    with pytest.raises(ExplainOptionError, match="be 1 for a classifier"):
        explain(subject(), latents(5), "feature-maps", network="C", checkpoints=3)


def test_maps_of_a_critic_are_of_the_generators_pictures():
    pair = subject()
    found = explain(pair, latents(5), "feature-maps", network="D", channels=8)
    with torch.no_grad():
        by_hand = pair.critic[0](pair.generator(latents(5)))
    assert found.meta["layers"] == ["0", "2"]
    assert torch.equal(found.values["map_0"], by_hand[:4, found.values["channels_0"]])


def test_a_map_that_is_the_picture_depicts_it_and_one_of_another_does_not():
    class Shown(nn.Module):
        latent = LATENT

        def __init__(self) -> None:
            super().__init__()
            self.inner = toys.ConvGenerator(LATENT, SIDE)
            self.copy = nn.Conv2d(1, 1, 1, bias=False)
            with torch.no_grad():
                self.copy.weight.fill_(1)

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return self.copy(self.inner(z))

    pair = Subject(name="shown", fn=lambda x: x.flatten(1).sum(1), generator=Shown(), value_range=None)
    found = explain(pair, latents(12), "feature-maps", layers="copy")
    assert found.scores["depicts_its_picture"].value == pytest.approx(1, abs=1e-6)
    assert found.scores["depicts_its_picture"].control < 0.9
    assert not found.not_better_than_random


def test_the_best_image_of_a_linear_unit_is_its_weight():
    critic = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 3, bias=False))
    weight = torch.randn(3, SIDE * SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        critic[1].weight.copy_(weight)
    found = explain(subject(critic), latents(8), "feature-vis", layer="1", steps=200, jitter=0, units=3).values
    aligned = cosine_similarity(found["vis_images"].flatten(1), weight[found["units"]])
    assert aligned.min() >= 0.99
    assert found["vis_images"].abs().max() <= 1 + 1e-6, "inside the range"
    assert (found["vis_reached"] > found["vis_random"]).all()


def test_the_best_latent_of_a_linear_unit_is_its_weight():
    pair = subject()
    found = explain(pair, latents(4), "feature-vis", network="G", layer="start", steps=200, units=3).values
    weight = pair.generator.start.weight.detach()[found["units"]]
    assert cosine_similarity(found["vis_inputs"], weight).min() >= 0.99
    torch.testing.assert_close(found["vis_inputs"].norm(dim=1), torch.full((3,), LATENT**0.5))
    assert (found["vis_reached"] > found["vis_random"]).all()


def test_what_features_cannot_use_is_refused():
    with pytest.raises(ExplainTargetError, match="have a classifier that is a network"):
        explain(subject(), latents(2), "feature-maps", network="C")
    with pytest.raises(LayerError, match="did you mean hidden"):
        explain(subject(), latents(2), "feature-maps", layers="hiden")
    with pytest.raises(LayerError, match=r"have a map \(C, h, w\)"):
        explain(subject(), latents(2), "feature-maps", layers="start")
