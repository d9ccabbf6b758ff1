"""Which network of a subject is looked into, and what its layers put out on its own inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ganscale.explain.beside import Beside
from ganscale.explain.edits import used_layers
from ganscale.explain.errors import ExplainTargetError
from ganscale.explain.labels import plain_network
from ganscale.explain.latent.base import LatentExplainer
from ganscale.explain.layers import layer_output
from ganscale.explain.subject import Earlier

WORDS = {"G": "generator", "D": "critic", "C": "classifier"}
A_PASS = 64


def network_of(explainer: LatentExplainer, which: str) -> nn.Module:
    """Return the network: G, D or C; raises ExplainTargetError where the subject lacks it or it is no network."""
    found = getattr(explainer.subject, WORDS[which])
    network = getattr(found, "model", found) if which == "C" else found
    if not isinstance(network, nn.Module):
        rule = f"have a {WORDS[which]} that is a network for {explainer.name}"
        remedy = "pass --classifier in-domain" if which == "C" else "choose another with network=G, D or C"
        raise ExplainTargetError("the subject", rule, explainer.subject.name, remedy)
    return network


def caller_of(explainer: LatentExplainer, which: str) -> Callable[[Tensor], object]:
    """Return what is called with latents (G) or images in [-1, 1] (D, C) to run the network."""
    network_of(explainer, which)
    return getattr(explainer.subject, WORDS[which])


def maps_of(explainer: LatentExplainer, which: str, layer: str, rows: Tensor) -> Tensor:
    """Return the layer's outputs [n, C, ...] on these rows, on the CPU."""
    network, call = network_of(explainer, which), caller_of(explainer, which)
    parts = []
    with explainer.subject.quiet(), torch.no_grad():
        for part in rows.split(A_PASS):
            part = part.to(explainer.subject.device)
            parts.append(layer_output(network, layer, lambda: call(part)).cpu())  # noqa: B023 - called at once
    return torch.cat(parts)


def maps_at(earlier: Sequence[Earlier], which: str, layer: str, rows: Tensor) -> list[Tensor]:
    """Return the outputs [n, C, ...] on these rows of a layer of G or D at each earlier time, on the CPU."""
    found = []
    for before in earlier:
        network = before.generator if which == "G" else before.critic
        found.append(layer_output(network, layer, lambda: called(network, rows)).cpu())  # noqa: B023 - at once
    return found


@torch.no_grad()
def called(network: nn.Module, rows: Tensor) -> Tensor:
    """Return ``network(rows)``, computed where the network lives."""
    device = next((tensor.device for tensor in (*network.parameters(), *network.buffers())), rows.device)
    return network(rows.to(device))


def layers_with_maps(explainer: LatentExplainer, which: str, rows: Tensor) -> list[str]:
    """Return the layers whose output has more than one place, in order of use."""
    network, call = network_of(explainer, which), caller_of(explainer, which)
    rows = rows[:2].to(explainer.subject.device)
    if isinstance(network, Beside):  # its layers see groups: one row with its companions
        network, rows = network.critic, torch.cat([rows[:1], network.companions.to(rows)])
        call = network

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = plain_network(network)

        def forward(self, x: Tensor) -> object:
            return call(x)

    with explainer.subject.quiet():
        used = used_layers(Called(), rows)
    names = {name.removeprefix("inner").strip("."): shape for name, shape in used.items()}
    maps = [name for name, shape in names.items() if name and len(shape) == 3 and min(shape[1:]) > 1]
    return [name for name in maps if not any(name.startswith(f"{other}.") for other in maps)]
