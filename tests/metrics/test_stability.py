"""Detectors of unstable training against games, mixtures and chains whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ganscale.errors import UserError
from ganscale.metrics.stability import find_oscillation, gradient_ratio, mode_divergence

SEEDS = 200


def bilinear_game(rate, steps):
    """Return x of min over x, max over y of x * y, both updated at once by gradient steps."""
    x, y, seen = 1.0, 1.0, []
    for _ in range(steps):
        x, y = x - rate * y, y + rate * x
        seen.append(x)
    return np.array(seen)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
def test_the_bilinear_game_turns_and_grows_as_its_update_says(rate):
    found = find_oscillation(bilinear_game(rate, 1000))
    assert found.period == pytest.approx(2 * math.pi / math.atan(rate), rel=0.02)
    assert found.growth == pytest.approx(math.sqrt(1 + rate**2), abs=1e-3)


def test_a_cycle_is_found_in_as_much_noise_and_on_a_trend():
    rng, time = np.random.default_rng(0), np.arange(512)
    found = find_oscillation(np.sin(2 * math.pi * time / 20) + rng.normal(size=512) + 0.05 * time)
    assert found.period == pytest.approx(20, rel=0.02)
    assert found.growth == pytest.approx(1, abs=1e-3)
    assert found.strength > found.threshold


@pytest.mark.parametrize("length", [64, 600])
@pytest.mark.parametrize("kind", ["white noise", "random walk", "both", "red noise", "trend"])
def test_what_has_no_cycle_raises_no_alarm(kind, length):
    alarms = 0
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        white, walk = rng.normal(size=length), np.cumsum(rng.normal(size=length))
        red = np.convolve(rng.normal(size=length), 0.9 ** np.arange(60), mode="full")[:length]
        trend = np.exp(-np.arange(length) / 50) + 0.01 * white
        kinds = {"white noise": white, "random walk": walk, "both": 5 * white + walk, "red noise": red, "trend": trend}
        alarms += find_oscillation(kinds[kind]) is not None
    assert alarms <= SEEDS // 100


def test_four_of_ten_modes_diverge_by_ln_two_and_a_half():
    drawn = np.random.default_rng(0).integers(0, 4, size=2000)
    assert mode_divergence(np.bincount(drawn, minlength=10)) == pytest.approx(math.log(2.5), abs=0.01)
    assert mode_divergence([7, 7, 7]) == pytest.approx(0, abs=1e-15)


def test_layers_that_halve_have_a_ratio_of_a_half():
    torch.manual_seed(0)
    layers = [0.5 * torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0] for _ in range(6)]
    x = torch.randn(4, 16, dtype=torch.float64, requires_grad=True)
    through = [x]
    for layer in layers:
        through.append(through[-1] @ layer)
    norms = [float(g.norm()) for g in torch.autograd.grad(through[-1].sum(), through)]
    assert gradient_ratio(norms) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "given"),
    [
        (find_oscillation, [1.0] * 63),
        (find_oscillation, [math.nan] * 100),
        (mode_divergence, [0, 0]),
        (mode_divergence, [-1, 2]),
        (gradient_ratio, [1.0]),
        (gradient_ratio, [1.0, 0.0]),
    ],
)
def test_what_says_nothing_is_refused(call, given):
    with pytest.raises(UserError):
        call(given)


def test_a_constant_series_has_no_cycle():
    assert find_oscillation(np.ones(100)) is None
