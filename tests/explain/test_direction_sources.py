"""Directions from activations, boundaries and gradients, each against the answer that is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import toys
from torch import nn

from ganscale.explain import Classifier, Explanation, Subject, build_explainer, explain, make_request
from ganscale.explain.errors import ExplainTargetError, LayerError
from ganscale.explain.latent.direction_sources import fit_boundary, project_out
from ganscale.explain.latent.directions import Directions

LATENT, SIDE = 10, 6


def latents(count: int, latent: int = LATENT) -> torch.Tensor:
    return torch.randn(count, latent, generator=torch.Generator().manual_seed(5))


def planted(latent: int, *, seed: int = 3) -> torch.Tensor:
    direction = torch.randn(latent, generator=torch.Generator().manual_seed(seed))
    return direction / direction.norm()


class Slope(nn.Module):
    """A critic that is linear in z through a generator that shows z itself."""

    def __init__(self, direction: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("direction", direction)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, : len(self.direction)] @ self.direction


class ShowsItself(nn.Module):
    """z [n, D] as an image [n, 1, D, 1]."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z[:, None, :, None]


def slope_subject(latent: int, direction: torch.Tensor) -> Subject:
    critic = Slope(direction)
    return Subject(
        name="slope", fn=critic, module=critic, generator=ShowsItself(latent), critic=critic, value_range=None
    )


