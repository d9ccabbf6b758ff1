"""uint8 and float pixels are each other's inverse, grids keep every pixel, and PNG files are whole or absent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ganscale.data import image_grid, save_png, to_float, to_uint8


def test_to_float_is_value_over_127_5_minus_1_and_to_uint8_its_inverse():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    floats = to_float(pixels)
    assert floats.dtype == torch.float32
    assert torch.equal(floats, pixels.float() / 127.5 - 1)
    assert (floats.min(), floats.max()) == (-1, 1)
    assert torch.equal(to_uint8(floats), pixels)


def test_to_uint8_rounds_to_nearest_and_clamps():
    values = torch.tensor([-7.0, -1.0, 0.0, 1.0, 7.0, (100.4 / 127.5) - 1, (100.6 / 127.5) - 1], requires_grad=True)
    assert to_uint8(values).tolist() == [0, 0, 128, 255, 255, 100, 101]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_grid_holds_every_image_in_reading_order(channels):
    images = torch.randint(0, 256, (5, channels, 6, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    grid = image_grid(images, columns=3, padding=2)
    assert grid.dtype == np.uint8
    assert grid.shape[:2] == (2 * 8 + 2, 3 * 6 + 2)
    assert grid.ndim == (2 if channels == 1 else 3)
    for index in range(5):
        top, left = 2 + index // 3 * 8, 2 + index % 3 * 6
        cell = grid[top : top + 6, left : left + 4]
        assert np.array_equal(cell.reshape(6, 4, channels), images[index].permute(1, 2, 0).numpy())
    assert (grid[:2] == 255).all()
    assert (grid[10:, 14:] == 255).all(), "the sixth cell is empty"
    assert np.array_equal(image_grid(images.numpy()), image_grid(images, columns=3))


@pytest.mark.parametrize("shape", [(0, 1, 2, 2), (2, 2, 2, 2), (1, 2, 2)])
def test_a_grid_of_what_is_no_picture_is_refused(shape):
    with pytest.raises(ValueError, match="images must be uint8"):
        image_grid(np.zeros(shape, dtype=np.uint8))
    with pytest.raises(ValueError, match="use to_uint8"):
        image_grid(torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)])
def test_a_saved_png_reads_back_exactly(tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = save_png(tmp_path / "new" / "x.png", array)
    assert np.array_equal(np.asarray(Image.open(path)), array)
    assert [file.name for file in path.parent.iterdir()] == ["x.png"]


def test_a_failed_save_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = save_png(tmp_path / "x.png", np.zeros((2, 2), dtype=np.uint8))
    with pytest.raises(TypeError):
        save_png(path, np.zeros((2, 2, 7), dtype=np.uint8))
    assert np.asarray(Image.open(path)).shape == (2, 2)
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]
