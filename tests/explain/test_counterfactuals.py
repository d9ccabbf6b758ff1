"""Counterfactuals: of linear pairs the length and the way are known; their controls say what they are worth."""

from __future__ import annotations

import pytest
import torch
import toys
from torch import nn

from ganscale.explain import Classifier, Subject, explain
from ganscale.explain.errors import ExplainInputError, ExplainTargetError
from ganscale.explain.latent.decision import smallest_step

LATENT, SIDE = 10, 6


def latents(count: int, latent: int = LATENT) -> torch.Tensor:
    return torch.randn(count, latent, generator=torch.Generator().manual_seed(5))


def linear_judge(classes: int, *, seed: int = 1) -> nn.Sequential:
    """Images to ``classes`` logits, or to one number a row where that is 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Flatten(), nn.Linear(SIDE * SIDE, classes)]
        return nn.Sequential(*layers, nn.Flatten(0)) if classes == 1 else nn.Sequential(*layers)


def subject(*, critic=None, classes: int = 0, generator=None) -> Subject:
    generator = generator or toys.LinearGenerator(LATENT, SIDE)
    judge = linear_judge(classes) if classes else None
    classifier = Classifier(judge, name="linear", example=torch.zeros(2, 1, SIDE, SIDE)) if classes else None
    fn = critic or (lambda x: x.flatten(1).sum(dim=1))
    return Subject(
        name="pair", fn=fn, module=critic, generator=generator, critic=critic, classifier=classifier, value_range=None
    )


def in_latent(generator: toys.LinearGenerator, weight: torch.Tensor) -> torch.Tensor:
    """What a linear judge's weight over pixels is over latents."""
    return weight.detach().double().flatten() @ generator.start.weight.detach().double()


def test_a_linear_decision_is_turned_along_its_weight_by_its_distance():
    generator, critic = toys.LinearGenerator(LATENT, SIDE), linear_judge(1)
    found = explain(subject(critic=critic, generator=generator), latents(9), "latent-counterfactual", confidence=0.5)
    weight = in_latent(generator, critic[1].weight)
    logit = (latents(9).double() @ weight + critic[1].bias.detach().double()).abs()
    torch.testing.assert_close(found.values["latent_length"], logit / weight.norm(), rtol=1e-3, atol=1e-6)
    along = torch.nn.functional.cosine_similarity(found.values["step"].double(), weight[None])
    assert along.abs().min() >= 1 - 1e-6
    assert found.scores["flip_rate"].value == 1
    assert found.values["flipped"].all()
    assert not found.not_better_than_random


def test_between_two_classes_the_boundary_is_where_their_logits_are_as_far_apart_as_was_asked():
    generator = toys.LinearGenerator(LATENT, SIDE)
    pair = subject(classes=2, generator=generator)
    found = explain(pair, latents(9), "latent-counterfactual", confidence=0.9)
    layer = pair.classifier.model[1]
    weight = in_latent(generator, layer.weight[1] - layer.weight[0])
    odds = latents(9).double() @ weight + (layer.bias[1] - layer.bias[0]).detach().double()
    wished = odds.abs() + torch.tensor(9.0).log().double()
    torch.testing.assert_close(found.values["latent_length"], wished / weight.norm(), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.values["probability_after"], torch.full((9,), 0.9).double(), rtol=1e-3, atol=0)
    assert (found.values["from"] == (odds > 0).long()).all()


