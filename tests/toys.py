"""Functions and networks whose explanations are known by hand.

Legend: n rows, M players, D latent, C channels, H height, W width.
"""

from __future__ import annotations

import importlib
import os
from functools import reduce
from itertools import combinations
from math import factorial

import numpy as np
import pytest
import torch
from torch import Tensor, nn


def peer(name: str):
    """Import an independent implementation; where it is missing the test is skipped, but on CI it fails."""
    try:
        return importlib.import_module(name)
    except ImportError:
        if os.environ.get("CI"):
            pytest.fail(f"peer {name} is not installed; pip install -e '.[test]'")
        pytest.skip(f"peer {name} is not installed")


def coffee() -> Tensor:
    """Return scikit-image's photograph [1, 3, 224, 224] in [-1, 1]: short side 256, then a centre crop."""
    picture = torch.from_numpy(peer("skimage.data").coffee().copy()).permute(2, 0, 1)[None].float()
    height, width = picture.shape[2:]
    scale = 256 / min(height, width)
    size = (round(height * scale), round(width * scale))
    small = nn.functional.interpolate(picture, size, mode="bicubic", antialias=True).clamp(0, 255)
    top, left = (size[0] - 224) // 2, (size[1] - 224) // 2
    return small[:, :, top : top + 224, left : left + 224] / 127.5 - 1


def folded(explainer, chunks, start=None):
    """Return the fold of ``chunks``, run one after the other, onto ``start``."""
    partials = map(explainer.run, chunks)
    return reduce(explainer.merge, partials) if start is None else reduce(explainer.merge, partials, start)


def plainly(explainer):
    """Return an explanation by its four steps alone: all samples together, round by round."""
    done = None
    while chunks := explainer.plan(done):
        done = folded(explainer, chunks, done)
    return explainer.finish(done)


class Linear:
    """f(x) = w . x + b over all elements of a row."""

    def __init__(self, weight: Tensor, bias: float = 0.0) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return (x * self.weight).flatten(1).sum(dim=1) + self.bias


class Game:
    """Linear terms and pairwise interactions of M features; the last is a dummy, 0 and 1 are symmetric."""

    def __init__(self, players: int, *, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        linear = rng.standard_normal(players)
        pairs = rng.standard_normal((players, players)) / 2
        pairs = np.triu(pairs + pairs.T, 1) + np.triu(pairs + pairs.T, 1).T
        linear[1], linear[-1] = linear[0], 0.0
        pairs[1, 2:], pairs[2:, 1] = pairs[0, 2:], pairs[2:, 0]
        pairs[-1, :], pairs[:, -1] = 0.0, 0.0
        self.linear, self.pairs = torch.from_numpy(linear), torch.from_numpy(pairs)

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.linear.to(x.dtype) + torch.tanh(torch.einsum("ni,ij,nj->n", x, self.pairs.to(x.dtype), x) / 4)


def shapley_by_definition(fn, x_M: Tensor, baseline_M: Tensor) -> np.ndarray:
    """Shapley values by the sum over subsets, one loop a player: slow and plain."""
    players = len(x_M)

    def value(members: tuple[int, ...]) -> float:
        row = baseline_M.clone()
        row[list(members)] = x_M[list(members)]
        return float(fn(row[None])[0])

    worth = {s: value(s) for size in range(players + 1) for s in combinations(range(players), size)}
    found = np.zeros(players)
    for player in range(players):
        for members in worth:
            if player not in members:
                size = len(members)
                share = factorial(size) * factorial(players - size - 1) / factorial(players)
                found[player] += share * (worth[tuple(sorted((*members, player)))] - worth[members])
    return found


def mlp(features: int, activation: nn.Module, *, seed: int = 0) -> nn.Sequential:
    """Three layers to one number a row, float32, in train mode as networks come."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(features, 64), activation, nn.Linear(64, 64), activation, nn.Linear(64, 1), nn.Flatten(0)
        )


def conv_critic(*, seed: int = 0) -> nn.Sequential:
    """A small critic for [n, 1, 14, 14]."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(16 * 16, 1),
            nn.Flatten(0),
        )


class FailsShuffled(nn.Module):
    """The mean of a row's pixels, each weighted; of bright rows NaN once the weights are not in their order."""

    def __init__(self, side: int, *, above: float = 0.0) -> None:
        super().__init__()
        self.above = above
        self.weight = nn.Parameter(torch.linspace(0.5, 1, side * side))

    def forward(self, x: Tensor) -> Tensor:
        is_shuffled = bool((self.weight.diff() < 0).any())
        found = (x.flatten(1) * self.weight).mean(dim=1)
        fails = torch.tensor(is_shuffled) & (x.flatten(1).mean(dim=1) > self.above)
        return found * torch.where(fails, torch.nan, 1.0)


class LinearGenerator(nn.Module):
    """z [n, D] -> images [n, 1, H, W], linear: its image moves along the singular vectors of the weight."""

    def __init__(self, latent: int, side: int, *, transpose: bool = False, seed: int = 0) -> None:
        super().__init__()
        self.latent, self.side = latent, side
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.unused = nn.Linear(latent, 3)  # defined first, never called
            if transpose:
                self.start = nn.ConvTranspose2d(latent, 1, side, bias=False)
            else:
                self.start = nn.Linear(latent, side * side, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        if isinstance(self.start, nn.ConvTranspose2d):
            return self.start(z[:, :, None, None])
        return self.start(z).unflatten(1, (1, self.side, self.side))


class ConvGenerator(nn.Module):
    """z [n, D] -> images [n, 1, H, W] in [-1, 1], through a hidden map of four channels."""

    def __init__(self, latent: int, side: int, *, seed: int = 0) -> None:
        super().__init__()
        self.latent, self.side = latent, side
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.start = nn.Linear(latent, 4 * (side // 2) ** 2)
            self.hidden = nn.Conv2d(4, 4, 3, padding=1)
            self.up = nn.ConvTranspose2d(4, 1, 4, stride=2, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = torch.relu(self.start(z)).unflatten(1, (4, self.side // 2, self.side // 2))
        return torch.tanh(self.up(torch.relu(self.hidden(x))))


class MinibatchSpread(nn.Module):
    """A critic that looks across the batch, as minibatch standard deviation does."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).mean(dim=1) + x.std(dim=0, unbiased=False).mean()
