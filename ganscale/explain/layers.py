"""Layers by dotted name, as in ``named_modules()``, and the first layer that sees the latent.

Legend: N batch, D latent.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ganscale.explain.beside import Beside, own_rows
from ganscale.explain.errors import LayerError
from ganscale.explain.labels import label_numbers, plain_network

WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel and torch.compile put these in front
LINEAR_LAYERS = (nn.Linear, nn.ConvTranspose2d, nn.Conv2d)


def layer_names(network: nn.Module) -> dict[str, nn.Module]:
    """Return every layer by its dotted name, wrappers' prefixes looked through."""
    found = {}
    for name, module in plain_network(network).named_modules():
        for prefix in WRAPPERS:
            name = f".{name}.".replace(f".{prefix}", ".").strip(".")
        if name and name not in found:
            found[name] = module
    return found


def find_layer(network: nn.Module, name: str) -> nn.Module:
    """Return the layer ``name``; raises LayerError that lists the nearest names and then all of them."""
    layers = layer_names(network)
    if name not in layers:
        near = difflib.get_close_matches(name, layers, n=3, cutoff=0.4)
        first = f"did you mean {' or '.join(near)}? " if near else ""
        raise LayerError("layer", "be a layer of the network", name, f"{first}all layers: {', '.join(layers)}")
    return layers[name]


def layer_output(network: nn.Module, name: str, forward: Callable[[], object]) -> Tensor:
    """Return what layer ``name`` of ``network`` puts out [n, ...] while ``forward()`` runs, with its graph.

    ``name#i`` is the layer's i-th use in that forward (from 0); a layer used several times must be named so. Raises
    LayerError.
    """
    return own_rows(network, layer_calls(network, name, forward))


def layer_calls(network: nn.Module, name: str, forward: Callable[[], object]) -> list[Tensor]:
    """Return what ``layer_output`` is made of: one tensor, or one for each row of a critic beside companions."""
    plain, _, use = name.partition("#")
    if use and not use.isdigit():
        raise LayerError("layer", "be NAME or NAME#i with a whole number i", name, f"for example {plain}#0")
    found: list[Tensor] = []
    forwards: list[int] = []
    handles = [find_layer(network, plain).register_forward_hook(lambda module, inputs, output: found.append(output))]
    if isinstance(network, Beside):
        handles.append(network.critic.register_forward_pre_hook(lambda module, inputs: forwards.append(len(found))))
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    uses = len(found) // max(1, len(forwards))  # in one forward
    if uses > 1 and not use:
        raise LayerError(
            f"layer {name}", "be used once in a forward", f"{uses} uses", f"write {name}#0 to {name}#{uses - 1}"
        )
    if uses <= int(use or 0):
        block = plain.rpartition(".")[0]
        remedy = f"name what uses its weights, such as {block}" if block and not uses else "name another layer or use"
        raise LayerError(f"layer {name}", "be used in a forward", f"{uses} uses", remedy)
    chosen = found[int(use or 0) :: uses]
    if not isinstance(chosen[0], Tensor):
        raise LayerError(f"layer {name}", "put out one tensor", type(chosen[0]).__name__, "name a layer inside it")
    return chosen


def first_latent_layer(generator: nn.Module, z_ND: Tensor) -> str:
    """Return the name of the first linear or convolutional layer that receives z itself; raises LayerError.

    Found by one forward pass, not by order of definition, which says nothing about the order of use.
    """
    layers = {name: layer for name, layer in layer_names(generator).items() if isinstance(layer, LINEAR_LAYERS)}
    seen: list[str] = []
    wanted = z_ND.flatten(1)[:, : z_ND.shape[1] - label_numbers(generator)]

    def watch(name: str) -> object:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs and inputs[0].numel() == wanted.numel() and torch.equal(inputs[0].reshape(wanted.shape), wanted):
                seen.append(name)

        return layers[name].register_forward_pre_hook(hook)

    handles = [watch(name) for name in layers]
    try:
        with torch.no_grad():
            generator(z_ND)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise LayerError(
            "the generator",
            "pass z unchanged to a linear or convolutional layer",
            "none that receives it",
            f"name the layer with layer=...; it has {', '.join(layers) or 'no such layers'}",
        )
    return seen[0]


def latent_matrix(layer: nn.Module, name: str, latent: int) -> Tensor:
    """Return the float64 matrix [D, outputs] with which ``layer`` maps a latent z to its output z @ matrix.

    Linear weights are [outputs, D], ConvTranspose2d [D, outputs, k, k] applied to a 1x1 map; Conv2d must be 1x1.
    Raises LayerError where the layer does not take D numbers.
    """
    if isinstance(layer, nn.Linear):
        matrix = layer.weight.T
    elif isinstance(layer, nn.ConvTranspose2d) and layer.groups == 1:
        matrix = layer.weight.flatten(1)
    elif isinstance(layer, nn.Conv2d) and layer.groups == 1 and set(layer.kernel_size) == {1}:
        matrix = layer.weight.flatten(1).T
    else:
        raise LayerError(
            f"layer {name}", "be Linear, ConvTranspose2d or a 1x1 Conv2d", type(layer).__name__, "name another"
        )
    if matrix.shape[0] != latent:
        raise LayerError(
            f"layer {name}", f"take the {latent} numbers of z", matrix.shape[0], "name the layer that sees z"
        )
    return matrix.detach().cpu().double()