def activations() -> tuple[Explanation, np.ndarray, np.ndarray]:
    """Return directions by a layer's activations, and all latents [n, D] and activations [n, F] that were drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = nn.Sequential(nn.Linear(LATENT, 12), nn.Tanh(), nn.Linear(12, 9), nn.Unflatten(1, (1, 3, 3)))
    subject = Subject(name="g", fn=lambda x: x.flatten(1).sum(1), generator=generator, value_range=None)
    options = {"by": "pca", "layer": "0", "num_draws": 1000, "num_directions": 6}
    explainer = build_explainer(subject, make_request(Directions, latents(3), seed=1, options=options))
    chunks = explainer.plan()
    assert [chunk.work["rows"] for chunk in chunks] == [256, 256, 256, 232]
    z = np.concatenate([explainer._source.latents(chunk) for chunk in chunks])
    features = z.astype(np.float32) @ generator[0].weight.detach().numpy().T + generator[0].bias.detach().numpy()
    return explain(subject, latents(3), "directions", seed=1, **options), z, features.astype(np.float64)


def test_components_are_those_of_scikit_learn():
    found, _, features = activations()
    pca = toys.peer("sklearn.decomposition").PCA(n_components=6, svd_solver="full").fit(features)
    cosines = np.abs((found.values["components"].numpy() * pca.components_).sum(axis=1))
    assert cosines.min() >= 1 - 1e-7
    variance = pca.explained_variance_ * (1 - 1 / len(features))  # theirs is divided by n - 1
    np.testing.assert_allclose(found.values["eigenvalues"].numpy(), variance, rtol=1e-6)


def test_components_from_merged_moments_are_those_of_a_full_decomposition():
    found, z, features = activations()
    centred = features - features.mean(axis=0)
    _, singular, components = np.linalg.svd(centred, full_matrices=False)
    cosines = np.abs((found.values["components"].numpy() * components[:6]).sum(axis=1))
    assert cosines.min() >= 1 - 1e-7
    np.testing.assert_allclose(found.values["eigenvalues"].numpy(), singular[:6] ** 2 / len(z), rtol=1e-6)
    pulled = (z - z.mean(axis=0)).T @ centred @ components[:6].T
    pulled /= np.linalg.norm(pulled, axis=0)
    assert np.abs((found.values["directions"].numpy() * pulled.T).sum(axis=1)).min() >= 1 - 1e-7


def test_a_planted_boundary_is_found_from_200_draws_at_either_end_of_10_000():
    direction = planted(64)
    options = {"by": "boundary", "num_draws": 10_000, "extremes": 200}
    found = explain(slope_subject(64, direction), latents(3, 64), "directions", **options)
    vector = found.values["directions"][0]
    assert float(vector @ direction.double()) >= 0.98
    assert float(vector.norm()) == pytest.approx(1, abs=1e-12)
    assert found.scores["assessed_slope_per_sigma"].value >= 0.98
    assert not found.not_better_than_random


def test_a_projected_direction_has_length_one_and_changes_no_condition():
    rng = np.random.default_rng(0)
    for conditions in (1, 3, 7):
        others, direction = rng.standard_normal((conditions, 12)), rng.standard_normal(12)
        found = project_out(direction, others)
        assert np.linalg.norm(found) == pytest.approx(1, abs=1e-12)
        assert np.abs(others @ found).max() <= 1e-6
        assert found @ direction > 0
    others = np.array([[1.0, 0, 0], [1.0, 1e-3, 0]])  # nearly the same condition twice
    assert np.abs(others @ project_out(np.array([1.0, 2.0, 3.0]), others)).max() <= 1e-6
    assert not project_out(others[0], others).any(), "nothing is left of a condition itself"


def test_disentangled_directions_of_classes_are_orthogonal_to_one_another():
    judge = nn.Sequential(nn.Flatten(), nn.Linear(LATENT, 4))
    classifier = Classifier(judge, name="judge", example=torch.zeros(2, 1, LATENT, 1))
    subject = Subject(name="pair", fn=judge, generator=ShowsItself(LATENT), classifier=classifier, value_range=None)
    options = {"by": "boundary", "assess": "classes", "num_draws": 512, "extremes": 100}
    plain = explain(subject, latents(2), "directions", **options).values["directions"]
    apart = explain(subject, latents(2), "directions", disentangle=True, **options).values["directions"]
    assert plain.shape == (4, LATENT)
    assert ((apart @ plain.T).abs() - (apart @ plain.T).abs().diagonal().diag()).max() <= 1e-6


@pytest.mark.parametrize("by", ["boundary", "score"])
def test_every_class_has_a_direction_and_one_that_has_none_is_named(by):
    judge = nn.Sequential(nn.Flatten(), nn.Linear(LATENT, LATENT))
    names = tuple("abcdefghij")
    classifier = Classifier(judge, name="judge", example=torch.zeros(2, 1, LATENT, 1), labels=names)
    subject = Subject(name="pair", fn=judge, generator=ShowsItself(LATENT), classifier=classifier, value_range=None)
    options = {"by": by, "assess": "classes", "num_draws": 64, "extremes": 8}
    every = explain(subject, latents(2), "directions", **options)
    assert every.meta["class_names"] == [*names]
    assert every.meta["warnings"] == []
    eight = explain(subject, latents(2), "directions", num_directions=8, **options)
    assert torch.equal(eight.values["directions"], every.values["directions"][:8])
    assert eight.meta["warnings"] == ["8 directions for 10 classes: none of i, j"]


@pytest.mark.parametrize(("classes", "expected"), [(32, 32), (33, 8)])
def test_each_of_up_to_32_classes_has_a_direction_and_beyond_them_the_warning_counts_the_rest(classes, expected):
    judge = nn.Sequential(nn.Flatten(), nn.Linear(40, classes))
    classifier = Classifier(judge, name="judge", example=torch.zeros(2, 1, 40, 1))
    subject = Subject(name="pair", fn=judge, generator=ShowsItself(40), classifier=classifier, value_range=None)
    inputs = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    found = explain(subject, inputs, "directions", by="score", assess="classes", num_draws=16)
    assert len(found.values["directions"]) == expected
    warnings = found.meta["warnings"]
    assert len(warnings) == (classes > expected)
    if warnings:
        assert warnings[0].startswith(f"8 directions for {classes} classes: none of ")
        assert warnings[0].endswith(" and 13 more")  # 12 of the 25 are named


def test_the_boundary_of_two_clouds_lies_between_them():
    rng = np.random.default_rng(1)
    clouds = rng.standard_normal((600, 3))
    clouds[:, 0] += np.repeat([-2.0, 4.0], 300)
    normal, offset = fit_boundary(clouds, np.repeat([0.0, 1.0], 300))
    assert normal[0] / np.linalg.norm(normal) > 0.99
    assert -offset / normal[0] == pytest.approx(1.0, abs=0.15)  # half-way between -2 and 4


@pytest.mark.parametrize("bent", [False, True])
def test_the_direction_that_raises_an_assessor_is_its_gradient(bent):
    direction = planted(LATENT)
    subject = slope_subject(LATENT, direction)
    if bent:
        straight = subject.critic
        subject = replace(subject, critic=lambda x: torch.sinh(straight(x) / 2))
    found = explain(subject, latents(3), "directions", by="score", num_draws=512).values
    assert float(found["directions"][0] @ direction.double()) >= 1 - 1e-6
    if not bent:
        assert float(found["eigenvalues"][0]) == pytest.approx(1, abs=1e-6)


def test_an_assessor_that_ignores_the_latent_is_not_better_than_random():
    direction = planted(LATENT) * 0
    assert explain(slope_subject(LATENT, direction), latents(2), "directions", by="score").not_better_than_random


def test_what_sources_cannot_use_is_refused():
    generator = toys.LinearGenerator(LATENT, 30)
    with pytest.raises(ExplainTargetError, match="have an assessor"):
        explain(generator, latents(2), "directions", by="boundary")
    with pytest.raises(ExplainTargetError, match="have a classifier for assess=classes"):
        explain(generator, latents(2), "directions", by="score", assess="classes")
    with pytest.raises(LayerError, match="at most 512 features"):
        explain(generator, latents(2), "directions", by="pca", num_draws=64)
