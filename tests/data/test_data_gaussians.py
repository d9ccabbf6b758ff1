"""The mixtures have the modes, shares and spreads that they are said to have."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ganscale.config import DataConfig
from ganscale.data import ShardedBatches, open_dataset, scan, scatter_image
from ganscale.data.gaussians import SCALE
from ganscale.errors import ConfigError

POINTS = {"channels": 2, "resolution": 1}


@pytest.mark.parametrize(("name", "modes"), [("gaussians-25", 25), ("gaussians-8", 8)])
def test_every_mode_has_its_share_its_centre_and_its_spread(name, modes):
    dataset = open_dataset(DataConfig(path=name, **POINTS))
    points, labels = dataset.read(np.arange(len(dataset)))
    assert points.shape == (100_000, 2, 1, 1)
    assert points.dtype == torch.float32
    assert dataset.kind == "points"
    assert dataset.num_classes == modes
    counts = torch.bincount(labels)
    assert counts.max() - counts.min() <= 1
    offsets = dataset.to_units(points.numpy()) - dataset.centers[labels.numpy()]
    share = 100_000 / modes
    for mode in range(modes):
        own = offsets[labels.numpy() == mode]
        # Five standard errors of a mean and of a standard deviation; 50 such checks on a fixed seed.
        assert np.abs(own.mean(axis=0)).max() < 5 * dataset.sigma / np.sqrt(share)
        assert np.abs(own.std(axis=0) / dataset.sigma - 1).max() < 5 / np.sqrt(2 * share)
    within = np.hypot(*offsets.T) < 4 * dataset.sigma
    assert abs(within.mean() - (1 - np.exp(-8))) < 5 * np.sqrt(np.exp(-8) / 100_000), "a perfect sampler: 99.97 %"


def test_the_25_centres_are_the_grid_and_the_scaled_data_has_unit_variance():
    dataset = open_dataset(DataConfig(path="gaussians-25", **POINTS))
    assert sorted(map(tuple, dataset.centers.tolist())) == [(x, y) for x in range(-4, 5, 2) for y in range(-4, 5, 2)]
    assert dataset.scale == SCALE == 8**0.5
    points, _ = dataset.read(np.arange(len(dataset)))
    assert points.std(dim=0).flatten().tolist() == pytest.approx([1, 1], abs=0.01)


def test_points_are_a_function_of_the_seed_and_the_split():
    first, again, other = (open_dataset(DataConfig(path="gaussians-25", seed=seed, **POINTS)) for seed in (0, 0, 1))
    held_out = open_dataset(DataConfig(path="gaussians-25", **POINTS), split="held-out")
    indices = np.arange(1000)
    assert torch.equal(first.read(indices)[0], again.read(indices)[0])
    assert not torch.equal(first.read(indices)[0], other.read(indices)[0])
    assert not torch.equal(first.read(indices)[0], held_out.read(indices)[0])
    assert len({first.fingerprint, again.fingerprint, other.fingerprint, held_out.fingerprint}) == 3


def test_batches_of_points_are_not_taken_for_pixels():
    dataset = open_dataset(DataConfig(path="gaussians-25", **POINTS))
    with ShardedBatches(dataset, batch=8, rank=0, world=1, seed=0) as batches:
        batch = next(batches)
    nearest = np.abs(dataset.to_units(batch.images.numpy())[:, None] - dataset.centers).max(axis=-1).min(axis=-1)
    assert (nearest < 6 * dataset.sigma).all()
    assert scan(DataConfig(path="gaussians-25", **POINTS)).usable == 120_000


@pytest.mark.parametrize("keys", [{}, {"channels": 2}, {"resolution": 1}, {"channels": 2, "resolution": (1, 2)}])
def test_points_at_an_image_size_are_refused_with_the_remedy(keys):
    with pytest.raises(ConfigError, match=r"--set data.channels=2 --set data.resolution=1"):
        open_dataset(DataConfig(path="gaussians-25", **keys))


def test_the_scatter_picture_puts_points_where_they_are():
    picture = scatter_image(np.array([[-0.99, 0.99], [0.99, -0.99], [0.99, -0.99], [5.0, 0.0]]), extent=1.0, size=10)
    assert picture.shape == (10, 10)
    assert picture[0, 0] == 170, "top left, once"
    assert picture[9, 9] == 85, "bottom right, twice"
    assert (picture < 255).sum() == 2, "what lies outside is left out"
