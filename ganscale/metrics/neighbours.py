"""What nearest neighbours say: precision, recall, density and coverage.

N real samples, M fake samples, D features. Distances are Euclidean, computed by rows in float64 without the shortcut
through dot products, because that one makes exact copies look 1e-7 apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ganscale.errors import UserError
from ganscale.metrics.frechet import checked_features


def prdc(real: Tensor, fake: Tensor, *, k: int = 5, chunk: int = 1024) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020, eq. 5-6).

    ``real`` ``[N, D]`` and ``fake`` ``[M, D]``; a sample's ball reaches its k-th nearest neighbour in its own set.
    precision: share of fakes in some real ball; recall: share of reals in some fake ball; density: mean number of real
    balls around a fake, over k (may exceed 1); coverage: share of reals whose ball holds a fake. A point on the
    surface is inside. Memory is ``chunk`` rows of N or M. Raises ``UserError`` for k outside 1 .. min(N, M) - 1 or
    bad features.
    """
    real_ND, fake_MD = checked_features(real), checked_features(fake)
    _refuse_other_width(real_ND, fake_MD)
    smaller = min(len(real_ND), len(fake_MD))
    if not 1 <= k < smaller:
        raise UserError(
            "k of prdc", f"lie between 1 and {smaller - 1}", k, "measure more images or take fewer neighbours"
        )
    radius_real_N = _kth_distance(real_ND, k, chunk)
    radius_fake_M = _kth_distance(fake_MD, k, chunk)
    balls_around_fake_M = torch.zeros(len(fake_MD), dtype=torch.float64)
    recalled_N, covered_N = [], []
    for start in range(0, len(real_ND), chunk):
        distance_nM = _distances(real_ND[start : start + chunk], fake_MD)
        in_real_ball_nM = distance_nM <= radius_real_N[start : start + chunk, None]
        balls_around_fake_M += in_real_ball_nM.sum(0)
        covered_N.append(in_real_ball_nM.any(1))
        recalled_N.append((distance_nM <= radius_fake_M).any(1))
    return {
        "precision": float((balls_around_fake_M > 0).double().mean()),
        "recall": float(torch.cat(recalled_N).double().mean()),
        "density": float(balls_around_fake_M.mean() / k),
        "coverage": float(torch.cat(covered_N).double().mean()),
    }


def _kth_distance(x_ND: Tensor, k: int, chunk: int) -> Tensor:
    """Distance ``[N]`` of each row to its k-th nearest other row."""
    parts = []
    for start in range(0, len(x_ND), chunk):
        distance_nN = _distances(x_ND[start : start + chunk], x_ND)
        rows = torch.arange(len(distance_nN))
        distance_nN[rows, start + rows] = torch.inf  # a sample is not its own neighbour
        parts.append(distance_nN.kthvalue(k, dim=1).values)
    return torch.cat(parts)


def _distances(x_nD: Tensor, y_MD: Tensor) -> Tensor:
    return torch.cdist(x_nD, y_MD, compute_mode="donot_use_mm_for_euclid_dist")


def _refuse_other_width(a_ND: Tensor, b_MD: Tensor) -> None:
    if a_ND.shape[1] != b_MD.shape[1]:
        got = f"{a_ND.shape[1]} and {b_MD.shape[1]}"
        raise UserError("both feature sets", "have one number of features", got, "use one extractor for both")
