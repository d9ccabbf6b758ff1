"""What single channels of a generator do to the critic, and what channels of either network look like.

Legend: N latents, n rows, U units, S shown channels, R random choices, h height, w width of a map or a filter.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ganscale.explain.edits import ablate, edited
from ganscale.explain.layers import find_layer
from ganscale.explain.scores import RANDOM_ORDERS, against_random
from ganscale.explain.subject import Subject
from ganscale.explain.types import Score

ROWS = 32  # latents on which each unit is taken away
MOST_UNITS = 64  # of a layer, the most varied
SHOWN = 3  # channels of a layer
BEST = 5  # units that are scored


def most_varied(output: Tensor, count: int) -> np.ndarray:
    """Return the channels of [n, C, ...] whose values vary most, the first first."""
    spread = output.detach().double().transpose(0, 1).flatten(1).std(dim=1)
    return spread.argsort(descending=True, stable=True)[:count].cpu().numpy()


def effects_of_units(subject: Subject, z: Tensor, layer: str, units: np.ndarray) -> np.ndarray:
    """Return how much higher the critic's logit is with each unit than without it, float64 [U, n].

    Without: the channel is set to 0. Positive: the unit makes the picture look more real to the critic.
    """
    generator, critic = subject.generator, subject.critic
    with torch.no_grad():
        whole = critic(generator(z)).double()
        found = []
        for unit in units:
            with edited(generator, layer, ablate(torch.tensor([int(unit)]))):
                found.append(whole - critic(generator(z)).double())
    return torch.stack(found).cpu().numpy()


def shown_channels(network: nn.Module, layer: str, output: Tensor) -> dict[str, np.ndarray]:
    """Return a layer's most varied channels [S], their maps of the first row [S, h, w], and their filters.

    A filter is the channel's kernel over the input channel where it is largest; empty where the layer holds no
    convolution that makes these channels.
    """
    channels = most_varied(output, SHOWN)
    maps = output[0, channels].detach().float().cpu().numpy()
    filters = [_filter(network, layer, int(channel), output.shape[1]) for channel in channels]
    kept = np.stack(filters) if all(one is not None for one in filters) else np.zeros((0, 1, 1), dtype=np.float32)
    return {"channels": channels, "maps": maps, "filters": kept}


def _filter(network: nn.Module, layer: str, channel: int, channels: int) -> np.ndarray | None:
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    inside = [module for module in find_layer(network, layer).modules() if isinstance(module, kinds)]
    if not inside:
        return None
    last = inside[-1]
    weight = last.weight.detach().float().cpu()
    weight = weight.transpose(0, 1) if isinstance(last, nn.ConvTranspose2d) else weight
    if weight.shape[0] != channels:  # grouped, or something reshapes its channels
        return None
    kernels = weight[channel]
    return kernels[kernels.flatten(1).norm(dim=1).argmax()].numpy()


def score_of_units(effect_UN: np.ndarray, rng: np.random.Generator) -> Score:
    """Score the units that move the logit most, chosen on every other latent and judged on the rest.

    The value is their mean effect in the direction seen while choosing; the control is that of as many random units.
    """
    choosing, judging = effect_UN[:, ::2].mean(axis=1), effect_UN[:, 1::2].mean(axis=1)
    moved = np.sign(choosing) * judging
    count = min(BEST, len(moved))
    best = np.argsort(-np.abs(choosing), kind="stable")[:count]
    random = np.array([moved[rng.permutation(len(moved))[:count]].mean() for _ in range(RANDOM_ORDERS)])
    score = against_random(moved[best].mean(keepdims=True), random[None], better="higher")
    return replace(score, n=effect_UN[:, 1::2].shape[1])
