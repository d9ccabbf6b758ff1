"""Claims about training: a whole critic step, and a whole iteration of WGAN-GP, against the textbook loop.

The critic step is the trainer's own composition (``ganscale.models``, ``losses``, ``ops``) without its bookkeeping; the
iteration is ``ganscale.training.step.train_step`` itself, with statistics, keyed draws, the check of the gradients and
the generator's average, none of which the peer does.
Legend: N batch, D latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from ganscale.bench.lines import Case, Line, Settings, compare, tolerance
from ganscale.bench.peers import PlainGenerator, copy_parameters, plain_critic, textbook_penalty
from ganscale.config import RunConfig, from_mapping
from ganscale.losses import ADVERSARIAL, PENALTIES
from ganscale.models import build_critic
from ganscale.training.cuda_graphs import GraphedPhases
from ganscale.training.process_group import solo_group
from ganscale.training.random import Draws
from ganscale.training.state import TrainState
from ganscale.training.step import build_phases, leave_gradients, train_step

CRITIC_STEP, ITERATION = "critic-step", "iteration"
TEXTBOOK, TEXTBOOK_F32 = "textbook loop", "textbook loop, f32"
LATENT, WEIGHT, LR = 64, 10.0, 1e-4
CRITIC_GOALS = {"f32": {TEXTBOOK: 1.2}, "bf16": {TEXTBOOK: 1.2, TEXTBOOK_F32: 2.0}}


def recipe(side: int, *, batch: int = 64, precision: str = "fp32") -> RunConfig:
    """Return WGAN-GP on RGB pictures of one side, one generator update an iteration."""
    return from_mapping(
        {
            "preset": f"bench-{side}",
            "data": {"resolution": side, "channels": 3},
            "model": {"width": 64, "latent": LATENT},
            "loss": {"name": "wasserstein"},
            "penalty": {"name": "wgan-gp", "weight": WEIGHT},
            "optim": {"generator": {"lr": LR}, "critic": {"lr": LR}},
            "train": {"batch": batch, "precision": precision},
        }
    )


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


def measure_critic_step(settings: Settings) -> Iterator[Line]:
    """Yield the critic's loss with all gradients: real, fake, penalty."""
    for side, batch in product(settings.sides, settings.batches):
        ours_net = build_critic(recipe(side)).to(settings.device, memory_format=torch.channels_last)
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
            case = Case(claim=CRITIC_STEP, what=what, shape=shape_of(batch, side), dtype=dtype)
            goals = CRITIC_GOALS[dtype] if settings.device == "cpu" else {}
            judged = {"goals": goals, "tolerance": tolerance(dtype, settings.device)}
            yield from compare(settings, case, peers=peers, ours=ours, graphs=True, **judged)


def loss_gradients(loss: Callable[..., Tensor], net: nn.Module, data: tuple, dtype: str) -> list[Tensor]:
    """Compute the gradients of ``loss`` in all parameters and return those of the weights."""
    weights, biases = ([p for p in net.parameters() if (p.ndim > 1) == many] for many in (True, False))
    return list(torch.autograd.grad(loss(net, *data, dtype), weights + biases, allow_unused=True))[: len(weights)]


def shape_of(batch: int, side: int) -> str:
    """Return the shape of the pictures as a table shows it."""
    return f"{batch}x3x{side}x{side}"


def textbook_iteration(side: int, batch: int, dtype: str, device: str) -> Callable[[], None]:
    """Return one iteration of WGAN-GP (critic, then generator, both with Adam) of plain modules."""
    critic = plain_critic(side).to(device, memory_format=torch.channels_last)
    generator = PlainGenerator(side, latent=LATENT).to(device, memory_format=torch.channels_last)
    adam_critic = torch.optim.Adam(critic.parameters(), lr=LR, betas=(0.0, 0.9))
    adam_generator = torch.optim.Adam(generator.parameters(), lr=LR, betas=(0.0, 0.9))
    real = pictures(batch, side, device)

    def iteration() -> None:
        adam_critic.zero_grad()
        with torch.no_grad(), region(device, dtype):
            fake = generator(torch.randn(batch, LATENT, device=device))
        textbook_critic_loss(critic, real, fake.float(), torch.rand(batch, device=device), dtype).backward()
        adam_critic.step()
        adam_generator.zero_grad()
        with region(device, dtype):
            loss = -critic(generator(torch.randn(batch, LATENT, device=device))).float().mean()
        loss.backward()
        adam_generator.step()

    return iteration


def our_iteration(config: RunConfig, device: str, *, graphs: bool = False) -> Callable[[], None]:
    """Return one call of the trainer's own step, with ``graphs`` as ``train.cuda_graphs`` does it."""
    state = TrainState(config, solo_group(device))
    phases, draws = build_phases(config), Draws(config.train.seed, torch.device(device))
    real = pictures(config.train.batch, config.data.resolution[0], device)
    dtype = "bf16" if config.train.precision == "bf16" else "f32"
    gradients = GraphedPhases() if graphs else leave_gradients
    return lambda: train_step(state, phases, real, draws, lambda: region(device, dtype), gradients)


def measure_iteration(settings: Settings) -> Iterator[Line]:
    """Yield whole iterations, optimiser steps included."""
    precisions = (("f32", "fp32"), ("bf16", "bf16"))
    for side, batch, (dtype, precision) in product(settings.sides, settings.batches, precisions):
        case = Case(claim=ITERATION, what="critic + generator + Adam", shape=shape_of(batch, side), dtype=dtype)
        config = recipe(side, batch=batch, precision=precision)
        peers = {TEXTBOOK: textbook_iteration(side, batch, dtype, settings.device)}
        yield from compare(settings, case, peers=peers, ours=our_iteration(config, settings.device))
        if settings.device == "cuda":
            case = replace(case, what=f"{case.what}, ours with train.cuda_graphs")
            ours = our_iteration(config, settings.device, graphs=True)
            yield from compare(settings, case, peers=peers, ours=ours)
