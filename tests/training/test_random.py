"""Laws of the keyed draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ganscale.training.random import Draws

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_a_slot_draws_the_same_numbers_whoever_draws_it(size: int):
    draws = Draws(7, CPU)
    whole = draws.normal("critic/z", 1000, 12, size)
    parts = [draws.normal("critic/z", 1000 + first, count, size) for first, count in [(0, 5), (5, 1), (6, 6)]]
    assert torch.equal(whole, torch.cat(parts))


def test_seed_purpose_and_slot_each_change_the_draw():
    base = Draws(0, CPU).normal("a", 0, 4, 8)
    assert not torch.equal(base, Draws(1, CPU).normal("a", 0, 4, 8))
    assert not torch.equal(base, Draws(0, CPU).normal("b", 0, 4, 8))
    assert not torch.equal(base, Draws(0, CPU).normal("a", 4, 4, 8))


def test_normals_have_the_moments_of_a_standard_normal():
    z = Draws(3, CPU).normal("z", 0, 20_000, 10).double()
    n = z.numel()
    assert abs(z.mean()) < 4 / n**0.5  # four standard errors
    assert abs(z.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 4 * (96 / n) ** 0.5
    correlation = np.corrcoef(z.T.numpy()) - np.eye(10)
    assert np.abs(correlation).max() < 5 / 20_000**0.5


def test_uniforms_fill_the_unit_interval():
    u = Draws(3, CPU).uniform("eps", 0, 50_000).double()
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 4 * (1 / 12 / 50_000) ** 0.5
