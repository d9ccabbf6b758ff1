"""Which layers of a generator carry what: each one's output is mixed with that of another latent.

In a chain of layers the whole output of any layer decides on all that follows, so a whole swap always gives the other
picture. What tells layers apart is a part of it: half of the channels, or the channels' means and deviations alone
(their style; Huang and Belongie 2017, AdaIN, arXiv:1703.06868, eq. 8), which leaves the layout where it was.

Legend: N latents, L layers, n rows, C channels.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganscale.explain.base import Meter
from ganscale.explain.edits import Edit, edited
from ganscale.explain.errors import ExplainInputError
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.scores import against_shuffled
from ganscale.explain.subject import Subject
from ganscale.explain.types import Explanation
from ganscale.explain.units.layer_effects import ROWS_A_CHUNK, SHOWN, LayerMethod

MIXED = 4  # latents on each axis of the matrix of mixtures
TINY = 1e-6


class LayerSwap(LayerMethod):
    """Takes half of each layer's channels from another latent."""

    name = "layer-swap"
    summary = "which layers of the generator carry what: half of each one's channels are taken from another latent"
    primary = ("share_spread",)
    part = "half of the channels"
    rule = "have 2 channels or more in a layer"
    why = "half of a single channel is the whole layer"  # which always gives the other picture

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        if len(self.z) < 2:
            raise ExplainInputError(
                "inputs['z']", f"hold two latents or more for {self.name}", 1, "add --num-samples 8"
            )

    @cached_property
    def _wide(self) -> tuple[list[str], list[str]]:
        """Return the layers of which a part can be mixed, and those of which none can."""
        every = super()._layers
        with self.subject.quiet(), torch.no_grad():
            outputs = self._run(self.z[:2].to(self.subject.device), every)[1]
        narrow = [name for name in every if not self.has_parts(outputs[name])]
        kept = [name for name in every if name not in narrow]
        if not kept:
            got = f"{', '.join(narrow)}: {self.why}"
            raise ExplainInputError("layers", f"{self.rule} for {self.name}", got, "name others with --set layers=...")
        return kept, narrow

    @property
    def _layers(self) -> list[str]:
        return self._wide[0]

    def has_parts(self, output: Tensor) -> bool:
        """Whether a part of an output [n, C, ...] can be taken from another."""
        return output.shape[1] > 1

    def mix(self, mine: Tensor, theirs: Tensor, rng: np.random.Generator) -> Tensor:
        """Return the mixture of two outputs [n, C, ...]."""
        taken = torch.from_numpy(rng.permutation(mine.shape[1]) < mine.shape[1] / 2).to(mine.device)
        return torch.where(taken.view(1, -1, *(1 for _ in mine.shape[2:])), theirs, mine)

    def partners(self, rows: np.ndarray) -> Tensor:
        """Return the latents from which those of ``rows`` take [n, D]: two by two, each the other's; a last single one
        takes from the first.
        """
        other = rows ^ 1
        return self.z[np.where(other < len(self.z), other, 0)]

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return how far each picture goes towards its partner's, float64 [L, 1, n]: with a whole swap and mixed.

        The share is 1 - |mixed - partner| / |own - partner| in pixels: 0 where nothing happens, 1 for the partner.
        """
        rows = np.arange(chunk.explanation, min(chunk.explanation + ROWS_A_CHUNK, len(self.z)))
        z, partner = (part.to(self.subject.device) for part in (self.z[rows], self.partners(rows)))
        rng = chunk.rng(self.request.seed)
        with torch.no_grad():
            (own, mine), (other, theirs) = self._run(z), self._run(partner)
            apart = (own - other).double().flatten(1).norm(dim=1)
            whole, mixed = [], []
            for name in self._layers:
                for found, value in ((whole, theirs[name]), (mixed, self.mix(mine[name], theirs[name], rng))):
                    with edited(self.subject.generator, name, replaced(value)):
                        found.append(_share(self.subject.generator(z), other, apart))
            meter.rows_forward += len(z) * 4 * len(self._layers)
        return {"whole": np.array(whole)[:, None], "mixed": np.array(mixed)[:, None]}

    def finish(self, partial: Partial) -> Explanation:
        """Put the shares together; the control shuffles the layers of each pair."""
        effects = self._effects(partial)
        mixed_LN = effects["mixed"][:, 0]
        rng = np.random.default_rng(np.random.SeedSequence(self.request.seed, spawn_key=(1, 0)))
        score, shuffled = against_shuffled(mixed_LN, rng)
        values = {
            "share_whole": torch.from_numpy(effects["whole"][:, 0].mean(axis=1)),
            "share_mixed": torch.from_numpy(mixed_LN.mean(axis=1)),
            "shuffled_spread": torch.from_numpy(shuffled),
            **self._mixed_pictures(),
        }
        narrow = self._wide[1]
        notes = [f"{', '.join(narrow)}: left out; {self.why}"] if narrow else []
        meta = {"layers": self._layers, "part": self.part, "left_out": narrow, "warnings": notes}
        scores = {"share_spread": score}
        return self.explanation(partial, values=values, inputs={"z": self.z}, scores=scores, meta=meta)

    def _mixed_pictures(self) -> dict[str, Tensor]:
        rows = np.arange(min(SHOWN, len(self.z)))
        z, partner = (part.to(self.subject.device) for part in (self.z[rows], self.partners(rows)))
        rng = np.random.default_rng(np.random.SeedSequence(self.request.seed, spawn_key=(0, 0)))
        mixed = []
        with self.subject.quiet(), torch.no_grad():
            (own, mine), (other, theirs) = self._run(z), self._run(partner)
            for name in self._layers:
                with edited(self.subject.generator, name, replaced(self.mix(mine[name], theirs[name], rng))):
                    mixed.append(self.subject.generator(z).cpu())
        return {"layer_plain": own.cpu(), "layer_partner": other.cpu(), "layer_edited": torch.stack(mixed)}


class StyleMixing(LayerSwap):
    """Takes each layer's style, the channels' means and deviations, from another latent."""

    name = "style-mixing"
    summary = "which layers of the generator carry style: channels' means and deviations are taken from another latent"
    part = "means and deviations of the channels"
    rule = "have a map in a layer"
    why = "without a map a channel is a single number and has no style"  # it would differ from all others by nature

    def has_parts(self, output: Tensor) -> bool:
        """Whether the channels have means and deviations, being maps."""
        return output.ndim > 2

    def mix(self, mine: Tensor, theirs: Tensor, rng: np.random.Generator) -> Tensor:
        """Return the own output with the other's mean and deviation in each channel."""
        (mean, spread), (other_mean, other_spread) = (_statistics(part) for part in (mine, theirs))
        return (mine - mean) / spread.clamp_min(TINY) * other_spread + other_mean

    def finish(self, partial: Partial) -> Explanation:
        """Add the matrix of mixtures: layouts down, styles across, at the layer whose style does most."""
        found = super().finish(partial)
        layer = self._layers[int(found.values["share_mixed"].argmax())]
        count = min(MIXED, len(self.z))
        z = self.z[:count].to(self.subject.device)
        rng = np.random.default_rng(0)
        grid = []
        with self.subject.quiet(), torch.no_grad():
            own, outputs = self._run(z)
            for row in range(count):
                mine = outputs[layer][row : row + 1].expand_as(outputs[layer])
                with edited(self.subject.generator, layer, replaced(self.mix(mine, outputs[layer], rng))):
                    grid.append(self.subject.generator(z).cpu())
        found.values["mixing_matrix"], found.values["mixing_sources"] = torch.stack(grid), own.cpu()
        found.meta["mixing_layer"] = layer
        return found


def replaced(value: Tensor) -> Edit:
    """Return the edit that puts ``value`` in the output's place."""
    return lambda output: value


def _statistics(output: Tensor) -> tuple[Tensor, Tensor]:
    axes = tuple(range(2, output.ndim))
    return output.mean(dim=axes, keepdim=True), output.std(dim=axes, keepdim=True, correction=0)


def _share(mixed: Tensor, other: Tensor, apart: Tensor) -> np.ndarray:
    left = (mixed - other).double().flatten(1).norm(dim=1)
    return (1 - left / apart.clamp_min(1e-12)).cpu().numpy()
