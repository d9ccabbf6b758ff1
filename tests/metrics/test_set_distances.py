"""Laws of kernel distance and of precision / recall / density / coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from ganscale.errors import UserError
from ganscale.metrics import kernel_distance, prdc


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
