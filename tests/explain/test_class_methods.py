"""Classes through a generator of drawn figures whose classes are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from ganscale.dashboards.explanation_words import alt_of
from ganscale.data.shapes import KINDS, draw
from ganscale.explain import Classifier, Subject, explain
from ganscale.explain.errors import ExplainInputError, ExplainTargetError

SIDE, LATENT = 16, 6


def figures() -> torch.Tensor:
    """One figure of each kind in the middle, float [K, 1, H, W]."""
    factors = torch.zeros(len(KINDS), 6).double()
    factors[:, 0], factors[:, 3], factors[:, 5] = torch.arange(len(KINDS)), 0.5, 1.0
    return torch.from_numpy(draw(factors.numpy(), (1, SIDE, SIDE))).float() / 127.5 - 1


class DrawsKinds(nn.Module):
    """The first four latents decide which figure is seen, the others how bright it is."""

    latent = LATENT

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("figures", figures())

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        share = (4 * z[:, : len(KINDS)]).softmax(dim=1)
        drawn = torch.einsum("nk,kchw->nchw", share, (self.figures + 1) / 2)
        return drawn * (0.7 + 0.3 * torch.tanh(z[:, 4])[:, None, None, None]) * 2 - 1


class Matches(nn.Module):
    """The figure whose direction a picture has most of."""

    def __init__(self) -> None:
        super().__init__()
        flat = (figures().flatten(1) + 1) / 2
        self.register_buffer("templates", flat / flat.norm(dim=1, keepdim=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = (x.flatten(1) + 1) / 2
        return 30 * (flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-9)) @ self.templates.T


def subject() -> Subject:
    model = Matches()
    classifier = Classifier(model, name="matches", example=figures()[:2], labels=KINDS)
    return Subject(name="kinds", fn=model, generator=DrawsKinds(), classifier=classifier)


def latents(count: int) -> torch.Tensor:
    return torch.randn(count, LATENT, generator=torch.Generator().manual_seed(1))


def labelled() -> dict[str, torch.Tensor]:
    bright = torch.linspace(0.4, 1, 10)[:, None, None, None, None]
    real = ((figures() + 1) / 2 * bright).flatten(0, 1) * 2 - 1
    return {"real": real, "real_labels": torch.arange(len(KINDS)).repeat(10)}


def test_generation_for_a_class_hits_the_class_and_lands_among_its_real_images():
    found = explain(subject(), {"z": latents(4), **labelled()}, "class-generation", steps=30)
    assert found.values["hits"].min() >= 0.95
    assert found.values["class_probability"].min() >= 0.95
    assert found.scores["hit_rate"].control == pytest.approx(0.25, abs=0.15)  # four classes, eight draws for each
    assert found.scores["real_neighbours_of_class"].value >= 0.95
    assert not found.not_better_than_random
    norms = found.values["class_latents"].norm(dim=2)
    assert ((norms - LATENT**0.5).abs() < 1.5).all(), "where normal latents lie"


def test_a_search_that_hits_is_no_finding_unless_real_images_of_the_class_are_near():
    mixed = labelled() | {"real_labels": torch.arange(10 * len(KINDS)) // len(KINDS) % len(KINDS)}  # by brightness
    found = explain(subject(), {"z": latents(4), **mixed}, "class-generation", steps=30)
    assert found.scores["hit_rate"].beats_control
    assert found.not_better_than_random
    alone = explain(subject(), latents(4), "class-generation", steps=30)
    assert alone.scores["hit_rate"].beats_control
    assert (alone.verdict, alone.meta["primary"]) == ("no margin", [])
    assert "nothing decides" in alone.meta["warnings"][0]
    assert alt_of("classes", alone).endswith("nearest real images.")


def test_more_steps_make_a_classifier_no_less_sure():
    few, many = (
        explain(subject(), latents(2), "class-generation", steps=steps, draws=8).values["class_probability"][:, 0]
        for steps in (0, 20)
    )
    assert (many >= few).all()
    assert (many > few).any()


def test_a_classifier_that_is_right_has_its_matrix_on_the_diagonal():
    found = explain(subject(), {"z": latents(10), **labelled()}, "probe-classifier", draws=300)
    matrix = found.values["probe_matrix"].double()
    assert matrix.sum() == 300
    assert (matrix.diagonal() / matrix.sum(dim=1)).min() >= 0.95
    assert found.scores["agreement"].value >= 0.95
    assert found.scores["agreement"].control == pytest.approx(0.25, abs=0.05)


def test_a_classifier_with_two_names_swapped_is_found_out():
    pair = subject()

    class Swapped(Matches):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[:, [1, 0, 2, 3]]

    classifier = Classifier(Swapped(), name="swapped", example=figures()[:2], labels=KINDS)
    found = explain(
        replace(pair, classifier=classifier), {"z": latents(4), **labelled()}, "probe-classifier", draws=300
    )
    matrix = found.values["probe_matrix"].double()
    assert (matrix / matrix.sum(dim=1, keepdim=True))[[0, 1], [1, 0]].min() >= 0.9
    assert found.values["sure_and_wrong"] > 0.2


def test_ways_begin_and_end_at_their_verdicts():
    pair = subject()
    found = explain(pair, {"z": latents(12), **labelled()}, "probe-classifier", draws=64, points=7).values
    assert found["way_ends"].shape[0] >= 6
    assert (found["way_ends"][:, 0] != found["way_ends"][:, 1]).all()
    images = found["way_images"]
    with torch.no_grad():
        ends = pair.classifier(images[:, [0, -1]].flatten(0, 1)).argmax(dim=1).unflatten(0, (-1, 2))
    assert torch.equal(ends, found["way_ends"][: len(ends)])


def test_what_methods_of_classes_need_is_said():
    with pytest.raises(ExplainTargetError, match="have a classifier for class-generation"):
        explain(DrawsKinds(), latents(2), "class-generation")
    with pytest.raises(ExplainInputError, match="real images with labels"):
        explain(subject(), latents(2), "probe-classifier")
