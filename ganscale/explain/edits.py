"""Changing what a layer puts out while a network runs, and undoing it on exit.

Legend: n rows, C channels of a layer's output, h height, w width of its map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ganscale.explain.errors import LayerError
from ganscale.explain.layers import find_layer, layer_names

Edit = Callable[[Tensor], Tensor]


@contextmanager
def edited(network: nn.Module, name: str, edit: Edit) -> Iterator[None]:
    """Let layer ``name`` of ``network`` put out ``edit(output)``, of the same shape, until the end of the block.

    ``name#i`` edits its i-th use in each forward alone. Raises LayerError for an unknown layer and one whose output is
    no tensor.
    """
    plain, _, use = name.partition("#")
    if use and not use.isdigit():
        raise LayerError("layer", "be NAME or NAME#i with a whole number i", name, f"for example {plain}#0")
    uses = 0

    def restart(module: nn.Module, inputs: tuple[object, ...]) -> None:
        nonlocal uses
        uses = 0

    def hook(module: nn.Module, inputs: tuple[object, ...], output: object) -> Tensor:
        nonlocal uses
        if not isinstance(output, Tensor):
            raise LayerError(f"layer {name}", "put out one tensor", type(output).__name__, "name a layer inside it")
        uses += 1
        return edit(output) if not use or uses == int(use) + 1 else output

    handles = [network.register_forward_pre_hook(restart), find_layer(network, plain).register_forward_hook(hook)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def used_layers(network: nn.Module, rows: Tensor) -> dict[str, tuple[int, ...]]:
    """Return every layer that has parameters and puts out one tensor, in order of use, with its shape (C, ...) a row.

    Containers that only pass through what is inside them are left out.
    """
    found: dict[str, tuple[int, ...]] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            if isinstance(output, Tensor) and output.ndim >= 2 and len(output) == len(rows):
                found.setdefault(name, tuple(output.shape[1:]))

        return hook

    layers = {
        name: layer
        for name, layer in layer_names(network).items()
        if not isinstance(layer, (nn.Sequential, nn.ModuleList)) and any(True for _ in layer.parameters())
    }
    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            network(rows)
    finally:
        for handle in handles:
            handle.remove()
    return found


def of_channels(values: Tensor, output: Tensor) -> Tensor:
    """Return one number a channel, [C] or [n, C], in a shape that spreads over the layer's ``output`` [n, C, ...]."""
    return values.to(output).view(-1, output.shape[1], *(1 for _ in output.shape[2:]))


def ablate(units: Tensor, to: float = 0.0) -> Edit:
    """Return the edit that sets the given channels (int64 [u]) to a constant."""

    def edit(output: Tensor) -> Tensor:
        kept = torch.ones(output.shape[1], dtype=torch.bool, device=output.device)
        kept[units.to(output.device)] = False
        return torch.where(of_channels(kept, output) > 0, output, output.new_full((), to))

    return edit


def shift(amounts: Tensor) -> Edit:
    """Return the edit that adds one number to each channel [C], or to each row's [n, C], everywhere."""
    return lambda output: output + of_channels(amounts, output)


def put_out(value: Tensor) -> Edit:
    """Return the edit that puts ``value``, which spreads over the output's shape, in its place."""
    return lambda output: torch.zeros_like(output) + value.to(output)
