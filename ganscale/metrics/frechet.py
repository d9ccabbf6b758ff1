"""The Frechet distance between two sets of features, from moments that merge.

N samples, D features. Everything is float64: a covariance is a small difference of large sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ganscale.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """Count, mean and scatter of feature rows; shards merge, in any order, to the moments of the whole.

    ``count`` rows, ``mean_D`` and ``scatter_DD`` = the sum of outer products about that mean, float64 on the CPU.
    Keeping the scatter about the mean (Chan, Golub and LeVeque 1979) stays exact where features lie far from zero.
    """

    count: int
    mean_D: Tensor
    scatter_DD: Tensor

    @staticmethod
    def of(features_ND: Tensor) -> Moments:
        """Moments of ``[N, D]`` features of any float dtype; raises ``UserError`` for non-finite ones or none."""
        x_ND = checked_features(features_ND)
        mean_D = x_ND.mean(0)
        centred_ND = x_ND - mean_D
        return Moments(count=len(x_ND), mean_D=mean_D, scatter_DD=centred_ND.T @ centred_ND)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows together; raises ``UserError`` where the feature counts differ."""
        _refuse_other_width(self, other)
        count = self.count + other.count
        gap_D = other.mean_D - self.mean_D
        between_DD = torch.outer(gap_D, gap_D) * (self.count * other.count / count)
        return Moments(
            count=count,
            mean_D=self.mean_D + gap_D * (other.count / count),
            scatter_DD=self.scatter_DD + other.scatter_DD + between_DD,
        )

    def covariance(self) -> Tensor:
        """The unbiased covariance ``[D, D]``; raises ``UserError`` below two rows."""
        if self.count < 2:
            raise UserError("moments", "hold at least 2 samples for a covariance", self.count, "measure more images")
        return self.scatter_DD / (self.count - 1)


def frechet_distance(real: Tensor | Moments, fake: Tensor | Moments) -> float:
    """Squared Frechet (2-Wasserstein) distance between the Gaussians of two feature sets (Dowson and Landau 1982).

    Takes features ``[N, D]`` or ``Moments``; returns |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) >= 0, in squared
    feature units. Singular covariances (fewer samples than features) are fine. The value falls with N: compare only
    values of equal N, beside the value of two disjoint real sets of that N. Raises ``UserError`` for non-finite
    features, fewer than two samples, or two widths.
    """
    a = real if isinstance(real, Moments) else Moments.of(real)
    b = fake if isinstance(fake, Moments) else Moments.of(fake)
    _refuse_other_width(a, b)
    covariance_a, covariance_b = a.covariance(), b.covariance()
    # With C1 = A A^T and C2 = B B^T, tr (C1 C2)^(1/2) is the sum of the singular values of A^T B. No matrix square
    # root of a product is taken, so nothing turns complex, and the small eigenvalues are not squared away.
    cross = torch.linalg.svdvals(_factor(covariance_a).T @ _factor(covariance_b)).sum()
    squared_gap = (a.mean_D - b.mean_D).square().sum()
    distance = squared_gap + covariance_a.trace() + covariance_b.trace() - 2 * cross
    return max(float(distance), 0.0)


def checked_features(features_ND: Tensor) -> Tensor:
    """Return detached float64 ``[N, D]`` features on the CPU, or raise the ``UserError`` that says what is wrong."""
    if features_ND.ndim != 2 or len(features_ND) == 0:
        got = str(list(features_ND.shape))
        raise UserError("features", "be a non-empty [N, D] tensor", got, "flatten each sample to one row")
    x_ND = features_ND.detach().to("cpu", torch.float64)
    finite = x_ND.isfinite().all(1)
    if not finite.all():
        bad = f"{int((~finite).sum())} of {len(x_ND)} rows with NaN or infinity"
        raise UserError("features", "be finite", bad, "look at the images that gave them")
    return x_ND


def _factor(covariance_DD: Tensor) -> Tensor:
    """Return A ``[D, D]`` with A A^T = the covariance; eigenvalues that rounding made negative count as 0."""
    eigenvalues_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    return vectors_DD * eigenvalues_D.clamp_min(0).sqrt()


def _refuse_other_width(a: Moments, b: Moments) -> None:
    if a.mean_D.shape != b.mean_D.shape:
        got = f"{len(a.mean_D)} and {len(b.mean_D)}"
        raise UserError("both feature sets", "have one number of features", got, "use one extractor for both")
