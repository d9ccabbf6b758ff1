"""Drawn figures: their masks are their pixels, their factors are independent and decide the picture alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ganscale.config import DataConfig
from ganscale.data import ShardedBatches, open_dataset, scan
from ganscale.data.shapes import BAR, FLATNESS, KINDS, RANGES, distance, draw
from ganscale.errors import ConfigError

SIZES = [(1, 28, 28), (3, 40, 64), (4, 64, 64)]


def dataset(split="train", **keys):
    return open_dataset(DataConfig(path="shapes", **keys), split=split)


@pytest.mark.parametrize("shape", SIZES)
def test_a_mask_is_exactly_where_the_figure_covers_more_than_half_of_a_pixel(shape):
    found = dataset(channels=shape[0], resolution=shape[1:])
    indices = np.arange(200)
    images, labels = found.read(indices)
    masks = found.masks(indices)
    assert images.shape == (200, *shape)
    assert masks.shape == (200, len(KINDS), *shape[1:])
    shown = images[:, : min(shape[0], 3)].numpy().max(axis=1).astype(float)
    peak = shown.max(axis=(1, 2), keepdims=True)
    inside = masks[np.arange(200), labels.numpy()]
    told = np.abs(shown - peak / 2) > 1  # where rounding to bytes leaves no doubt
    assert told.mean() > 0.99
    assert np.array_equal(inside[told], (shown > peak / 2)[told])
    assert masks.sum(axis=1).max() == 1, "a pixel has one owner"
    assert not masks.any(axis=(2, 3))[np.arange(200), (labels.numpy() + 1) % len(KINDS)].any()
    border = np.concatenate([inside[:, [0, -1]].ravel(), inside[:, :, [0, -1]].ravel()])
    assert not border.any(), "whole figures"


def test_figures_have_the_areas_of_their_geometry():
    radius = 0.5
    areas = (np.pi * FLATNESS, 2.0, 3 * np.sqrt(3) / 4, (8 * BAR - 4 * BAR**2) / (1 + BAR**2))
    for kind, share in enumerate(areas):
        factors = np.array([[kind, 0.3, -0.2, radius, 0.4, 1.0]])
        inside = (distance(factors, (400, 400)) < 0).sum()
        assert inside == pytest.approx(share * (radius * 200) ** 2, rel=2e-3)  # the edge's pixels, to either side


def test_factors_are_uniform_independent_and_kinds_have_equal_shares():
    found = dataset(channels=3, resolution=32)
    assert found.factor_names == ("kind", *RANGES)
    assert dataset().factor_names == ("kind", "x", "y", "size", "angle", "brightness")
    assert np.bincount(found.labels).tolist() == [2250] * 4
    correlation = np.corrcoef(found.factors.T) - np.eye(7)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(9000)  # 21 pairs on a fixed seed
    for name, column in zip(RANGES, found.factors.T[1:], strict=True):
        low, high = RANGES[name]
        assert low <= column.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < column.max() <= high


def test_an_image_is_a_function_of_its_factors_alone():
    found, images = dataset(), dataset().read(np.arange(50))[0]
    assert torch.equal(torch.from_numpy(draw(found.factors[:50], (1, 28, 28))), images)
    assert torch.equal(found.read(np.array([7]))[0], images[7:8]), "whatever is read beside it"
    moved = found.factors[:1].copy()
    for place in range(1, 6):
        moved[0, place] += 0.1
        assert not np.array_equal(draw(moved, (1, 28, 28)), images[:1].numpy()), found.factor_names[place]


def test_images_are_a_function_of_seed_and_split():
    parts = [dataset(), dataset(), dataset(seed=1), dataset(split="held-out")]
    first, again, other, held_out = (part.read(np.arange(64))[0] for part in parts)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, held_out)
    assert len({part.fingerprint for part in parts}) == 3
    # of version 1 of the drawing: who changes it raises VERSION, because runs name their data by it
    assert abs(int(first.sum(dtype=torch.int64)) - 742_604) <= 16  # sines of other machines may round otherwise


def test_shapes_are_batched_and_scanned_like_any_images():
    with ShardedBatches(dataset(), batch=8, rank=0, world=1, seed=0) as batches:
        images = next(batches).images
    assert images.shape == (8, 1, 28, 28)
    assert (float(images.min()), images.dtype) == (-1.0, torch.float32)
    report = scan(DataConfig(path="shapes"))
    assert (report.train, report.held_out, report.classes["cross"]) == (9000, 1000, 2500)
    assert ("images", "10000, generated") in report.table()


@pytest.mark.parametrize("keys", [{"channels": 2}, {"resolution": (8, 28)}])
def test_sizes_that_no_figure_fits_are_refused_with_the_remedy(keys):
    with pytest.raises(ConfigError, match="at least 16 for shapes"):
        dataset(**keys)
