"""Where there is nothing to find, a score beats its control about as rarely as its margin of 95 % says."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
import toys
from torch import nn

from ganscale.explain import Classifier, Explanation, Subject, explain
from ganscale.explain.likeness.membership import told_apart
from ganscale.explain.likeness.retrieval import shared
from ganscale.explain.scores import against_control, against_random
from ganscale.explain.types import Score


def rate(seeds: int, score: Callable[[np.random.Generator], Score]) -> float:
    return sum(score(np.random.default_rng(seed)).beats_control for seed in range(seeds)) / seeds


@pytest.mark.parametrize("pairs", [2, 4, 8, 30])
def test_few_pairs_of_one_kind_are_told_apart_as_seldom_as_many(pairs: int):
    def of_one_kind(rng: np.random.Generator) -> Score:
        return against_control(rng.standard_normal(pairs), rng.standard_normal(pairs), better="higher")

    assert rate(4000, of_one_kind) == pytest.approx(0.025, abs=0.0075)  # three standard errors of 4,000 tries


@pytest.mark.parametrize("controls", [3, 5, 20])
def test_a_value_like_its_controls_is_seldom_told_from_them(controls: int):
    def of_one_kind(rng: np.random.Generator) -> Score:
        return against_random(rng.standard_normal(1), rng.standard_normal((1, controls)), better="higher")

    assert rate(4000, of_one_kind) == pytest.approx(0.025, abs=0.0075)  # three standard errors of 4,000 tries


@pytest.mark.parametrize("images", [500, 64])
def test_members_and_others_of_one_kind_are_seldom_told_apart(images: int):
    def score_of(name: str) -> Callable[[np.random.Generator], Score]:
        return lambda rng: told_apart("x", *rng.standard_normal((2, images)))[f"x_{name}"]

    assert rate(1500, score_of("auc")) == pytest.approx(0.025, abs=0.0125)  # three standard errors of 1,500 tries
    # a share of one in a hundred is no normal number: of 64 images, one too many is a finding
    assert rate(1500, score_of("caught_at_1_percent")) <= 0.06


@pytest.mark.parametrize(("queries", "k", "gallery"), [(8, 5, 2000), (8, 2, 60), (64, 5, 500), (1, 30, 40)])
def test_random_neighbours_seldom_share_more_than_chance_and_equal_ones_do(queries: int, k: int, gallery: int):
    def neighbours(rng: np.random.Generator) -> list[np.ndarray]:
        return [rng.permutation(gallery)[:k] for _ in range(queries)]

    def of_random(rng: np.random.Generator) -> Score:
        return shared(neighbours(rng), neighbours(rng), [gallery] * queries)

    assert rate(500, of_random) <= 0.045  # .025 and three standard errors of 500 tries
    same = neighbours(np.random.default_rng(0))
    found = shared(same, same, [gallery] * queries)
    assert (found.value, found.control) == (1, pytest.approx(k / gallery))
    assert found.beats_control


def test_the_chance_of_what_is_shared_is_that_of_counting():
    """Two neighbours of each of two queries, of four others and of five: both are shared in 1 of 6 and 1 of 10."""
    ours = [np.array([0, 1]), np.array([0, 1])]
    found = shared(ours, ours, [4, 5])
    assert found.control == pytest.approx((2 * 2 / 4 + 2 * 2 / 5) / 4)
    assert found.low == pytest.approx(found.control + 0.5 / 4), "all four in 1 of 60 cases; three or more in 11 of 60"


class Noise(nn.Module):
    """A classifier whose features have nothing to do with what is alike in an image, but are those of its copy."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.register_buffer("mix", torch.randn(pixels, 8, generator=torch.Generator().manual_seed(0)))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(300 * x.flatten(1) @ self.mix)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x)


def beaten(explanations: Iterable[Explanation], score: str) -> int:
    return sum(found.scores[score].beats_control for found in explanations)


def test_one_query_that_stands_in_the_gallery_is_no_reason_to_call_random_features_good():
    classifier = Classifier(Noise(36), name="noise", example=torch.zeros(2, 1, 6, 6))
    subject = Subject(name="noise", fn=classifier, classifier=classifier, value_range=None)

    def one_copy(seed: int) -> Explanation:
        images = torch.rand(407, 1, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        gallery, new = images[:400], images[400:]
        inputs = {"x": torch.cat([gallery[7:8], new]), "real": gallery}
        inputs |= {"labels": torch.arange(8) % 4, "real_labels": torch.arange(400) % 4}
        return explain(subject, inputs, "retrieval", of="classifier", k=2, seed=seed)

    every = [one_copy(seed) for seed in range(40)]
    assert all(found.meta["copies"] == 1 for found in every)
    assert all(int(found.values["features_neighbours"][0, 0]) == 7 for found in every)
    for name in ("shared_with_pixels", "same_class"):  # of 40, one is expected and 5 come in 1 of 300
        assert beaten(every, name) <= 4, name


def test_axes_that_are_as_good_as_any_direction_seldom_beat_the_best_of_as_many():
    def any_axes(seed: int) -> Explanation:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            generator = toys.LinearGenerator(12, 6, seed=seed)
            critic = nn.Sequential(nn.Flatten(), nn.Linear(36, 1), nn.Flatten(0))
            z = torch.randn(6, 12)
        return explain(
            Subject(name="any", fn=critic, generator=generator, critic=critic, value_range=None), z, "attfind"
        )

    every = [any_axes(seed) for seed in range(60)]
    for name in ("best_effect", "concentration_gini"):  # of 60, two are expected and 7 come in 1 of 1,000
        assert beaten(every, name) <= 6, name


def test_layers_that_have_nothing_in_common_are_seldom_called_alike():
    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(196, 3, generator=torch.Generator().manual_seed(1)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(300 * x.flatten(1) @ self.weight)

    generator, critic = toys.ConvGenerator(6, 14), nn.Sequential(Blind(), nn.Linear(3, 1), nn.Flatten(0))
    pair = Subject(name="blind", fn=critic, generator=generator, critic=critic, value_range=None)
    draws = [torch.randn(12, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(60)]
    every = [explain(pair, z, "conv-interaction", seed=seed) for seed, z in enumerate(draws)]
    assert beaten(every, "best_alignment") <= 6  # of 60, two are expected and 7 come in 1 of 1,000
