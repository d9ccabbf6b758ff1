"""The report on 25 Gaussians: perfect, shrunken, incomplete and wild samplers."""

from __future__ import annotations

import math

import pytest
import torch

from ganscale.errors import UserError
from ganscale.metrics import gaussian_grid_report

SIGMA = 0.05
CENTERS = torch.cartesian_prod(torch.arange(-4.0, 5.0, 2), torch.arange(-4.0, 5.0, 2))
N = 10_000


def draw(*, modes: torch.Tensor | None = None, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    modes = torch.randint(25, (N,), generator=generator) if modes is None else modes
    return CENTERS[modes] + scale * SIGMA * torch.randn(len(modes), 2, generator=generator)


@pytest.mark.parametrize("seed", range(3))
def test_a_perfect_sampler_hits_all_modes_at_the_ceilings_with_spread_one(seed: int):
    report = gaussian_grid_report(draw(seed=seed), CENTERS, SIGMA)
    assert (report.modes, report.modes_hit, report.samples) == (25, 25, N)
    assert report.high_quality_ceiling == pytest.approx(1 - math.exp(-8), abs=1e-12)
    assert report.within_3_sigma_ceiling == pytest.approx(1 - math.exp(-4.5), abs=1e-12)
    # Four standard errors of a share of N samples.
    assert report.high_quality == pytest.approx(0.99966, abs=8e-4)
    assert report.within_3_sigma == pytest.approx(0.98889, abs=4.2e-3)
    assert report.spread == pytest.approx(1, abs=0.02)
    assert abs(report.worst_spread - 1) < 0.1  # 400 samples a mode: 2.5 % standard error, the worst of 25
    assert max(report.offset_M) < 0.3


def test_a_shrunken_sampler_beats_the_3_sigma_ceiling_but_its_spread_tells():
    report = gaussian_grid_report(draw(scale=0.5), CENTERS, SIGMA)
    assert report.within_3_sigma > report.within_3_sigma_ceiling
    assert report.high_quality == 1
    assert report.spread == pytest.approx(0.5, abs=0.02)


def test_a_widened_sampler_loses_quality():
    report = gaussian_grid_report(draw(scale=3), CENTERS, SIGMA)
    # Within 4 sigma of a Gaussian three times as wide: 1 - exp(-(4/3)^2 / 2); four standard errors of the share.
    assert report.high_quality == pytest.approx(1 - math.exp(-8 / 9), abs=0.02)


def test_missing_modes_are_missing_and_have_no_spread():
    report = gaussian_grid_report(draw(modes=torch.arange(N) % 20), CENTERS, SIGMA)
    assert report.modes_hit == 20
    assert report.share_M[20:] == (0,) * 5
    assert all(math.isnan(spread) for spread in report.spread_M[20:])
    assert report.spread == pytest.approx(1, abs=0.02)


def test_a_mode_counts_from_a_tenth_of_its_fair_share():
    rest = torch.arange(N) % 24
    for rare, modes_hit in ((39, 24), (40, 25)):  # the fair share is 400
        modes = torch.cat([torch.full((rare,), 24), rest[: N - rare]])
        assert gaussian_grid_report(CENTERS[modes], CENTERS, SIGMA).modes_hit == modes_hit


def test_collapse_and_noise_score_what_they_are():
    collapsed = gaussian_grid_report(torch.zeros(N, 2), CENTERS, SIGMA)
    assert (collapsed.modes_hit, collapsed.high_quality, collapsed.spread) == (1, 1, 0)
    noise = torch.rand(N, 2, generator=torch.Generator().manual_seed(0)) * 10 - 5
    # 25 discs of radius 4 sigma over 100 square units; four standard errors.
    expected = 25 * math.pi * 0.2**2 / 100
    assert gaussian_grid_report(noise, CENTERS, SIGMA).high_quality == pytest.approx(expected, abs=0.008)
    lost = gaussian_grid_report(torch.full((100, 2), 50.0), CENTERS, SIGMA)
    assert lost.modes_hit == 0
    assert math.isnan(lost.spread)


def test_report_is_blind_to_unit_and_to_the_shape_of_a_point():
    points = draw()
    expected = gaussian_grid_report(points.double(), CENTERS.double(), SIGMA)
    scaled = gaussian_grid_report((points.double() / 4)[:, :, None, None], CENTERS.double() / 4, SIGMA / 4)
    assert (scaled.modes_hit, scaled.share_M) == (expected.modes_hit, expected.share_M)
    assert scaled.spread_M == pytest.approx(expected.spread_M, rel=1e-9)
    assert "25/25 modes" in str(scaled)


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="one number of axes, got 3 and 2"):
        gaussian_grid_report(torch.zeros(5, 3), CENTERS, SIGMA)
    with pytest.raises(UserError, match="sigma must be above 0"):
        gaussian_grid_report(torch.zeros(5, 2), CENTERS, 0)
    with pytest.raises(UserError, match="finite"):
        gaussian_grid_report(torch.full((5, 2), math.nan), CENTERS, SIGMA)
