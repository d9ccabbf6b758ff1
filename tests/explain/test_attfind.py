"""AttFind: a coordinate that is wired to the judge is found first, both ways, and edits of layers leave no trace."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import toys
from torch import nn

from ganscale.dashboards.attributes import _also
from ganscale.explain import Classifier, Subject, explain
from ganscale.explain.edits import ablate, edited, shift, used_layers
from ganscale.explain.errors import ExplainTargetError, LayerError
from ganscale.explain.latent.attfind import one_against_rest

LATENT, SIDE, WIRED = 12, 6, 7


class Wired(nn.Module):
    """The upper left pixel is coordinate WIRED; the others are weak mixtures of all the rest."""

    latent = LATENT

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Linear(LATENT, LATENT, bias=False)
            self.mix = nn.Linear(LATENT, SIDE * SIDE, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(LATENT))
            self.mix.weight.mul_(0.3)
            self.mix.weight[:, WIRED] = 0
            self.mix.weight[0] = 0
            self.mix.weight[0, WIRED] = 1

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.mix(self.first(z)).unflatten(1, (1, SIDE, SIDE))


class Corner(nn.Module):
    """Class 1 where the upper left pixel is positive; a little of the next pixel as well."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logit = 3 * x[:, 0, 0, 0] + 0.1 * x[:, 0, 0, 1]
        return torch.stack([torch.zeros_like(logit), logit], dim=1)


def latents(count: int) -> torch.Tensor:
    return torch.randn(count, LATENT, generator=torch.Generator().manual_seed(3))


def subject(critic=None) -> Subject:
    generator, judge = Wired(), Corner()
    classifier = None if critic else Classifier(judge, name="corner", example=torch.zeros(2, 1, SIDE, SIDE))
    return Subject(
        name="wired",
        fn=judge,
        module=judge,
        generator=generator,
        classifier=classifier,
        critic=critic,
        value_range=None,
    )


@pytest.mark.parametrize("layer", ["z", "first"])
def test_the_wired_coordinate_is_first_in_both_directions(layer):
    found = explain(subject(), latents(16), "attfind", layer=layer)
    ranking = found.values["ranking"]  # [D, up or down, class]
    assert ranking[0, 0, 1] == WIRED  # up: towards class 1
    assert ranking[0, 1, 0] == WIRED  # down: towards class 0
    assert ranking[-1, 1, 1] == WIRED
    assert found.values["best"].tolist() == [2 * WIRED + 1, 2 * WIRED]
    assert found.values["attribute_rows"][:, 1].tolist() == [WIRED], "one row, though it is both classes' best"
    shown, other = int(found.values["attribute_rows"][0, 0]), found.meta["class_names"]
    assert _also(found, shown, WIRED).startswith(other[1 - shown])
    assert not found.not_better_than_random
    if layer == "z":  # the judge's log-odds are linear in that coordinate
        torch.testing.assert_close(
            found.values["effect"][WIRED, :, 1], torch.tensor([6.0, -6.0]).double(), rtol=1e-4, atol=0
        )


def test_a_critic_is_a_judge_with_one_answer():
    def corner(x: torch.Tensor) -> torch.Tensor:
        return 3 * x[:, 0, 0, 0] + 0.1 * x[:, 0, 0, 1]

    found = explain(subject(critic=corner), latents(6), "attfind")
    assert found.values["ranking"][0, 0, 0] == WIRED
    assert found.values["ranking"][-1, 1, 0] == WIRED
    with pytest.raises(ExplainTargetError, match="have a classifier or a critic"):
        explain(Wired(), latents(2), "attfind")


def test_coordinates_that_are_no_better_than_any_direction_say_so():
    torch.manual_seed(0)
    generator = toys.LinearGenerator(LATENT, SIDE)  # its axes are as good as any others for a random judge
    judge = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 20))
    classifier = Classifier(judge, name="random", example=torch.zeros(2, 1, SIDE, SIDE))
    pair = Subject(name="pair", fn=judge, generator=generator, classifier=classifier, value_range=None)
    found = explain(pair, latents(12), "attfind").scores["best_effect"]
    assert found.value == pytest.approx(found.control, rel=0.2)


def test_a_wide_layer_is_compared_with_as_many_random_directions():
    class Wide(nn.Module):
        latent = LATENT

        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.first, self.mix = nn.Linear(LATENT, 80), nn.Linear(80, SIDE * SIDE)

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return self.mix(self.first(z)).unflatten(1, (1, SIDE, SIDE))

    pair = replace(subject(), generator=Wide())
    found = explain(pair, latents(4), "attfind", layer="first")
    assert found.values["random_directions"].shape == (80, 80)
    assert found.values["effect_random"].shape == found.values["effect"].shape == (80, 2, 2)


def test_odds_of_one_against_the_rest_are_those_of_its_probability():
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(one_against_rest(logits).sigmoid(), logits.softmax(dim=1))


def test_an_edit_is_undone_on_exit_and_after_an_exception():
    network, z = Wired(), latents(5)
    before = network(z)
    with edited(network, "first", ablate(torch.tensor([WIRED]))):
        gone = network(z)
    assert gone[:, 0, 0, 0].abs().max() == 0
    assert torch.equal(gone.flatten(1)[:, 1:], before.flatten(1)[:, 1:])
    with pytest.raises(ZeroDivisionError), edited(network, "first", lambda output: 1 / 0):
        network(z)
    assert torch.equal(network(z), before)
    assert not network._forward_pre_hooks
    assert not network.first._forward_hooks
    with edited(network, "first", shift(torch.zeros(LATENT))):
        assert torch.equal(network(z), before), "a shift by nothing"


def test_one_use_of_a_shared_layer_can_be_edited_alone():
    shared = nn.Linear(3, 3, bias=False)
    twice = nn.Sequential(shared, nn.ReLU(), shared)
    x = torch.randn(4, 3)
    with edited(twice, "0#1", ablate(torch.arange(3))):
        for _ in range(2):  # uses are counted anew in each forward
            assert twice(x).abs().max() == 0
    with edited(twice, "0#0", ablate(torch.arange(3), to=1.0)):
        torch.testing.assert_close(twice(x), shared(torch.ones(4, 3)))
    with pytest.raises(LayerError, match="whole number"), edited(twice, "0#x", ablate(torch.arange(3))):
        twice(x)


def test_layers_are_listed_as_they_are_used():
    assert list(used_layers(Wired(), latents(2)).items()) == [("first", (12,)), ("mix", (36,))]
    assert list(used_layers(toys.LinearGenerator(4, 3), torch.zeros(2, 4))) == ["start"], (
        "what is not called is not there"
    )
