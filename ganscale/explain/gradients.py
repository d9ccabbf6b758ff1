"""Maps from gradients of f: saliency, SmoothGrad, input x gradient, expected gradients.

A gradient says how f reacts to a small change of each pixel, not what the pixel contributes: the deletion and insertion
scores say how far one stands for the other. What such a map predicts for a pixel's removal (for infidelity and
completeness) is gradient x (x - baseline).

Legend: N samples, n rows of a chunk, M players.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ganscale.explain.attribution import AttributionExplainer, AttributionOptions, Maps
from ganscale.explain.base import Meter
from ganscale.explain.cells import width_of
from ganscale.explain.errors import ExplainInputError, ZeroGradientError
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.subject import Subject

SAMPLES_A_CHUNK = 4


def gradients(meter: Meter, rows: Tensor) -> Tensor:
    """Return df/dx of each row, on the CPU; every pass has exactly ``micro_batch`` rows (the last is repeated).

    Raises CallableError where a gradient is not finite.
    """
    meter.rows_forward += len(rows)
    meter.rows_backward += len(rows)
    found = []
    with torch.enable_grad():
        for part in rows.split(meter.micro_batch):
            short = meter.micro_batch - len(part)
            padded = torch.cat([part, part[-1:].expand(short, *part.shape[1:])]) if short else part
            leaf = padded.detach().to(meter.device, copy=True).requires_grad_()
            (gradient,) = torch.autograd.grad(meter.subject.fn(leaf).sum(), leaf)
            found.append(gradient[: len(part)].cpu())
    return meter.finite(torch.cat(found), "the gradient", "be finite")


def refuse_empty(maps: Tensor, x: Tensor, baseline: Tensor) -> None:
    """Raise ZeroGradientError where a whole map is exactly zero though the sample is not the baseline."""
    for row in range(len(maps)):
        if not maps[row].any() and not torch.equal(x[row], baseline[row]):
            raise ZeroGradientError(
                "the gradient",
                "not be exactly zero over a whole sample",
                "zeros everywhere",
                "explain raw logits: a saturated sigmoid, a softmax over one class or rounding leaves no gradient",
            )


class SampleMaps(AttributionExplainer):
    """Base of the methods that make whole maps of a few samples at a time. Subclasses write ``attribute``."""

    needs_gradient = True
    weighs = "pixels"
    signed = True  # whether a map's sign says the way f is pulled

    def first_round(self) -> list[Chunk]:
        """Return one chunk for every few samples."""
        starts = range(0, len(self.x), SAMPLES_A_CHUNK)
        return [Chunk(round=0, index=index, explanation=start, part=0) for index, start in enumerate(starts)]

    def rows_of(self, chunk: Chunk) -> slice:
        """Return the samples of a chunk."""
        return slice(chunk.explanation, min(chunk.explanation + SAMPLES_A_CHUNK, len(self.x)))

    def refuse(self, chunk: Chunk, data: dict[str, Any]) -> None:
        """Raise ZeroGradientError where a sample's whole map is exactly zero."""
        rows = self.rows_of(chunk)
        refuse_empty(data["maps"], self.x[rows], self.baseline[rows])

    def collect(self, partial: Partial) -> Maps:
        """Put the samples of all chunks together."""
        found = [data for _, _, data in partial.of_round(0)]
        maps = torch.cat([data["maps"] for data in found])
        effects = np.concatenate([data["effects"] for data in found]) if "effects" in found[0] else None
        return Maps(
            attribution=maps,
            weights_NM=self.sums(maps),
            effects_NM=effects,
            fx_N=np.concatenate([data["fx"] for data in found]),
            baseline_N=np.concatenate([data["baseline"] for data in found]),
            meta={"signed": self.signed, **self.facts(found)},
        )

    def facts(self, found: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what the method records about itself, ``warnings`` among it."""
        return {}


class GradientExplainer(SampleMaps):
    """Base of those whose maps need nothing else. Subclasses write ``maps``."""

    @abstractmethod
    def maps(self, rows: slice, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return "maps" [n, ...] of some samples and what else is to be kept of them."""

    def attribute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return the maps of a few samples and f at both ends."""
        rows = self.rows_of(chunk)
        x, baseline = self.x[rows], self.baseline[rows]
        return {
            "fx": meter.evaluate(self.subject.fn, len(x), lambda part: x[part]),
            "baseline": meter.evaluate(self.subject.fn, len(x), lambda part: baseline[part]),
            **self.maps(rows, chunk, meter),
        }


class SaliencyOptions(AttributionOptions):
    """Whether the gradient's size is shown, as in the paper, or its sign too."""

    absolute: bool = Field(True, description="the gradient's size; false keeps its sign")
    micro_batch: Annotated[int, Field(ge=1, le=65536)] = Field(16, description="rows of one pass: a gradient each")


class Saliency(GradientExplainer):
    """The gradient itself (Simonyan et al. 2013, arXiv:1312.6034, section 3)."""

    name = "saliency"
    summary = "how strongly f reacts to a small change of each pixel: the size of the gradient"
    Options = SaliencyOptions
    options: SaliencyOptions

    @property
    def signed(self) -> bool:
        """Whether a map's sign says the way f is pulled."""
        return not self.options.absolute

    def maps(self, rows: slice, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return gradients, and what they predict for each player's removal."""
        gradient = self.gradient(rows, chunk, meter)
        effects = self.sums(gradient * (self.x[rows] - self.baseline[rows]), rows.start)
        return {"maps": gradient.abs() if self.options.absolute else gradient, "effects": effects}

    def gradient(self, rows: slice, chunk: Chunk, meter: Meter) -> Tensor:
        """Return the gradients that the maps show."""
        return gradients(meter, self.x[rows])


class SmoothGradOptions(SaliencyOptions):
    """Of the noisy copies."""

    draws: Annotated[int, Field(ge=1, le=100_000)] = Field(32, description="noisy copies of each sample")
    micro_batch: Annotated[int, Field(ge=1, le=65536)] = Field(64, description="rows of one pass: a gradient each")
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.15, description="standard deviation of the noise, as a share of the range's width"
    )


class SmoothGrad(Saliency):
    """The mean gradient around a sample (Smilkov et al. 2017, arXiv:1706.03825, section 3)."""

    name = "smoothgrad"
    summary = "the mean gradient over noisy copies of the sample: saliency without its graininess"
    Options = SmoothGradOptions
    options: SmoothGradOptions

    def gradient(self, rows: slice, chunk: Chunk, meter: Meter) -> Tensor:
        """Return the mean gradients over the draws."""
        bounds, x = self.subject.value_range, self.x[rows]
        rngs = chunk.rngs(self.request.seed, len(x))
        width = width_of(x, bounds)
        total = torch.zeros(x.shape, dtype=torch.float64)
        for _ in range(self.options.draws):
            drawn = np.stack([rng.standard_normal(x.shape[1:]) for rng in rngs])
            noise = torch.from_numpy(drawn * self.options.noise) * width
            total += gradients(meter, (x + noise).to(x.dtype))
        return (total / self.options.draws).to(x.dtype)


class InputXGradient(GradientExplainer):
    """Gradient x (x - baseline) (Shrikumar et al. 2016, arXiv:1605.01713, section 2; there the baseline is zero)."""

    name = "input-x-gradient"
    summary = "gradient times distance from the baseline: exact for a linear function, local for others"

    def maps(self, rows: slice, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return the products."""
        return {"maps": gradients(meter, self.x[rows]) * (self.x[rows] - self.baseline[rows])}


class ExpectedGradientsOptions(AttributionOptions):
    """Points of the integrals, and what an absent part is in the curves."""

    draws: Annotated[int, Field(ge=1, le=100_000)] = Field(
        128, description="points a sample, on the ways from the other samples"
    )
    baseline: Literal["auto", "low", "mid", "mean", "blur", "zero"] | Annotated[float, Field(allow_inf_nan=False)] = (
        Field("mean", description="what stands for an absent part in the curves; the map's baselines are samples")
    )


class ExpectedGradients(GradientExplainer):
    """Integrated gradients averaged over baselines (Erion et al. 2021, arXiv:1906.10670, section 3).

    The baselines are the other samples, each equally often; the points on the way are stratified. The sum of a map is
    then near f(x) - mean f(baselines).
    """

    name = "expected-gradients"
    summary = "integrated gradients averaged over the other samples as baselines"
    Options = ExpectedGradientsOptions
    options: ExpectedGradientsOptions
    samples_apart = False  # each is another's baseline

    def __init__(self, subject: Subject, request: Request) -> None:
        count = len(request.inputs["x"])
        if count < 2:
            raise ExplainInputError(
                "inputs", "be at least 2 samples for expected-gradients", count, "use --num-samples 8"
            )
        super().__init__(subject, request)

    def maps(self, rows: slice, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return the mean products, and the mean of f over the other samples in place of f(baseline)."""
        rng, draws = chunk.rng(self.request.seed), self.options.draws
        f_N = meter.evaluate(self.subject.fn, len(self.x), lambda part: self.x[part])
        found = []
        for row in range(rows.start, rows.stop):
            others = np.delete(np.arange(len(self.x)), row)
            turn = np.concatenate([rng.permutation(others) for _ in range(-(-draws // len(others)))])[:draws]
            share = (rng.permutation(draws) + rng.random(draws)) / draws
            along = torch.from_numpy(share).to(self.x.dtype).reshape(-1, *[1] * (self.x.ndim - 1))
            away = self.x[row] - self.x[turn]
            products = gradients(meter, self.x[turn] + along * away) * away
            found.append(products.double().mean(dim=0).to(self.x.dtype))
        means = np.array([np.delete(f_N, row).mean() for row in range(rows.start, rows.stop)])
        return {"maps": torch.stack(found), "baseline": means}
