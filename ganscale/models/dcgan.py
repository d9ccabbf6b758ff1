"""DCGAN (Radford et al. 2016, arXiv:1511.06434): conv-transpose generator, strided convolutional critic.

Every block is a 4x4 kernel with stride 2 and padding 1, which doubles (generator) or halves (critic) each side. The
smallest map is the picture divided by 2^blocks, with as many blocks as leave its shorter side at 4 to 7 pixels: 28
pixels start from 7x7 with two blocks, 64 pixels from 4x4 with four.
Legend: N batch, D latent, C channels, H height, W width.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from ganscale.errors import ConfigError
from ganscale.models.layers import BatchNormAct, ConvAct, ConvTransposeAct, ConvTransposeNormAct, init_normal

WIDEST = 8  # no layer has more than WIDEST * width channels, as in the paper


def block_count(resolution: tuple[int, int]) -> int:
    """Return how many doublings lead from the smallest map to ``resolution`` (height, width); raises ConfigError."""
    blocks = 0
    while min(resolution) >> blocks > 7:
        blocks += 1
    if min(resolution) < 8 or any(side % (1 << blocks) for side in resolution):
        step = 1 << max(blocks, 1)
        below, above = (
            (max(8, side // step * step) for side in resolution),
            (-(-side // step) * step for side in resolution),
        )
        raise ConfigError(
            "data.resolution",
            f"be at least 8 and a multiple of {step} for dcgan",
            "x".join(map(str, resolution)),
            f"use {'x'.join(map(str, below))} or {'x'.join(map(str, above))}",
        )
    return blocks


class DCGANGenerator(nn.Module):
    """Map latents [N, D] to images [N, C, H, W] in [-1, 1]."""

    def __init__(self, *, latent: int, channels: int, resolution: tuple[int, int], width: int) -> None:
        super().__init__()
        blocks = block_count(resolution)
        sizes = [min(WIDEST, 1 << level) * width for level in reversed(range(blocks))]  # widest first
        self.latent = latent
        self.start = (sizes[0], resolution[0] >> blocks, resolution[1] >> blocks)
        self.project = nn.Linear(latent, self.start[0] * self.start[1] * self.start[2], bias=False)
        self.project_norm = BatchNormAct(sizes[0], "relu")
        self.blocks = nn.Sequential(
            *(ConvTransposeNormAct(wide, narrow, 4, stride=2, padding=1) for wide, narrow in pairwise(sizes))
        )
        self.to_image = ConvTransposeAct(sizes[-1], channels, 4, stride=2, padding=1, activation="tanh")
        init_normal(self)

    def forward(self, z_ND: Tensor) -> Tensor:
        x = self.project(z_ND).unflatten(1, self.start)
        return self.to_image(self.blocks(self.project_norm(x)))


def strided_trunk(*, channels: int, resolution: tuple[int, int], width: int) -> tuple[nn.Sequential, int]:
    """Return blocks that halve images [N, C, H, W] as a critic does, and how many numbers they leave of each image."""
    blocks = block_count(resolution)
    sizes = [channels, *(min(WIDEST, 1 << level) * width for level in range(blocks))]
    trunk = nn.Sequential(
        *(ConvAct(narrow, wide, 4, stride=2, padding=1, activation="leaky_relu") for narrow, wide in pairwise(sizes))
    )
    return trunk, sizes[-1] * (resolution[0] >> blocks) * (resolution[1] >> blocks)


class DCGANCritic(nn.Module):
    """Map images [N, C, H, W] to logits [N]. No batch norm: a per-sample penalty would be meaningless with it."""

    def __init__(self, *, channels: int, resolution: tuple[int, int], width: int) -> None:
        super().__init__()
        self.blocks, left = strided_trunk(channels=channels, resolution=resolution, width=width)
        self.to_logit = nn.Linear(left, 1)
        init_normal(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.to_logit(self.blocks(x_NCHW).flatten(1)).squeeze(1)
