"""Claim: a whole iteration of WGAN-GP, optimiser steps included, against the textbook loop of plain modules.

Ours is ``ganscale.training.step.train_step`` itself, with statistics, keyed draws, the check of the gradients and the
generator's average, none of which the peer does.
Legend: N batch, D latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import torch
from torch import nn

from ganscale.bench.critic_step import TEXTBOOK, WEIGHT, pictures, region, shape_of, textbook_critic_loss
from ganscale.bench.lines import Case, Line, Settings, compare
from ganscale.bench.peers import PlainGenerator, copy_parameters, plain_critic
from ganscale.config import RunConfig, from_mapping
from ganscale.training.cuda_graphs import GraphedPhases
from ganscale.training.process_group import solo_group
from ganscale.training.random import Draws
from ganscale.training.state import TrainState
from ganscale.training.step import build_phases, leave_gradients, train_step

CLAIM = "iteration"
LATENT, LR = 64, 1e-4
OURS_F32 = "ours, f32"
SMALL = (32, 64)  # side and batch at which a GPU waits for the next launch more than it computes
GRAPH_GOALS = {TEXTBOOK: 3.0}
GOALS = {"f32": {TEXTBOOK: 1.2}, "bf16": {TEXTBOOK: 1.2, OURS_F32: 2.0}}


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


def textbook_nets(state: TrainState, side: int, device: str) -> tuple[nn.Module, nn.Module]:
    """Return critic and generator as plain modules with the parameters that ``state`` begins with."""
    critic, generator = plain_critic(side), PlainGenerator(side, latent=LATENT)
    copy_parameters(state.nets["critic"], critic)
    copy_parameters(state.nets["generator"], generator)
    return tuple(net.to(device, memory_format=torch.channels_last) for net in (critic, generator))


def textbook_iteration(side: int, batch: int, dtype: str, device: str) -> Callable[[], None]:
    """Return one iteration of WGAN-GP (critic, then generator, both with Adam) of plain modules."""
    start = TrainState(recipe(side, batch=batch), solo_group(device))
    critic, generator = textbook_nets(start, side, device)
    del start
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
        critic.requires_grad_(False)  # many loops leave it on, and compute gradients of the critic that nobody reads
        with region(device, dtype):
            loss = -critic(generator(torch.randn(batch, LATENT, device=device))).float().mean()
        loss.backward()
        critic.requires_grad_(True)
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


def measure(settings: Settings) -> Iterator[Line]:
    """Yield whole iterations, optimiser steps included."""
    precisions = (("f32", "fp32"), ("bf16", "bf16"))
    for side, batch, (dtype, precision) in product(settings.sides, settings.batches, precisions):
        case = Case(claim=CLAIM, what="critic + generator + Adam", shape=shape_of(batch, side), dtype=dtype)
        config = recipe(side, batch=batch, precision=precision)
        peers = {TEXTBOOK: textbook_iteration(side, batch, dtype, settings.device)}
        if dtype == "bf16" and settings.device == "cpu":
            peers[OURS_F32] = our_iteration(recipe(side, batch=batch), settings.device)
        goals = GOALS[dtype] if settings.device == "cpu" else {}
        yield from compare(settings, case, peers=peers, ours=our_iteration(config, settings.device), goals=goals)
        if settings.device == "cuda":
            case = replace(case, what=f"{case.what}, ours with train.cuda_graphs")
            ours = our_iteration(config, settings.device, graphs=True)
            goals = GRAPH_GOALS if (side, batch) == SMALL else {}
            yield from compare(settings, case, peers=peers, ours=ours, goals=goals)
