"""Single units of a generator's layers, taken away one at a time beside as many random ones of the same layer.

The units that vary most over latents are looked at; two things are asked of them. How much changes without one, and
whether it changes a place of its own: on other latents the same one again, and not that which another unit changes.

Legend: L layers, U units of a layer, N latents, n rows, K numbers of a coarse picture, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ganscale.explain.edits import Edit, edited, of_channels
from ganscale.explain.likeness.units_to_logit import most_varied
from ganscale.explain.scores import against_control
from ganscale.explain.types import Score

COARSE = 8  # pixels a side of the pictures of changes that are compared

Compare = Callable[[Tensor], dict[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Units:
    """For each layer its most varied units, then as many random ones of the rest: int64 [2, U], U its own."""

    of_layer: dict[str, np.ndarray]

    @property
    def layers(self) -> list[str]:
        """Return the layers that have two units or more: of a single one there is no other to compare with."""
        return [name for name, pair in self.of_layer.items() if pair.shape[1]]

    def table(self, rows: dict[str, np.ndarray], fill: float) -> np.ndarray:
        """Return rows [U] of the layers as one table [L, U], filled up where a layer has fewer units or none."""
        width = max((pair.shape[1] for pair in self.of_layer.values()), default=0)
        cut = (rows.get(name, np.zeros(0)) for name in self.of_layer)
        return np.stack([np.pad(row.astype(float), (0, width - len(row)), constant_values=fill) for row in cut])


def choose_units(outputs: dict[str, Tensor], count: int, rng: np.random.Generator) -> Units:
    """Choose up to ``count`` units of each layer, at most half of them, by what it puts out [n, C, ...]."""
    found = {}
    for name, output in outputs.items():
        order = most_varied(output, output.shape[1])
        size = min(count, len(order) // 2)
        found[name] = np.stack([order[:size], rng.choice(order[size:], size, replace=False)])
    return Units(of_layer=found)


def without_unit(unit: int, mean: Tensor, amount: float) -> Edit:
    """Return the edit that brings one channel of an output to ``mean`` [1, C, ...], by ``amount`` of the way."""

    def edit(output: Tensor) -> Tensor:
        away = torch.zeros(output.shape[1], device=output.device)
        away[unit] = amount
        share = of_channels(away, output)
        return output * (1 - share) + mean.to(output) * share

    return edit


def look(
    generator: torch.nn.Module,
    z: Tensor,
    units: Units,
    edit: Callable[[str, int], Edit],
    compare: Compare,
    plain: Tensor,
    first: int,
) -> dict[str, dict[str, Any]]:
    """Return for each layer what the rows without one unit look like beside ``plain`` [n, C, H, W].

    ``effects`` of each kind [2, U, n], and where the picture changes: absolute changes in coarse pixels, summed over
    even and over odd latents [2, U, 2, K], float32; ``first`` is the place of the first row among all latents.
    """
    is_odd = (torch.arange(first, first + len(z)) % 2 == 1).to(plain.device)
    found = {}
    for name in units.layers:
        pair = units.of_layer[name]
        effects: dict[str, list[np.ndarray]] = {}
        changes = []
        for unit in pair.ravel():
            with edited(generator, name, edit(name, int(unit))):
                changed = generator(z)
            for key, value in compare(changed).items():
                effects.setdefault(key, []).append(value)
            coarse = adaptive_avg_pool2d((changed - plain).abs(), COARSE).double().flatten(1)
            changes.append(torch.stack([coarse[~is_odd].sum(dim=0), coarse[is_odd].sum(dim=0)]))
        shape = pair.shape
        found[name] = {
            "effects": {key: np.stack(rows).reshape(*shape, len(z)) for key, rows in effects.items()},
            "changes": torch.stack(changes).reshape(*shape, 2, -1).float().cpu().numpy(),
        }
    return found


def results(units: Units, parts: list[dict[str, dict[str, Any]]]) -> tuple[dict[str, Tensor], dict[str, Score]]:
    """Return the tables of all latents' parts and the two scores, each against the random units of the same layers.

    A table's row is a layer's; where ``units`` is -1 there is none, and a unit that changes nothing is like no other.
    """
    values: dict[str, np.ndarray] = {
        "units": units.table({name: pair[0] for name, pair in units.of_layer.items()}, -1).astype(np.int64),
        "units_of_chance": units.table({name: pair[1] for name, pair in units.of_layer.items()}, -1).astype(np.int64),
    }
    layers = units.layers
    effects = {
        key: {name: np.concatenate([part[name]["effects"][key] for part in parts], axis=2) for name in layers}
        for key in parts[0][layers[0]]["effects"]
    }
    for key, by_layer in effects.items():
        for place, words in enumerate(("unit_effect", "unit_effect_of_chance")):
            means = {name: array[place].mean(axis=1) for name, array in by_layer.items()}
            values[f"{words}_{key}"] = units.table(means, 0)
    pixels = [np.concatenate([array[place] for array in effects["pixels"].values()]) for place in (0, 1)]
    scores = {"unit_effect": against_control(*(rows.mean(axis=0) for rows in pixels), better="higher")}
    own = {name: _likeness(sum(part[name]["changes"].astype(float) for part in parts)) for name in layers}
    specific = against_control(*(np.concatenate(side) for side in zip(*own.values(), strict=True)), better="higher")
    if specific.n:  # one latent has no other half
        values["unit_specificity"] = units.table({name: np.nan_to_num(pair[0]) for name, pair in own.items()}, 0)
        scores["unit_specificity"] = specific
    return {name: torch.from_numpy(array) for name, array in values.items()}, scores


def _likeness(changes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each unit how alike (cosine) the places are that it changes on even and on odd latents, and those of
    a random unit on odd ones. ``changes`` [2, U, 2, K]; NaN where a unit changes nothing.
    """
    even, odd, other = changes[0, :, 0], changes[0, :, 1], changes[1, :, 1]
    return _cosines(even, odd), _cosines(even, other)


def _cosines(one_UK: np.ndarray, other_UK: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(one_UK, axis=1) * np.linalg.norm(other_UK, axis=1)
    return np.divide((one_UK * other_UK).sum(axis=1), lengths, out=np.full(len(one_UK), np.nan), where=lengths > 0)
