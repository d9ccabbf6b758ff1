"""Laws of the Frechet distance and of the moments that it is made from."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
import toys

from ganscale.errors import UserError
from ganscale.metrics import Moments, frechet_distance


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(mean: torch.Tensor, covariance: torch.Tensor) -> Moments:
    """Moments of a Gaussian that is known exactly."""
    return Moments(count=101, mean_D=mean, scatter_DD=covariance * 100)


def random_covariance(size: int, *, seed: int) -> torch.Tensor:
    root = normal(size, size, seed=seed)
    return root @ root.T + 0.1 * torch.eye(size, dtype=torch.float64)


def test_commuting_gaussians_have_the_closed_form():
    mean, variance = normal(2, 16), torch.rand(2, 16, generator=torch.Generator().manual_seed(1)).double() + 0.1
    rotation = torch.linalg.qr(normal(16, 16)).Q  # a common basis: both covariances commute
    a, b = (gaussian(mean[i], rotation @ variance[i].diag() @ rotation.T) for i in (0, 1))
    expected = (mean[0] - mean[1]).square().sum() + (variance[0].sqrt() - variance[1].sqrt()).square().sum()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-12)


def test_gaussians_that_do_not_commute_agree_with_the_matrix_square_root_of_scipy():
    mean, c1, c2 = normal(2, 12), random_covariance(12, seed=1), random_covariance(12, seed=2)
    root = scipy.linalg.sqrtm(c1.numpy() @ c2.numpy())
    expected = float((mean[0] - mean[1]).square().sum() + c1.trace() + c2.trace()) - 2 * np.trace(root).real
    assert frechet_distance(gaussian(mean[0], c1), gaussian(mean[1], c2)) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances_are_exact_where_a_matrix_square_root_would_lose_half_the_digits():
    direction = torch.nn.functional.normalize(normal(64), dim=0)
    line = torch.outer(direction, direction)
    zero = torch.zeros(64, dtype=torch.float64)
    assert frechet_distance(gaussian(zero, 4 * line), gaussian(zero, 9 * line)) == pytest.approx(1, rel=1e-10)
    few = normal(10, 64)  # ten samples in 64 dimensions: rank nine
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(few, few + 2) == pytest.approx(4 * 64, rel=1e-10)


def test_distance_is_symmetric_and_keeps_under_rotation():
    a, b = normal(300, 20, seed=1), normal(200, 20, seed=2) * 1.5 + 0.3
    rotation = torch.linalg.qr(normal(20, 20)).Q
    distance = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-10)
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(distance, rel=1e-10)


def test_samples_of_known_gaussians_come_near_their_distance():
    a, b = normal(100_000, 4, seed=1), 2 * normal(100_000, 4, seed=2) + 1
    # 4 (mean) + 4 (spread); the sampling error of a mean gap of 1 is about 2 * sqrt(5 / 100000) an axis.
    assert frechet_distance(a, b) == pytest.approx(8, abs=0.1)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_merged_shards_in_any_order_equal_the_whole_also_far_from_zero(offset: float):
    x = normal(1000, 8) + offset
    shards = [Moments.of(part) for part in x.split([1, 9, 490, 37, 463])]
    whole = Moments.of(x)
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [3, 1, 4, 0, 2]):
        merged = shards[order[0]]
        for i in order[1:]:
            merged = merged.merge(shards[i])
        assert merged.count == 1000
        assert torch.allclose(merged.mean_D, whole.mean_D, rtol=1e-14, atol=1e-12)
        # At an offset of 1e6 the data themselves are rounded to 1e-10, and a thousand squares are summed.
        assert torch.allclose(merged.covariance(), whole.covariance(), rtol=0, atol=1e-12 if offset == 0 else 1e-8)
    halves = shards[0].merge(shards[1]).merge(shards[2].merge(shards[3].merge(shards[4])))
    assert torch.allclose(halves.covariance(), whole.covariance(), rtol=0, atol=1e-12 if offset == 0 else 1e-8)


def test_covariance_is_that_of_numpy_and_moments_may_stand_for_features():
    x, y = normal(50, 6), normal(70, 6, seed=4) + 1
    assert torch.allclose(Moments.of(x).covariance(), torch.from_numpy(np.cov(x.numpy().T)), atol=1e-12)
    assert frechet_distance(Moments.of(x), Moments.of(y)) == frechet_distance(x, y)


class Features(torch.nn.Module):
    """Sixteen features of a picture: a convolution, a bend, and the mean over the places."""

    num_features = 16  # what the peer asks of a network of one's own

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = torch.nn.Conv2d(3, self.num_features, 3, stride=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.conv(images)).mean(dim=(2, 3)).detach()


def test_distance_equals_torchmetrics_on_the_same_network():
    peer = toys.peer("torchmetrics.image.fid").FrechetInceptionDistance(feature=Features())
    real, fake = normal(300, 3, 12, 12, seed=1).float(), normal(200, 3, 12, 12, seed=2).float() * 1.5 + 0.3
    for part in real.split(130):
        peer.update(part, real=True)
    for part in fake.split(70):
        peer.update(part, real=False)
    network = Features()
    ours = frechet_distance(network(real), network(fake))
    # 2e-8 measured: theirs ends in float32, and takes the roots of the eigenvalues of a product
    assert ours == pytest.approx(float(peer.compute()), rel=1e-3)


def test_bad_features_are_refused():
    x = normal(10, 4)
    broken = x.clone()
    broken[3, 1] = float("nan")
    with pytest.raises(UserError, match="1 of 10 rows with NaN"):
        frechet_distance(x, broken)
    with pytest.raises(UserError, match="at least 2 samples"):
        frechet_distance(x[:1], x)
    with pytest.raises(UserError, match="one number of features, got 4 and 3"):
        frechet_distance(x, x[:, :3])
    with pytest.raises(UserError, match=r"non-empty \[N, D\]"):
        Moments.of(x[:0])
