"""The classic fully connected GAN (Goodfellow et al. 2014, arXiv:1406.2661), for small pictures and for points.

Legend: N batch, D latent, C channels, H height, W width.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

DEPTH = 4  # hidden layers


def _trunk(inputs: int, width: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for a, b in pairwise([inputs, *[width] * DEPTH]):
        linear = nn.Linear(a, b)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers += [linear, nn.ReLU()]
    return layers


class MLPGenerator(nn.Module):
    """Map latents [N, D] to [N, C, H, W]: images in [-1, 1] by tanh, or unbounded points (``bounded=False``)."""

    def __init__(self, *, latent: int, channels: int, resolution: tuple[int, int], width: int, bounded: bool) -> None:
        super().__init__()
        self.latent = latent
        self.shape = (channels, *resolution)
        self.project, *rest = _trunk(latent, width)
        self.hidden = nn.Sequential(*rest)
        self.out = nn.Linear(width, math.prod(self.shape))
        self.bound = nn.Tanh() if bounded else nn.Identity()

    def forward(self, z_ND: Tensor) -> Tensor:
        return self.bound(self.out(self.hidden(self.project(z_ND)))).unflatten(1, self.shape)


class MLPCritic(nn.Module):
    """Map [N, C, H, W] to logits [N]."""

    def __init__(self, *, channels: int, resolution: tuple[int, int], width: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Flatten(), *_trunk(channels * math.prod(resolution), width))
        self.to_logit = nn.Linear(width, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.to_logit(self.hidden(x_NCHW)).squeeze(1)
