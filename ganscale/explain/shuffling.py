"""A network with its weights shuffled: what it would be, had it learned nothing, with weights of the same sizes.

Adebayo et al. 2018 (arXiv:1810.03292, section 3) draw the weights anew; permuting each tensor's entries does so from
its own distribution, which also fits layers whose initialisation is unknown here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

POWER_STEPS = 20  # of the power iteration that finds a shuffled matrix's spectral norm


def has_weights(network: nn.Module | None) -> bool:
    """Return whether there is anything to shuffle."""
    return network is not None and any(p.numel() > 1 and p.is_floating_point() for p in network.parameters())


def weighted_layers(network: nn.Module) -> list[str]:
    """Return the dotted names of the layers that hold parameters of their own, in order of definition."""
    return [name for name, layer in network.named_modules() if any(True for _ in layer.parameters(recurse=False))]


@contextmanager
def shuffled_weights(network: nn.Module, *, seed: int, layers: Sequence[str] | None = None) -> Iterator[None]:
    """Permute the entries of every parameter (of the named ``layers`` alone) and put them back afterwards.

    A layer's permutation follows from the seed and the layer's place, so that shuffling more layers changes no other.
    """
    saved = {name: tensor.clone() for name, tensor in network.state_dict(keep_vars=False).items()}
    try:
        with torch.no_grad():
            for place, (name, parameter) in enumerate(network.named_parameters()):
                if layers is None or _owner(name) in layers:
                    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(place, 1 << 19)))
                    order = torch.from_numpy(rng.permutation(parameter.numel())).to(parameter.device)
                    parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))
            _renew_spectral_norms(network)
        yield
    finally:
        with torch.no_grad():
            for name, tensor in network.state_dict(keep_vars=True).items():
                tensor.copy_(saved[name])


def _owner(name: str) -> str:
    """Return the layer of a parameter; a parametrised weight belongs to the layer that uses it."""
    return name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]


def _renew_spectral_norms(network: nn.Module) -> None:
    """Find the singular vectors of the shuffled matrices: the stored ones belong to the trained ones."""
    for layer in network.modules():
        for hook in layer._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                for _ in range(POWER_STEPS):
                    setattr(layer, hook.name, hook.compute_weight(layer, do_power_iteration=True))
        for chain in getattr(layer, "parametrizations", {}).values():
            for step in chain:
                if isinstance(step, _SpectralNorm) and hasattr(step, "_u"):
                    step._power_method(step._reshape_weight_to_matrix(chain.original), POWER_STEPS)
