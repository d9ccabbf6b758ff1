"""Losses of autoencoders: pure, unreduced, one number a sample.

Legend: N batch, D latent, C channels, H height, W width.
"""

from __future__ import annotations

from types import MappingProxyType

from torch import Tensor

#: Name -> what is minimised. ``elbo`` makes the encoder put out a distribution.
AUTOENCODING = MappingProxyType(
    {
        "reconstruction": "half the squared error of the decoded image",
        "elbo": "reconstruction plus beta times the divergence of the code from N(0, I) (Kingma and Welling 2014)",
    }
)


def squared_error(decoded: Tensor, image: Tensor) -> Tensor:
    """Return |decoded - image|^2 / 2, summed over the picture, [N]: -log p of a unit normal, but for a constant."""
    return 0.5 * (decoded - image).flatten(1).square().sum(dim=1)


def divergence(mean_ND: Tensor, log_variance_ND: Tensor) -> Tensor:
    """Return KL(N(mean, variance) || N(0, I)), [N] (Kingma and Welling 2014, arXiv:1312.6114, appendix B)."""
    return 0.5 * (mean_ND.square() + log_variance_ND.exp() - 1 - log_variance_ND).sum(dim=1)
