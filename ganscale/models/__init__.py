"""Generators, critics and autoencoders; one file a family. A family is added by one entry in ``MODELS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from ganscale.models.autoencoder import (
    Autoencoder,
    NoCritic,
    ReconstructionCritic,
    conv_autoencoder,
    linear_autoencoder,
)
from ganscale.models.dcgan import DCGANCritic, DCGANGenerator
from ganscale.models.mlp import MLPCritic, MLPGenerator

if TYPE_CHECKING:  # networks need torch alone; a GPU machine may lack what reads settings
    from ganscale.config import RunConfig

__all__ = [
    "MODELS",
    "Autoencoder",
    "ModelFamily",
    "NoCritic",
    "ReconstructionCritic",
    "build_critic",
    "build_generator",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFamily:
    """One architecture: how to build its generator (z [N, D] -> [N, C, H, W]) and critic ([N, C, H, W] -> [N])."""

    summary: str
    generator: Callable[[RunConfig], nn.Module]
    critic: Callable[[RunConfig], nn.Module]


def _dcgan_generator(config: RunConfig) -> nn.Module:
    data, model = config.data, config.model
    return DCGANGenerator(latent=model.latent, channels=data.channels, resolution=data.resolution, width=model.width)


def _dcgan_critic(config: RunConfig) -> nn.Module:
    return DCGANCritic(channels=config.data.channels, resolution=config.data.resolution, width=config.model.width)


def _mlp_generator(config: RunConfig) -> nn.Module:
    data, model = config.data, config.model
    return MLPGenerator(
        latent=model.latent,
        channels=data.channels,
        resolution=data.resolution,
        width=model.width,
        bounded=data.channels != 2,  # two channels are points of the plane, which have no natural bound
    )


def _mlp_critic(config: RunConfig) -> nn.Module:
    return MLPCritic(channels=config.data.channels, resolution=config.data.resolution, width=config.model.width)


def _autoencoder(config: RunConfig) -> nn.Module:
    data, model = config.data, config.model
    return conv_autoencoder(
        latent=model.latent,
        channels=data.channels,
        resolution=data.resolution,
        width=model.width,
        variational=config.loss.name == "elbo",
    )


def _linear_autoencoder(config: RunConfig) -> nn.Module:
    data = config.data
    return linear_autoencoder(
        latent=config.model.latent,
        channels=data.channels,
        resolution=data.resolution,
        variational=config.loss.name == "elbo",
    )


def _no_critic(config: RunConfig) -> nn.Module:
    return NoCritic()


MODELS: dict[str, ModelFamily] = {
    "mlp": ModelFamily(summary="fully connected, four hidden layers", generator=_mlp_generator, critic=_mlp_critic),
    "dcgan": ModelFamily(
        summary="conv-transpose generator, strided critic", generator=_dcgan_generator, critic=_dcgan_critic
    ),
    "autoencoder": ModelFamily(
        summary="strided encoder, the DCGAN generator as decoder, no critic", generator=_autoencoder, critic=_no_critic
    ),
    "linear-autoencoder": ModelFamily(
        summary="one linear layer each way, no critic", generator=_linear_autoencoder, critic=_no_critic
    ),
}


def build_generator(config: RunConfig) -> nn.Module:
    """Build the generator that ``config.model.generator`` names; initial weights come from torch's global RNG."""
    return MODELS[config.model.generator].generator(config)


def build_critic(config: RunConfig) -> nn.Module:
    """Build the critic that ``config.model.critic`` names; initial weights come from torch's global RNG."""
    return MODELS[config.model.critic].critic(config)
