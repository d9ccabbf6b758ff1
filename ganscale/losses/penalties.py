"""Gradient penalties of the critic: pure, unreduced, one number a sample.

One interface: ``(critic, real, fake, eps, *, center) -> [N]`` with real and fake [N, C, H, W] and mixing weights eps
[N] in [0, 1). The norm is taken per sample over all other axes; over the whole batch, a frequent slip, it would pull
each sample towards center / sqrt(N). The value is differentiable in the critic's parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ganscale import ops

if TYPE_CHECKING:
    from ganscale.config import RunConfig

Critic = Callable[[Tensor], Tensor]


class PenaltyFunction(Protocol):
    """``(critic, real, fake, eps, *, center) -> [N]``."""

    def __call__(self, critic: Critic, real: Tensor, fake: Tensor, eps: Tensor, *, center: float) -> Tensor: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Penalty:
    """A penalty as a run names it; it is called as its function is."""

    function: PenaltyFunction
    reads_fake: bool = True  # where not, nothing need be generated for it, and fake may be None

    @property
    def summary(self) -> str:
        """What its function says of itself."""
        return self.function.__doc__ or ""

    def __call__(self, critic: Critic, real: Tensor, fake: Tensor | None, eps: Tensor, *, center: float) -> Tensor:
        """Return one number a sample, [N]."""
        return self.function(critic, real, fake, eps, center=center)


def wgan_gp(critic: Critic, real: Tensor, fake: Tensor, eps: Tensor, *, center: float) -> Tensor:
    """(|grad D(x)| - center)^2 on x = eps real + (1 - eps) fake (Gulrajani et al. 2017, eq. 3, arXiv:1704.00028)."""
    return ops.gradient_penalty(critic, ops.interpolate(real, fake, eps), center=center)


def wgan_gp_one_sided(critic: Critic, real: Tensor, fake: Tensor, eps: Tensor, *, center: float) -> Tensor:
    """max(0, |grad D(x)| - center)^2 on the same x (Petzka et al. 2018, eq. 8, arXiv:1709.08894)."""
    return ops.gradient_penalty(critic, ops.interpolate(real, fake, eps), center=center, one_sided=True)


def r1(critic: Critic, real: Tensor, fake: Tensor | None, eps: Tensor, *, center: float = 0.0) -> Tensor:
    """|grad D(x)|^2 / 2 on real images (Mescheder et al. 2018, eq. 9, arXiv:1801.04406); the weight is gamma."""
    return 0.5 * ops.gradient_penalty(critic, real, center=0.0)


def r2(critic: Critic, real: Tensor, fake: Tensor, eps: Tensor, *, center: float = 0.0) -> Tensor:
    """|grad D(x)|^2 / 2 on generated images (Mescheder et al. 2018, eq. 10); the weight is gamma."""
    return 0.5 * ops.gradient_penalty(critic, fake, center=0.0)


def r1_r2(critic: Critic, real: Tensor, fake: Tensor, eps: Tensor, *, center: float = 0.0) -> Tensor:
    """R1 + R2, as R3GAN needs both (Huang et al. 2025, arXiv:2501.05441), in one pass over both batches."""
    both = ops.gradient_penalty(critic, torch.cat([real, fake]), center=0.0)
    return 0.5 * both.view(2, -1).sum(dim=0)


PENALTIES: dict[str, Penalty] = {
    "wgan-gp": Penalty(function=wgan_gp),
    "wgan-gp-one-sided": Penalty(function=wgan_gp_one_sided),
    "r1": Penalty(function=r1, reads_fake=False),
    "r2": Penalty(function=r2),
    "r1-r2": Penalty(function=r1_r2),
}


def describe_penalty(config: RunConfig, critic: Critic, device: torch.device | str = "cpu") -> str:
    """Say which penalty a run has, which way it is computed, and why; nothing is computed here."""
    if config.penalty.name not in PENALTIES:
        return "none"
    batch = min(config.train.batch, config.train.micro_batch or config.train.batch)
    batch *= 2 if config.penalty.name == "r1-r2" else 1
    x = torch.empty(batch, config.data.channels, *config.data.resolution, device=device)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
        choice = ops.explain_choice(critic, x)
    return f"{config.penalty.name}, {choice.path} ({choice.reason})"
