"""Autoencoders: a decoder that is a generator, and the encoder that finds its latents. Trained without a critic.

Legend: N batch, D latent, C channels, H height, W width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ganscale.models.dcgan import DCGANGenerator, strided_trunk
from ganscale.models.layers import init_normal


class Autoencoder(nn.Module):
    """``encode``: images [N, C, H, W] -> codes [N, D]; called itself, it decodes latents [N, D], as a generator does.

    A ``variational`` one (Kingma and Welling 2014, arXiv:1312.6114) encodes to a normal distribution.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, *, latent: int, variational: bool) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.latent, self.variational = latent, variational

    def encode(self, x_NCHW: Tensor) -> Tensor:
        """Return the code of each image, [N, D]; the mean where a distribution is encoded."""
        return self.distribution(x_NCHW)[0]

    def distribution(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return mean and log variance [N, D] of each image's code; no variance where the encoder is deterministic."""
        code = self.encoder(x_NCHW)
        if not self.variational:
            return code, None
        mean, log_variance = code.chunk(2, dim=1)
        return mean, log_variance

    def forward(self, z_ND: Tensor) -> Tensor:
        return self.decoder(z_ND)


class ConvEncoder(nn.Module):
    """Mirror of the DCGAN generator, without norms: images [N, C, H, W] -> [N, ``outputs``]."""

    def __init__(self, *, channels: int, resolution: tuple[int, int], width: int, outputs: int) -> None:
        super().__init__()
        self.blocks, left = strided_trunk(channels=channels, resolution=resolution, width=width)
        self.to_code = nn.Linear(left, outputs)
        # not DCGAN's small weights: codes of nearly nothing make the decoder's norms meaningless at first
        for part in self.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(part.weight, a=0.2)
                nn.init.zeros_(part.bias)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.to_code(self.blocks(x_NCHW).flatten(1))


class ReconstructionCritic(nn.Module):
    """What an autoencoder says of images [N, C, H, W]: minus half the squared error of their reconstruction, [N].

    High is like its data (Zhao et al. 2017, arXiv:1609.03126, make such a one the critic of a GAN).
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, x_NCHW: Tensor) -> Tensor:
        decoded = self.autoencoder(self.autoencoder.encode(x_NCHW))
        return -0.5 * (decoded - x_NCHW).flatten(1).square().sum(dim=1)


class NoCritic(nn.Module):
    """Stands where a critic would: an autoencoder has none. Nothing to train; one buffer, as a file needs contents."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("nothing", torch.zeros(1))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW.flatten(1).sum(dim=1) * self.nothing


def conv_autoencoder(
    *, latent: int, channels: int, resolution: tuple[int, int], width: int, variational: bool
) -> Autoencoder:
    """Build strided convolutions down to ``latent`` numbers and the DCGAN generator back."""
    decoder = DCGANGenerator(latent=latent, channels=channels, resolution=resolution, width=width)
    outputs = latent * (2 if variational else 1)
    encoder = ConvEncoder(channels=channels, resolution=resolution, width=width, outputs=outputs)
    return Autoencoder(encoder, decoder, latent=latent, variational=variational)


def linear_autoencoder(*, latent: int, channels: int, resolution: tuple[int, int], variational: bool) -> Autoencoder:
    """Build one linear layer each way: what it can learn is the principal components (Bourlard and Kamp 1988)."""
    pixels = channels * math.prod(resolution)
    outputs = latent * (2 if variational else 1)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, outputs))
    decoder = nn.Sequential(nn.Linear(latent, pixels), nn.Unflatten(1, (channels, *resolution)))
    for part in (encoder, decoder):
        init_normal(part)
    return Autoencoder(encoder, decoder, latent=latent, variational=variational)
