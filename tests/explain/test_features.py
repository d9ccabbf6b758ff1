"""Features: maps are what a forward pass computes, and the best input of a linear unit is its weight."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import toys
from torch import nn
from torch.nn.functional import cosine_similarity

from ganscale.explain import Earlier, Subject, explain, subject_of_run
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


@pytest.mark.parametrize("shape", [(3, 15, 17), (4, 12, 20)])
@pytest.mark.parametrize("jitter", [0, 1])
def test_the_best_image_of_any_size_and_number_of_channels_is_its_units_weight(shape, jitter):
    channels, height, width = shape
    draw = torch.Generator().manual_seed(0)
    coarse = torch.randn(2, channels, 3, 4, generator=draw)  # so smooth that a shift by a pixel changes little
    weight = nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(weight[0].numel(), 2, bias=False))
    with torch.no_grad():
        critic[1].weight.copy_(weight.flatten(1))
    real = torch.rand(20, *shape, generator=draw) - 0.5
    inputs = {"z": latents(3), "real": real}
    found = explain(subject(critic), inputs, "feature-vis", layer="1", steps=200, jitter=jitter, units=2).values
    assert found["vis_images"].shape == (2, *shape)
    assert found["vis_images"].abs().max() <= 1 + 1e-6
    aligned = cosine_similarity(found["vis_images"].flatten(1), weight[found["units"]].flatten(1))
    assert aligned.min() >= (0.9 if jitter else 0.99)
    assert (found["vis_reached"] > found["vis_best_reached"].amax(dim=1)).all()


def test_the_best_latent_of_a_linear_unit_is_its_weight():
    pair = subject()
    found = explain(pair, latents(4), "feature-vis", network="G", layer="start", steps=200, units=3).values
    weight = pair.generator.start.weight.detach()[found["units"]]
    assert cosine_similarity(found["vis_inputs"], weight).min() >= 0.99
    torch.testing.assert_close(found["vis_inputs"].norm(dim=1), torch.full((3,), LATENT**0.5))
    assert (found["vis_reached"] > found["vis_random"]).all()


def test_an_input_that_excites_less_than_the_best_picture_is_no_finding_however_far_it_beats_a_random_one():
    weight = torch.randn(6, SIDE * SIDE, generator=torch.Generator().manual_seed(0))
    critic = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 6, bias=False))
    with torch.no_grad():
        critic[1].weight.copy_(weight)
    faint = 0.1 * torch.randn(20, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    best = weight.sign().unflatten(1, (1, SIDE, SIDE))  # nothing excites a unit more
    inputs = {"z": latents(3), "real": torch.cat([faint, best])}
    found = explain(subject(critic), inputs, "feature-vis", layer="1", steps=100, units=6)
    assert found.scores["excitement"].beats_control
    assert found.not_better_than_random


def test_what_features_cannot_use_is_refused():
    with pytest.raises(ExplainTargetError, match="have a classifier that is a network"):
        explain(subject(), latents(2), "feature-maps", network="C")
    with pytest.raises(LayerError, match="did you mean hidden"):
        explain(subject(), latents(2), "feature-maps", layers="hiden")
    with pytest.raises(LayerError, match=r"have a map \(C, h, w\)"):
        explain(subject(), latents(2), "feature-maps", layers="start")


class Spread(nn.Module):
    """A critic whose second layer sees how rows differ from those beside them."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.next, self.end = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.end(self.next(x - x.mean(dim=0)).tanh().mean(dim=(2, 3)))[:, 0]


def across_its_batch(target: str = "critic") -> tuple[Spread, torch.Tensor, Subject]:
    critic = Spread()
    others = torch.rand(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) * 2 - 1
    generator = toys.ConvGenerator(LATENT, SIDE)
    return critic, others, subject_of_run(target=target, critic=critic, generator=generator, companions=others)


