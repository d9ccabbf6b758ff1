"""Laws of kernel distance, energy distance, precision / recall / density / coverage, diversity."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from ganscale.errors import UserError
from ganscale.metrics import (
    class_histogram,
    energy_distance,
    histogram_kl,
    kernel_distance,
    nearest_distances,
    neighbour_distance_ratio,
    own_nearest_distances,
    prdc,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kernel_distance_over_whole_sets_is_the_unbiased_estimator_written_as_loops():
    x, y = normal(7, 3, seed=1), normal(7, 3, seed=2) + 0.5

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    within = sum(kernel(s[i], s[j]) for s in (x, y) for i, j in itertools.permutations(range(7), 2)) / 42
    expected = within - 2 * sum(kernel(a, b) for a in x for b in y) / 49
    value, spread = kernel_distance(x, y, subsets=3, subset_size=7)
    assert value == pytest.approx(expected, rel=1e-10)
    assert spread == pytest.approx(0, abs=1e-10)  # three orders of the same rows


def test_kernel_distance_is_unbiased_on_one_distribution_at_small_n():
    values = [kernel_distance(normal(100, 16, seed=2 * s), normal(100, 16, seed=2 * s + 1)).value for s in range(60)]
    standard_error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values)) <= 3 * standard_error  # seeds are fixed, so this cannot flicker
    assert min(values) < 0 < max(values)


def test_kernel_distance_stands_clear_of_its_spread_on_another_distribution_and_keeps_to_its_seed():
    real, fake = normal(1000, 16, seed=1), 1.3 * normal(1000, 16, seed=2)
    value, spread = kernel_distance(real, fake, seed=4)
    assert value > 5 * spread > 0
    assert kernel_distance(real, fake, seed=4) == (value, spread)
    assert kernel_distance(real, fake, seed=5).value != value


def test_kernel_distance_refuses_subsets_that_do_not_fit():
    x = normal(50, 4)
    with pytest.raises(UserError, match="between 2 and the 50 samples"):
        kernel_distance(x, x, subset_size=51)
    with pytest.raises(UserError, match="at least 4 samples"):
        kernel_distance(x[:3], x)
    with pytest.raises(UserError, match="subsets must be at least 1"):
        kernel_distance(x, x, subsets=0)


def test_energy_distance_of_two_far_points_clouds_is_twice_their_gap_less_their_widths():
    x = torch.tensor([[0.0], [1.0]])
    y = torch.tensor([[10.0], [13.0]])
    # E|x-y| = 11, E|x-x'| = 1, E|y-y'| = 3
    assert energy_distance(x, y) == pytest.approx(18, abs=1e-12)
    same = energy_distance(normal(800, 2, seed=1), normal(800, 2, seed=2))
    other = energy_distance(normal(800, 2, seed=1), normal(800, 2, seed=2) + 0.5)
    assert abs(same) < 0.01 < other


def prdc_by_definition(real: np.ndarray, fake: np.ndarray, k: int) -> dict[str, float]:
    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))

    radius_real = np.sort(distances(real, real), axis=1)[:, k]  # column 0 is the point itself
    radius_fake = np.sort(distances(fake, fake), axis=1)[:, k]
    cross = distances(real, fake)
    return {
        "precision": (cross <= radius_real[:, None]).any(0).mean(),
        "recall": (cross <= radius_fake[None]).any(1).mean(),
        "density": (cross <= radius_real[:, None]).sum(0).mean() / k,
        "coverage": (cross.min(1) <= radius_real).mean(),
    }


@pytest.mark.parametrize("chunk", [7, 64, 1000])
def test_prdc_equals_its_definition_for_any_chunk(chunk: int):
    real, fake = normal(90, 5, seed=1), 0.7 * normal(110, 5, seed=2) + 0.4
    assert prdc(real, fake, k=3, chunk=chunk) == pytest.approx(prdc_by_definition(real.numpy(), fake.numpy(), 3))


def test_prdc_tells_lack_of_quality_from_lack_of_variety():
    real, good = normal(500, 8, seed=1), normal(500, 8, seed=2)
    narrow, wild = 0.3 * good, 3 * good
    fair, no_variety, no_quality = prdc(real, good), prdc(real, narrow), prdc(real, wild)
    assert no_variety["precision"] >= fair["precision"]
    assert no_variety["recall"] < 0.2 * fair["recall"]
    assert no_quality["precision"] < 0.2 * fair["precision"]
    assert no_quality["coverage"] < 0.5 * fair["coverage"]


def test_prdc_of_a_set_with_itself_is_perfect_even_where_it_holds_copies():
    x = normal(30, 4).repeat(4, 1)
    scores = prdc(x, x, k=3)
    assert {scores[name] for name in ("precision", "recall", "coverage")} == {1.0}


def test_prdc_refuses_more_neighbours_than_there_are():
    with pytest.raises(UserError, match="between 1 and 4, got 5"):
        prdc(normal(5, 2), normal(9, 2))


def test_nearest_distances_find_copies_exactly_and_the_right_neighbour():
    training = normal(300, 32) + 100  # far from zero, where dot products would lose the copy
    queries = torch.cat([training[[17, 4]], training[[9]] + 1e-3])
    distance, index = nearest_distances(queries, training, chunk=2)
    assert index.tolist() == [17, 4, 9]
    assert distance.tolist() == pytest.approx([0, 0, 1e-3 * math.sqrt(32)], abs=1e-9)


def test_own_nearest_distance_is_zero_exactly_for_copies():
    x = normal(20, 3)
    assert (own_nearest_distances(x) > 0).all()
    assert own_nearest_distances(torch.cat([x, x[:1]]), chunk=6).eq(0).nonzero().flatten().tolist() == [0, 20]


def test_neighbour_ratio_is_one_for_equal_variety_and_falls_with_repetition():
    real, fake = normal(400, 6, seed=1), normal(400, 6, seed=2)
    assert neighbour_distance_ratio(fake, real) == pytest.approx(1, abs=0.1)
    assert neighbour_distance_ratio(0.2 * fake, real) == pytest.approx(0.2, abs=0.05)
    assert neighbour_distance_ratio(fake[:40].repeat(10, 1), real) == 0
    with pytest.raises(UserError, match="equally many"):
        neighbour_distance_ratio(fake[:10], real)


def test_class_histogram_counts_winners_and_its_kl_has_the_closed_form():
    logits = torch.eye(10)[torch.arange(50) % 4] * 3
    counts = class_histogram(logits)
    assert counts.tolist() == [13, 13, 12, 12, 0, 0, 0, 0, 0, 0]
    assert histogram_kl(torch.tensor([5, 5, 5, 5, 0, 0, 0, 0, 0, 0])) == pytest.approx(math.log(2.5), abs=1e-12)
    assert histogram_kl(torch.tensor([3, 1]), torch.tensor([300, 100])) == 0
    assert histogram_kl(torch.tensor([3, 1]), torch.tensor([4, 0])) == math.inf


def test_kl_of_a_perfect_sampler_has_the_floor_that_is_documented():
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randint(100, (2000,), generator=generator).bincount(minlength=100) for _ in range(100)]
    mean = float(np.mean([histogram_kl(counts) for counts in draws]))
    assert mean == pytest.approx(99 / 4000, rel=0.05)  # 100 draws of a chi-square of 99 degrees: 1.4 % standard error


def test_bad_histograms_are_refused():
    with pytest.raises(UserError, match="at least 2 classes"):
        class_histogram(torch.zeros(3, 1))
    with pytest.raises(UserError, match="positive sum"):
        histogram_kl(torch.zeros(4))
    with pytest.raises(UserError, match="one length"):
        histogram_kl(torch.ones(4), torch.ones(5))
