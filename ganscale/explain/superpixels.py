"""Superpixels by SLIC (Achanta et al. 2012, doi:10.1109/TPAMI.2012.120), in exactly the number that was asked for.

k-means over colour and place, each centre looking at its own surroundings; what is then not connected, or too much, is
merged, the smallest first, into the neighbour of the nearest colour. An image's regions follow from it alone.

Legend: C channels, H height, W width, K centres.
"""

from __future__ import annotations

import heapq

import numpy as np
import torch
from scipy.ndimage import label as connected_parts
from torch import Tensor

from ganscale.explain.errors import ExplainInputError

ROUNDS = 10  # of k-means, as in the paper
LEAST_REGIONS = 4
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])


def slic_segments(
    image_CHW: Tensor, regions: int, *, value_range: tuple[float, float], compactness: float = 10.0
) -> Tensor:
    """Return region numbers int64 [H, W], 0 ... ``regions`` - 1 in reading order, each region connected.

    ``compactness`` weighs place against colour (CIELAB; gray images are lightness alone), as in scikit-image. Raises
    ExplainInputError where the image is too small for so many regions.
    """
    height, width = image_CHW.shape[1:]
    if regions < LEAST_REGIONS or regions * 4 > height * width:
        raise ExplainInputError(
            "superpixels",
            f"number {LEAST_REGIONS} to a quarter of the {height * width} pixels",
            regions,
            "change cells",
        )
    colour = _colour(image_CHW, value_range)
    seeds = regions
    for _ in range(8):
        seeds = -(-seeds * 5 // 4)
        parts = _connected(_cluster(colour, seeds, compactness))
        if parts.max() + 1 >= regions:
            return torch.from_numpy(_numbered(_merged(parts, colour, regions)))
    raise ExplainInputError("superpixels", f"reach {regions} in this image", int(parts.max()) + 1, "use fewer cells")


def _colour(image_CHW: Tensor, value_range: tuple[float, float]) -> np.ndarray:
    """Return [H, W, 3] CIELAB of three channels, else lightness 0 ... 100 of their mean."""
    low, high = value_range
    shares = np.clip((image_CHW.double().numpy().transpose(1, 2, 0) - low) / (high - low), 0, 1)
    if shares.shape[2] != 3:
        return np.concatenate([100 * shares.mean(axis=2, keepdims=True), np.zeros((*shares.shape[:2], 2))], axis=2)
    linear = np.where(shares > 0.04045, ((shares + 0.055) / 1.055) ** 2.4, shares / 12.92)
    xyz = linear @ _TO_XYZ.T / _WHITE
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _cluster(colour: np.ndarray, seeds: int, compactness: float) -> np.ndarray:
    height, width = colour.shape[:2]
    step = np.sqrt(height * width / seeds)
    down, across = max(1, round(height / step)), max(1, round(width / step))
    rows, columns = (np.arange(down) + 0.5) * height / down, (np.arange(across) + 0.5) * width / across
    place_K2 = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    colour_K3 = colour[place_K2[:, 0].astype(int), place_K2[:, 1].astype(int)]
    grid_y, grid_x = np.arange(height)[:, None] + 0.5, np.arange(width)[None, :] + 0.5
    weight = (compactness / step) ** 2
    reach = int(np.ceil(2 * step))
    for _ in range(ROUNDS):
        nearest = np.full((height, width), np.inf)
        labels = np.zeros((height, width), dtype=np.int64)
        for k, (y, x) in enumerate(place_K2):
            window = (
                slice(max(0, int(y) - reach), int(y) + reach + 1),
                slice(max(0, int(x) - reach), int(x) + reach + 1),
            )
            away = ((colour[window] - colour_K3[k]) ** 2).sum(axis=2)
            away += weight * ((grid_y[window[0]] - y) ** 2 + (grid_x[:, window[1]] - x) ** 2)
            closer = away < nearest[window]
            nearest[window][closer] = away[closer]
            labels[window][closer] = k
        flat, count = labels.ravel(), np.maximum(np.bincount(labels.ravel(), minlength=len(place_K2)), 1)
        features = (*np.broadcast_arrays(grid_y, grid_x), *np.moveaxis(colour, -1, 0))
        means = np.stack([np.bincount(flat, f.ravel(), minlength=len(place_K2)) / count for f in features], axis=1)
        held = np.bincount(flat, minlength=len(place_K2)) > 0
        place_K2 = np.where(held[:, None], means[:, :2], place_K2)
        colour_K3 = np.where(held[:, None], means[:, 2:], colour_K3)
    return labels


def _connected(labels: np.ndarray) -> np.ndarray:
    """Number the connected parts (over edges) of equal labels."""
    parts, count = np.zeros_like(labels), 0
    for name in np.unique(labels):
        found, number = connected_parts(labels == name)
        parts[found > 0] = found[found > 0] - 1 + count
        count += number
    return parts


def _merged(parts: np.ndarray, colour: np.ndarray, regions: int) -> np.ndarray:
    """Merge the smallest part into its neighbour of the nearest mean colour until ``regions`` are left."""
    count = int(parts.max()) + 1
    size = np.bincount(parts.ravel(), minlength=count).astype(float)
    total = np.stack([np.bincount(parts.ravel(), c.ravel(), minlength=count) for c in np.moveaxis(colour, -1, 0)], 1)
    beside: list[set[int]] = [set() for _ in range(count)]
    for left, right in ((parts[:, :-1], parts[:, 1:]), (parts[:-1], parts[1:])):
        for one, other in np.unique(np.stack([left[left != right], right[left != right]], axis=1), axis=0):
            beside[one].add(int(other))
            beside[other].add(int(one))
    into = np.arange(count)
    queue = [(size[part], part) for part in range(count)]
    heapq.heapify(queue)
    left = count
    while left > regions:
        known, part = heapq.heappop(queue)
        if into[part] != part or known != size[part]:
            continue  # merged meanwhile, or grown
        mean = total[part] / size[part]
        keep = min(beside[part], key=lambda other: (float(((total[other] / size[other] - mean) ** 2).sum()), other))
        into[part] = keep
        size[keep], total[keep] = size[keep] + size[part], total[keep] + total[part]
        for other in beside[part] - {keep}:
            beside[other].discard(part)
            beside[other].add(keep)
            beside[keep].add(other)
        beside[keep].discard(part)
        heapq.heappush(queue, (size[keep], keep))
        left -= 1
    while (into != into[into]).any():
        into = into[into]
    return into[parts]


def _numbered(labels: np.ndarray) -> np.ndarray:
    """Renumber by first pixel in reading order."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.reshape(labels.shape)]