def test_the_end_is_the_nearest_point_of_a_curved_boundary():
    # of points outside a circle, the nearest one on it is straight ahead; a first-order step alone would miss it
    start = torch.tensor([[3.0, 1.0, 0.5], [-2.0, 4.0, 1.0], [0.3, 0.2, 5.0]])
    found = smallest_step(lambda at: 1 - at.square().sum(dim=1), start, steps=60, longest=1.0)
    assert found.granted.all()
    torch.testing.assert_close(found.step.norm(dim=1), start.norm(dim=1) - 1, rtol=1e-3, atol=0)
    points = torch.randn(400_000, 3, generator=torch.Generator().manual_seed(0))
    for skewed in (torch.tensor([1.0, 4.0, 0.5]), torch.tensor([1.0, 6.0, 0.3])):
        # an ellipsoid: its nearest point by a fine grid of its surface
        found = smallest_step(lambda at: 1 - (at * skewed).square().sum(dim=1), start, steps=200, longest=1.0)  # noqa: B023
        nearest = torch.cdist(start, points / points.norm(dim=1, keepdim=True) / skewed).min(dim=1).values
        torch.testing.assert_close(found.step.norm(dim=1), nearest, rtol=1e-2, atol=0)  # a first-order way is 2.7 % off


def test_who_is_there_already_does_not_move_and_who_cannot_come_is_not_granted():
    start = torch.tensor([[2.0, 0.0], [0.5, 0.5]])
    found = smallest_step(lambda at: at.sum(dim=1) - 1, start, steps=5, longest=1.0)
    assert found.step.abs().max() == 0
    assert found.granted.all()
    never = smallest_step(lambda at: at.sum(dim=1).sigmoid() - 2, start, steps=5, longest=1.0)
    assert not never.granted.any()
    assert never.step.abs().max() == 0


def test_a_wished_class_is_reached_from_everywhere_and_left_by_its_own():
    pair = subject(classes=5)
    found = explain(pair, latents(12), "latent-counterfactual", to=3).values
    assert (found["to"][found["from"] != 3] == 3).all()
    assert (found["to"][found["from"] == 3] != 3).all()
    with torch.no_grad():
        verdicts = pair.classifier(pair.generator(latents(12) + found["step"])).argmax(dim=1)
    assert torch.equal(verdicts[found["flipped"]], found["to"][found["flipped"]])
    assert found["flipped"].float().mean() >= 0.9


def test_a_decision_that_does_not_depend_on_the_latent_is_not_better_than_random():
    generator = toys.LinearGenerator(LATENT, SIDE)
    with torch.no_grad():
        generator.start.weight.mul_(1e-12)
    found = explain(subject(critic=linear_judge(1), generator=generator), latents(4), "latent-counterfactual", steps=5)
    assert found.scores["flip_rate"].value == 0
    assert found.not_better_than_random


def test_real_images_say_how_far_each_counterfactual_is_from_its_class():
    pair, generator = subject(classes=3), torch.Generator().manual_seed(2)
    real = torch.randn(40, 1, SIDE, SIDE, generator=generator)
    found = explain(pair, {"z": latents(6), "real": real}, "latent-counterfactual")
    verdicts = pair.classifier(real).argmax(dim=1)
    expected = []
    for image, to in zip(found.values["counterfactual"], found.values["to"], strict=True):
        expected.append(float((real[verdicts == to] - image).flatten(1).norm(dim=1).min()))
    both = found.values["flipped"].numpy() if found.meta["pixel_flip_rate"] == 1 else slice(None)
    value = found.scores["distance_to_real_of_class"].value
    assert value == pytest.approx(float(torch.tensor(expected)[both].mean()), rel=1e-5)


def test_what_counterfactuals_cannot_use_is_refused():
    with pytest.raises(ExplainTargetError, match="have a classifier or a critic"):
        explain(subject(), latents(2), "latent-counterfactual")
    with pytest.raises(ExplainTargetError, match="have a classifier"):
        explain(subject(critic=linear_judge(1)), latents(2), "latent-counterfactual", judge="classifier")
    with pytest.raises(ExplainInputError, match="10 numbers"):
        explain(subject(classes=2), latents(2, 9), "latent-counterfactual")
    with pytest.raises(ExplainTargetError, match="classes: 0 to 1"):
        explain(subject(classes=2), latents(2), "latent-counterfactual", to=7)
