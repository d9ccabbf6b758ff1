"""Claim: a whole critic step of WGAN-GP (real, fake, penalty, all gradients) against the textbook's.

Ours is the trainer's own composition of ``ganscale.models``, ``losses`` and ``ops``, without its bookkeeping.
Legend: N batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from ganscale.bench.lines import Case, Line, Settings, compare, tolerance
from ganscale.bench.peers import copy_parameters, plain_critic, textbook_penalty
from ganscale.losses import ADVERSARIAL, PENALTIES
from ganscale.models.dcgan import DCGANCritic

CLAIM = "critic-step"
TEXTBOOK, TEXTBOOK_F32 = "textbook loop", "textbook loop, f32"
WEIGHT = 10.0
GOALS = {"f32": {TEXTBOOK: 1.2}, "bf16": {TEXTBOOK: 1.2, TEXTBOOK_F32: 2.0}}


def region(device: str, dtype: str) -> AbstractContextManager:
    """Return the autocast region of ``dtype``; for "f32" none."""
    return torch.autocast(device, torch.bfloat16) if dtype == "bf16" else nullcontext()


def pictures(batch: int, side: int, device: str) -> Tensor:
    """Return [batch, 3, side, side] in [-1, 1], channels innermost, as the trainer hands them over."""
    return (torch.rand(batch, 3, side, side) * 2 - 1).to(device).contiguous(memory_format=torch.channels_last)


def textbook_critic_loss(critic: nn.Module, real: Tensor, fake: Tensor, eps: Tensor, dtype: str) -> Tensor:
    """The critic's loss of WGAN-GP as most implementations write it."""
    with region(real.device.type, dtype):
        mixed = eps.view(-1, 1, 1, 1) * real + (1 - eps.view(-1, 1, 1, 1)) * fake
        difference = critic(fake).mean() - critic(real).mean()
        return difference + WEIGHT * textbook_penalty(critic, mixed).mean()


def our_critic_loss(critic: nn.Module, real: Tensor, fake: Tensor, eps: Tensor, dtype: str) -> Tensor:
    """The same as the trainer composes it: both batches in one pass, the penalty from ``ganscale.losses``."""
    with region(real.device.type, dtype):
        logits = critic(torch.cat([real, fake])).to(real.dtype).chunk(2)
        penalty = PENALTIES["wgan-gp"](critic, real, fake, eps, center=1.0)
    return (ADVERSARIAL["wasserstein"].critic(*logits) + WEIGHT * penalty).mean()


def measure(settings: Settings) -> Iterator[Line]:
    """Yield the lines of this claim."""
    for side, batch in product(settings.sides, settings.batches):
        ours_net = DCGANCritic(channels=3, resolution=(side, side), width=64).to(
            settings.device, memory_format=torch.channels_last
        )
        plain = plain_critic(side).to(settings.device, memory_format=torch.channels_last)
        copy_parameters(ours_net, plain)
        real, fake = (pictures(batch, side, settings.device) for _ in range(2))
        data = (real, fake, torch.rand(batch).to(settings.device))
        for dtype in ("f32", "bf16"):

            def ours(net: nn.Module = ours_net, data: tuple = data, dtype: str = dtype) -> list[Tensor]:
                return loss_gradients(our_critic_loss, net, data, dtype)

            def peer(dtype: str, net: nn.Module = plain, data: tuple = data) -> list[Tensor]:
                return loss_gradients(textbook_critic_loss, net, data, dtype)

            peers = {TEXTBOOK: partial(peer, dtype)}
            if dtype == "bf16":
                peers[TEXTBOOK_F32] = partial(peer, "f32")
            what = "real + fake + penalty, all gradients"
            case = Case(claim=CLAIM, what=what, shape=shape_of(batch, side), dtype=dtype)
            goals = GOALS[dtype] if settings.device == "cpu" else {}
            judged = {"goals": goals, "tolerance": tolerance(dtype, settings.device)}
            yield from compare(settings, case, peers=peers, ours=ours, graphs=True, **judged)


def loss_gradients(loss: Callable[..., Tensor], net: nn.Module, data: tuple, dtype: str) -> list[Tensor]:
    """Compute the gradients of ``loss`` in all parameters and return those of the weights."""
    weights, biases = ([p for p in net.parameters() if (p.ndim > 1) == many] for many in (True, False))
    return list(torch.autograd.grad(loss(net, *data, dtype), weights + biases, allow_unused=True))[: len(weights)]


def shape_of(batch: int, side: int) -> str:
    """Return the shape of the pictures as a table shows it."""
    return f"{batch}x3x{side}x{side}"
