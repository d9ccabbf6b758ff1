"""Kernel distance: between two sets of samples that fit no Gaussian.

N, M samples, D features. Computed in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ganscale.errors import UserError
from ganscale.metrics.frechet import checked_features

LARGEST_DEFAULT_SUBSET = 1000


class KernelDistance(NamedTuple):
    """The mean over subsets, and the standard deviation between subsets."""

    value: float
    spread: float


def kernel_distance(
    real: Tensor, fake: Tensor, *, subsets: int = 20, subset_size: int | None = None, seed: int = 0
) -> KernelDistance:
    """Unbiased squared maximum mean discrepancy with the cubic kernel (x.y / D + 1)^3 (Binkowski et al. 2018).

    ``real`` ``[N, D]`` and ``fake`` ``[M, D]``. Each of ``subsets`` draws ``subset_size`` rows of either set without
    replacement; by default half of the smaller set, at most 1000, so that subsets differ and the spread means
    something. Around 0 (also below) for two sets of one distribution at every N. The same seed gives the same value.
    Raises ``UserError`` for sets below four rows, subsets below two rows or larger than a set, or bad features.
    """
    real_ND, fake_MD = _checked_sets(real, fake, at_least=4)
    smaller = min(len(real_ND), len(fake_MD))
    size = min(LARGEST_DEFAULT_SUBSET, smaller // 2) if subset_size is None else subset_size
    if not 2 <= size <= smaller:
        remedy = "measure more images or pass a smaller subset"
        raise UserError("subset_size", f"lie between 2 and the {smaller} samples of the smaller set", size, remedy)
    if subsets < 1:
        raise UserError("subsets", "be at least 1", subsets, "20 is usual")
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        rows_real = torch.randperm(len(real_ND), generator=generator)[:size]
        rows_fake = torch.randperm(len(fake_MD), generator=generator)[:size]
        values.append(_squared_mmd(real_ND[rows_real], fake_MD[rows_fake]))
    value_S = torch.tensor(values, dtype=torch.float64)
    return KernelDistance(float(value_S.mean()), float(value_S.std(correction=0)))


def _squared_mmd(x_ND: Tensor, y_ND: Tensor) -> float:
    n = len(x_ND)
    within_x, within_y = _cubic_kernel(x_ND, x_ND), _cubic_kernel(y_ND, y_ND)
    # A row's kernel with itself is left out: that is what makes the estimate unbiased.
    pairs = (within_x.sum() - within_x.trace() + within_y.sum() - within_y.trace()) / (n * (n - 1))
    return float(pairs - 2 * _cubic_kernel(x_ND, y_ND).mean())


def _cubic_kernel(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    return (x_ND @ y_MD.T / x_ND.shape[1] + 1).pow(3)


def _checked_sets(real: Tensor, fake: Tensor, *, at_least: int) -> tuple[Tensor, Tensor]:
    real_ND, fake_MD = checked_features(real), checked_features(fake)
    if real_ND.shape[1] != fake_MD.shape[1]:
        got = f"{real_ND.shape[1]} and {fake_MD.shape[1]}"
        raise UserError("both feature sets", "have one number of features", got, "use one extractor for both")
    if min(len(real_ND), len(fake_MD)) < at_least:
        got = f"{len(real_ND)} and {len(fake_MD)}"
        raise UserError("both feature sets", f"hold at least {at_least} samples", got, "measure more images")
    return real_ND, fake_MD
