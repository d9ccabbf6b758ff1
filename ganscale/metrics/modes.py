"""Which modes of a known mixture of Gaussians does a generator hit, and how sharply.

N samples, M modes, D dimensions of a point. Within 3 sigma even a perfect sampler of the plane scores only 98.9 %, so a
bound of 99 % there would reward a shrunken generator; quality is therefore counted within 4 sigma (perfect: 99.97 %)
and the 3 sigma value stands beside its own ceiling. No sample is rejected.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ganscale.errors import UserError
from ganscale.metrics.frechet import checked_features

RADIUS_SIGMAS = 4.0
FAIR_SHARE = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class GaussianGridReport:
    """How N samples fall on M known Gaussians; build it with ``gaussian_grid_report``."""

    samples: int
    modes: int  # modes there are
    modes_hit: int  # modes that hold at least a tenth of their fair share within 4 sigma
    high_quality: float  # share of samples within 4 sigma of a mode
    high_quality_ceiling: float  # what a perfect sampler scores there
    within_3_sigma: float
    within_3_sigma_ceiling: float
    share_M: tuple[float, ...]  # share of all samples within 4 sigma of each mode
    spread_M: tuple[float, ...]  # standard deviation of those samples over sigma; NaN below two samples
    offset_M: tuple[float, ...]  # distance of their mean from the mode, in sigmas; NaN without samples

    @property
    def spread(self) -> float:
        """Mean spread ratio of the modes hit (1 is perfect); NaN where none is hit."""
        hit = self.spread_of_hit_modes
        return sum(hit) / len(hit) if hit else float("nan")

    @property
    def worst_spread(self) -> float:
        """The spread ratio of the hit mode that is farthest from 1; NaN where none is hit."""
        return max(self.spread_of_hit_modes, key=lambda ratio: abs(ratio - 1), default=float("nan"))

    @property
    def spread_of_hit_modes(self) -> tuple[float, ...]:
        """Spread ratios of the modes hit by two samples or more."""
        enough = FAIR_SHARE / self.modes
        return tuple(s for s, share in zip(self.spread_M, self.share_M, strict=True) if share >= enough and s == s)

    def __str__(self) -> str:
        return (
            f"{self.modes_hit}/{self.modes} modes, {self.high_quality:.2%} within 4 sigma "
            f"(ceiling {self.high_quality_ceiling:.2%}), {self.within_3_sigma:.2%} within 3 sigma "
            f"(ceiling {self.within_3_sigma_ceiling:.2%}), spread {self.spread:.3f} x sigma "
            f"(worst {self.worst_spread:.3f}), n={self.samples}"
        )


def gaussian_grid_report(points: Tensor, centers: Tensor, sigma: float) -> GaussianGridReport:
    """Measure samples against a mixture of equal isotropic Gaussians.

    ``points`` ``[N, D]`` (or ``[N, D, 1, 1]``), ``centers`` ``[M, D]`` and ``sigma`` in one unit. A sample belongs to
    its nearest centre. A mode is hit when at least a tenth of its fair share N / M lies within 4 sigma of it; its
    spread is the root mean square deviation per axis of those samples from their own mean, over sigma (cutting at
    4 sigma takes 0.1 % off). Raises ``UserError`` for shapes that do not fit, sigma <= 0 or non-finite points.
    """
    points_ND, centers_MD = checked_features(points.flatten(1)), checked_features(centers)
    if points_ND.shape[1] != centers_MD.shape[1]:
        got = f"{points_ND.shape[1]} and {centers_MD.shape[1]}"
        raise UserError("points and centers", "have one number of axes", got, "pass [N, D] points and [M, D] centers")
    if not sigma > 0:
        raise UserError("sigma", "be above 0", sigma, "pass the standard deviation of a mode")
    distance_N, mode_N = torch.cdist(points_ND, centers_MD, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    sigmas_N = distance_N / sigma
    near_N = sigmas_N <= RADIUS_SIGMAS
    n, modes, axes = len(points_ND), len(centers_MD), points_ND.shape[1]
    count_M = torch.bincount(mode_N[near_N], minlength=modes)
    spread_M, offset_M = zip(
        *(_spread_and_offset(points_ND[near_N & (mode_N == m)], centers_MD[m], sigma) for m in range(modes)),
        strict=True,
    )
    return GaussianGridReport(
        samples=n,
        modes=modes,
        modes_hit=int((count_M >= FAIR_SHARE * n / modes).sum()),
        high_quality=float(near_N.double().mean()),
        high_quality_ceiling=_share_within(RADIUS_SIGMAS, axes),
        within_3_sigma=float((sigmas_N <= 3).double().mean()),
        within_3_sigma_ceiling=_share_within(3.0, axes),
        share_M=tuple((count_M.double() / n).tolist()),
        spread_M=spread_M,
        offset_M=offset_M,
    )


def _share_within(sigmas: float, axes: int) -> float:
    """Return how much of a Gaussian of so many axes lies within ``sigmas`` of its centre: chi-square's distribution."""
    return float(torch.special.gammainc(torch.tensor(axes / 2).double(), torch.tensor(sigmas**2 / 2).double()))


def _spread_and_offset(points_nD: Tensor, center_D: Tensor, sigma: float) -> tuple[float, float]:
    if len(points_nD) == 0:
        return float("nan"), float("nan")
    mean_D = points_nD.mean(0)
    offset = float((mean_D - center_D).norm()) / sigma
    if len(points_nD) < 2:
        return float("nan"), offset
    variance = float((points_nD - mean_D).square().sum()) / ((len(points_nD) - 1) * points_nD.shape[1])
    return variance**0.5 / sigma, offset
