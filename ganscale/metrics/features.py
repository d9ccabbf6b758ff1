"""From uint8 images to feature rows, through an extractor that says what it is.

N batch, C channels, H height, W width, D features.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ganscale.errors import UserError


class Extractor(Protocol):
    """What a feature extractor must offer; ``InDomainCNN`` is the one that ganscale trains itself."""

    def features(self, images: Tensor) -> Tensor:
        """Feature rows ``[N, D]`` of float images ``[N, C, H, W]`` in [-1, 1]."""
        ...

    def describe(self) -> dict[str, str]:
        """Name (``"extractor"``), weight hash, resizer and value range, as they go into every stamp."""
        ...


def images_to_float(images: Tensor) -> Tensor:
    """Bring uint8 images ``[N, C, H, W]`` to float32 in [-1, 1]; raises ``UserError`` for other dtypes or shapes."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        got = f"{images.dtype} {list(images.shape)}"
        raise UserError("images to measure", "be uint8 [N, C, H, W]", got, "convert [-1, 1] images by (x + 1) * 127.5")
    return images.to(torch.float32).div_(127.5).sub_(1)


@torch.inference_mode()
def features_of(extractor: Extractor, images: Tensor, *, batch: int = 256) -> Tensor:
    """Feature rows float32 ``[N, D]`` on the CPU of uint8 images ``[N, C, H, W]``, ``batch`` images at a time.

    A module is put into evaluation mode for the call and back into its own mode afterwards. Raises ``UserError`` for
    no images, other dtypes or shapes.
    """
    if len(images) == 0:
        raise UserError("images to measure", "hold at least one image", "none", "generate or read some first")
    was_training = isinstance(extractor, torch.nn.Module) and extractor.training
    if was_training:
        extractor.eval()
    try:
        parts = [extractor.features(images_to_float(part)).float().cpu() for part in images.split(batch)]
    finally:
        if was_training:
            extractor.train()
    return torch.cat(parts)
