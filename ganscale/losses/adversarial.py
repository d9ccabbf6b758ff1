"""Adversarial losses: pure, unreduced, one number a sample.

Each loss is a pair of functions of the critic's raw logits ``real_N`` and ``fake_N``. Both sides take both arguments,
because the relativistic generator sees real logits too; the others ignore what they don't need.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class AdversarialLoss:
    """What the critic and the generator each minimise: ``(real_N, fake_N) -> [N]``."""

    summary: str
    critic: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    paired: bool = False  # whether the generator's side reads real_N


def _classification(real_N: Tensor, fake_N: Tensor) -> Tensor:
    # -log sigmoid(D(x)) - log(1 - sigmoid(D(G(z)))) written with softplus, which never overflows
    return F.softplus(-real_N) + F.softplus(fake_N)


ADVERSARIAL: dict[str, AdversarialLoss] = {
    "minimax": AdversarialLoss(
        summary="Goodfellow et al. 2014, eq. 1 (arXiv:1406.2661); saturates where the critic wins",
        critic=_classification,
        generator=lambda real_N, fake_N: -F.softplus(fake_N),
    ),
    "non-saturating": AdversarialLoss(
        summary="Goodfellow et al. 2014, section 3 (arXiv:1406.2661)",
        critic=_classification,
        generator=lambda real_N, fake_N: F.softplus(-fake_N),
    ),
    "least-squares": AdversarialLoss(
        summary="Mao et al. 2017, eq. 9 (arXiv:1611.04076)",
        critic=lambda real_N, fake_N: 0.5 * (real_N - 1).square() + 0.5 * fake_N.square(),
        generator=lambda real_N, fake_N: 0.5 * (fake_N - 1).square(),
    ),
    "hinge": AdversarialLoss(
        summary="Lim and Ye 2017 (arXiv:1705.02894)",
        critic=lambda real_N, fake_N: F.relu(1 - real_N) + F.relu(1 + fake_N),
        generator=lambda real_N, fake_N: -fake_N,
    ),
    "wasserstein": AdversarialLoss(
        summary="Arjovsky et al. 2017, eq. 2 (arXiv:1701.07875)",
        critic=lambda real_N, fake_N: fake_N - real_N,
        generator=lambda real_N, fake_N: -fake_N,
    ),
    "relativistic": AdversarialLoss(
        summary="Jolicoeur-Martineau 2018 (arXiv:1807.00734), paired as in R3GAN (arXiv:2501.05441)",
        critic=lambda real_N, fake_N: F.softplus(fake_N - real_N),
        generator=lambda real_N, fake_N: F.softplus(real_N - fake_N),
        paired=True,
    ),
}
