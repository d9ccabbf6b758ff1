"""What a unit likes best: an input found by ascent, beside the real pictures (or draws) that excite it most.

Images are searched for in Fourier space, low frequencies first, jittered (Olah et al. 2017, "Feature visualization"),
with a fixed length; latents on the sphere where normal ones lie. Length and phase are inside what is differentiated, so
that the best input of a linear unit is its weight.

Legend: U units, n rows, C channels, H height, W width, D latent.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ganscale.explain.base import Explainer, Meter, Options
from ganscale.explain.beside import rows_a_row
from ganscale.explain.errors import ExplainInputError
from ganscale.explain.latent.base import LatentExplainer
from ganscale.explain.layers import layer_output
from ganscale.explain.plan import Chunk, Partial
from ganscale.explain.scores import against_control
from ganscale.explain.types import Explanation
from ganscale.explain.units.networks import caller_of, layers_with_maps, maps_of, network_of

BEST = 4
DRAWS = 512


class FeatureVisOptions(Options):
    """``network``: D or C look at images, G at latents. ``units`` auto: the most varied ones of the layer."""

    network: Literal["G", "D", "C"] = Field("D", description="whose units: G, D or C")
    layer: str = Field("auto", description="auto: the last layer with a map; or a dotted name")
    units: Annotated[int, Field(ge=1, le=1024)] = Field(6, description="how many units, the most varied first")
    steps: Annotated[int, Field(ge=1, le=10_000)] = Field(200, description="steps of the search")
    jitter: Annotated[int, Field(ge=0, le=64)] = Field(1, description="pixels by which images are shifted at random")


class FeatureVis(LatentExplainer):
    """The input that excites a unit most. Stopped early it is of fewer units."""

    name = "feature-vis"
    summary = "the input that a unit likes best, found by ascent, beside the real pictures that excite it most"
    Options = FeatureVisOptions
    options: FeatureVisOptions
    primary = ("excitement_beside_best",)  # to excite more than one random input is no merit of a search
    pieces = "units"

    @property
    def samples_apart(self) -> bool:
        """Whether units are searched for apart: yes."""
        return True

    @property
    def total(self) -> int:
        """Return how many units there are."""
        return len(self._units[1])

    def place_of(self, chunk: Chunk) -> int:
        """Return which unit it is: the most varied one is the first."""
        return chunk.index

    def first(self, count: int) -> Explainer:
        """Return this explainer for its first ``count`` units."""
        return self.with_options(units=count)

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Return one chunk a unit."""
        if previous is not None:
            return []
        layer, units = self._units
        return [
            Chunk(round=0, index=k, explanation=unit, part=0, work={"layer": layer}) for k, unit in enumerate(units)
        ]

    @cached_property
    def _units(self) -> tuple[str, list[int]]:
        """The layer and its most varied units."""
        pool = self._pool()
        layer = self.options.layer
        if layer == "auto":
            layer = layers_with_maps(self, self.options.network, pool)[-1]
        excited = _excited(maps_of(self, self.options.network, layer, pool))
        return layer, excited.std(dim=0).argsort(descending=True, stable=True)[: self.options.units].tolist()

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Search for one unit's best input; returns it, what it reaches, and the best of the pool."""
        unit, layer, rng = chunk.explanation, chunk.work["layer"], chunk.rng(self.request.seed)
        pool = self._pool()
        excited = _excited(maps_of(self, self.options.network, layer, pool))[:, unit]
        best = excited.argsort(descending=True, stable=True)[:BEST]
        shape, length = tuple(pool.shape[1:]), float(pool.double().flatten(1).norm(dim=1).mean())
        make, parameters = (self._latent if len(shape) == 1 else self._image)(shape, length, rng)
        network, call = network_of(self, self.options.network), caller_of(self, self.options.network)
        optimiser = torch.optim.Adam([parameters], lr=0.05)
        kept, reached = make().detach(), -float("inf")
        for step in range(self.options.steps + 1):
            row = make()
            with torch.no_grad():
                value = float(_excited(layer_output(network, layer, lambda: call(row[None])))[0, unit])  # noqa: B023
            if value > reached:
                kept, reached = row.detach(), value
            if step == self.options.steps:
                break
            if len(shape) == 3 and self.options.jitter:
                row = row.roll(tuple(rng.integers(-self.options.jitter, self.options.jitter + 1, 2).tolist()), (1, 2))
            loss = -_excited(layer_output(network, layer, lambda: call(row[None])))[0, unit]  # noqa: B023
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        a_row = rows_a_row(network)
        meter.rows_forward += (len(pool) + 2 * self.options.steps + 1) * a_row
        meter.rows_backward += self.options.steps * a_row
        random = make_random(shape, length, rng)
        at_random = float(_excited(maps_of(self, self.options.network, layer, random[None]))[0, unit])
        return {
            "unit": unit,
            "layer": layer,
            "input": kept.cpu().numpy(),
            "reached": reached,
            "best": best.numpy(),
            "best_excited": excited[best].double().numpy(),
            "random": at_random,
        }

    def finish(self, partial: Partial) -> Explanation:
        """Put the units together."""
        found = [data for _, _, data in partial.of_round(0)]
        inputs = torch.from_numpy(np.stack([data["input"] for data in found]))
        pool, of_latents = self._pool(), self.options.network == "G"
        best = torch.from_numpy(np.stack([data["best"] for data in found]))
        pictures = (self.images(inputs), self.images(pool)) if of_latents else (inputs, pool)
        reached, real = (np.array([data[key] for data in found]) for key in ("reached", "random"))
        most = np.array([data["best_excited"][0] for data in found])
        scores = {
            "excitement": against_control(reached, real, better="higher"),
            "excitement_beside_best": against_control(reached, most, better="higher"),
        }
        values = {
            "vis_inputs": inputs,
            "vis_images": pictures[0],
            "vis_best": pictures[1][best.flatten()].unflatten(0, tuple(best.shape)),
            "vis_reached": torch.from_numpy(reached),
            "vis_best_reached": torch.from_numpy(np.stack([data["best_excited"] for data in found])),
            "vis_random": torch.from_numpy(real),
            "units": torch.tensor([data["unit"] for data in found]),
        }
        meta = {
            "network": self.options.network,
            "layer": found[0]["layer"],
            "beside": "draws" if of_latents else "pool",
        }
        return self.explanation(partial, values=values, inputs={"z": self.z}, scores=scores, meta=meta)

    def _pool(self) -> Tensor:
        """Return the inputs that a unit may like: real images (else the generator's), or latents."""
        if self.options.network == "G":
            rng = np.random.default_rng(np.random.SeedSequence(self.request.seed, spawn_key=(0, 3)))
            return torch.from_numpy(rng.standard_normal((DRAWS, self.z.shape[1]))).to(self.z.dtype)
        pool = self.images(self.z) if self.real is None else self.real
        if pool.ndim != 4:
            raise ExplainInputError("inputs['real']", "be images [P, C, H, W]", tuple(pool.shape), "leave them out")
        return pool

    def _latent(self, shape: tuple[int, ...], length: float, rng: np.random.Generator) -> tuple[Any, Tensor]:
        parameters = torch.from_numpy(rng.standard_normal(shape)).float().to(self.subject.device).requires_grad_()
        return lambda: parameters / parameters.norm().clamp_min(1e-12) * shape[0] ** 0.5, parameters

    def _image(self, shape: tuple[int, ...], length: float, rng: np.random.Generator) -> tuple[Any, Tensor]:
        channels, height, width = shape
        down, across = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
        scale = 1 / (down.square() + across.square()).sqrt().clamp_min(1 / max(height, width))
        drawn = rng.standard_normal((channels, height, width // 2 + 1, 2)) * 0.1
        parameters = torch.from_numpy(drawn).float().to(self.subject.device).requires_grad_()

        def make() -> Tensor:
            spectrum = torch.view_as_complex(parameters) * scale.to(parameters.device)
            image = torch.fft.irfft2(spectrum, s=(height, width))
            image = image / image.norm().clamp_min(1e-12) * length
            return image.clamp(-1, 1)  # part of what is searched: a pixel at its end stays there

        return make, parameters


def make_random(shape: tuple[int, ...], length: float, rng: np.random.Generator) -> Tensor:
    """Return one random input of the given length (an image inside [-1, 1])."""
    drawn = torch.from_numpy(rng.standard_normal(shape)).float()
    drawn = drawn / drawn.norm() * (length if len(shape) == 3 else shape[0] ** 0.5)
    return drawn.clamp(-1, 1) if len(shape) == 3 else drawn


def _excited(output: Tensor) -> Tensor:
    """Return each unit's mean over places [n, C]."""
    return output.flatten(2).mean(dim=2) if output.ndim > 2 else output