def test_layers_of_a_critic_that_looks_across_its_batch_are_those_of_each_row_beside_its_companions():
    critic, others, pair = across_its_batch()
    found = explain(pair, latents(5), "feature-maps", network="D")
    assert found.meta["layers"] == ["conv", "next"]
    with torch.no_grad():
        groups = [torch.cat([row, others]) for row in pair.generator(latents(5)).split(1)]
        seen = [critic.conv(group) for group in groups]
        by_hand = torch.cat([critic.next(x - x.mean(dim=0))[:1] for x in seen])
    torch.testing.assert_close(found.values["map_1"], by_hand[:4, found.values["channels_1"]])
    assert found.meta["cost"]["rows_forward"] == 2 * 5 * 4  # two layers of five rows, each beside three others
    before = Earlier(images=7, generator=pair.generator, critic=pair.critic)
    past = explain(replace(pair, earlier=(before,)), latents(5), "feature-maps", network="D", checkpoints=2)
    torch.testing.assert_close(past.values["past_1"][0], past.values["map_1"][0])


def test_a_unit_of_a_critic_that_looks_across_its_batch_is_searched_for_and_is_a_target():
    critic, others, pair = across_its_batch()
    found = explain(pair, latents(5), "feature-vis", network="D", layer="next", units=2, steps=20).values
    with torch.no_grad():
        best = found["vis_inputs"][:1]
        seen = critic.conv(torch.cat([best, others]))
        by_hand = critic.next(seen - seen.mean(dim=0))[0, found["units"][0]].mean()
    assert float(by_hand) == pytest.approx(float(found["vis_reached"][0]), abs=1e-6)  # float32
    assert (found["vis_reached"] > found["vis_random"]).all()
    unit = across_its_batch(f"unit:next:{int(found['units'][0])}")[2]
    assert float(unit.fn(best).detach()) == pytest.approx(float(by_hand), abs=1e-6)
    assert unit.rows_a_row == 4


@pytest.mark.parametrize("method", ["grad-cam", "layer-conductance"])
def test_maps_of_a_layer_are_those_of_each_row_beside_its_companions(method):
    critic, others, pair = across_its_batch()
    x = torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(5)) * 2 - 1
    found = explain(pair, x, method, layer="next", shakes=0)
    plain = explain(
        lambda row: torch.cat([critic(torch.cat([one, others]))[:1] for one in row.split(1)]), x, "saliency"
    )
    torch.testing.assert_close(found.values["fx"], plain.values["fx"])
    if method == "layer-conductance":  # all of f flows through the layer
        assert found.scores["completeness_gap"].value < 0.02
        return
    leaf = torch.cat([x[:1], others]).requires_grad_()
    seen = critic.conv(leaf)
    hidden = critic.next(seen - seen.mean(dim=0))
    (slope,) = torch.autograd.grad(critic.end(hidden.tanh().mean(dim=(2, 3)))[0, 0], hidden)
    by_hand = (hidden[0] * slope[0].mean(dim=(1, 2), keepdim=True)).sum(dim=0).detach()
    torch.testing.assert_close(found.values["layer_shares"][0], by_hand)


def test_earlier_networks_are_looked_at_as_todays_are_and_come_back_as_they_were():
    class Dropped(toys.ConvGenerator):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            assert not any(parameter.requires_grad for parameter in self.parameters())
            return super().forward(nn.functional.dropout(z, training=self.training))

    pair = subject()
    old = Dropped(LATENT, SIDE).train()
    past = replace(pair, earlier=(Earlier(images=9, generator=old, critic=copy.deepcopy(pair.critic)),))
    found = explain(past, latents(3), "feature-maps", checkpoints=2)
    with torch.no_grad():
        drawn = toys.ConvGenerator(LATENT, SIDE)(latents(3)[:1])
    torch.testing.assert_close(found.values["past_images"], drawn)
    assert old.training
    assert all(parameter.requires_grad for parameter in old.parameters())
