"""Latents of images for any generator: the nearest of many draws, then a search by gradient from there.

Zhu et al. 2016 (arXiv:1609.03552, section 3.1), with the squared distance of pixels alone.

Legend: n images, L drawn latents, D latent, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TOGETHER = 16  # images whose latents are searched together
RATE = 0.05  # of Adam, in standard deviations of a latent


def search(generator: Callable[[Tensor], Tensor], wanted: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the least L2 distance from each image [n, C, H, W] that Adam on z meets, float64 [n], and where [n, D].

    It begins at ``start`` [n, D]; the pictures at the beginning count too. Images are searched apart.
    """
    z = start.clone().requires_grad_(True)
    adam = torch.optim.Adam([z], lr=RATE)
    best_n = torch.full((len(wanted),), torch.inf, dtype=torch.float64)
    best_z = start.clone()
    with torch.enable_grad():
        for _ in range(steps):
            power_n = (generator(z) - wanted).double().flatten(1).square().sum(dim=1)
            nearer = (power_n.detach().cpu() < best_n).to(z.device)
            best_z = torch.where(nearer[:, None], z.detach(), best_z)
            best_n = torch.minimum(best_n, power_n.detach().cpu())
            adam.zero_grad()
            power_n.sum().backward()
            adam.step()
    return best_n.sqrt(), best_z
