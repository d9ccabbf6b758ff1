"""Integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365, eq. 1), by captum, until its sum is complete.

Legend: N samples, n samples of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ganscale.explain.attribution import AttributionOptions
from ganscale.explain.base import Meter
from ganscale.explain.gradients import SampleMaps, gradients
from ganscale.explain.latent_path import integrate_from_prior
from ganscale.explain.plan import Chunk

FIRST_STEPS, MOST_STEPS = 50, 800


class IntegratedGradientsOptions(AttributionOptions):
    """How finely the path is followed."""

    steps: Annotated[int, Field(ge=1, le=10000)] | Literal["auto"] = Field(
        "auto", description="points of the Gauss-Legendre rule; auto: 50, doubled until the gap is within tolerance"
    )
    tolerance: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        1e-2, description="steps=auto: the completeness gap that will do"
    )


class IntegratedGradients(SampleMaps):
    """Gradients along the straight path from the baseline, times the way: complete, and exact for a linear function."""

    name = "integrated-gradients"
    summary = "pixel sensitivity along the path from a baseline; sums to f(x) - f(baseline) (captum)"
    Options = IntegratedGradientsOptions
    options: IntegratedGradientsOptions
    takes_prior = True

    def attribute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return maps, ends and the steps used for a few samples."""
        rows = self.rows_of(chunk)
        x, baseline = self.x[rows], self.baseline[rows]
        fx_n = meter.evaluate(self.subject.fn, len(x), lambda part: x[part])
        if self.draws is None:
            baseline_n = meter.evaluate(self.subject.fn, len(x), lambda part: baseline[part])
        else:
            expected = meter.evaluate(self.subject.fn, len(self.draws), lambda part: self.draws[part]).mean()
            baseline_n = np.full(len(x), expected)
        steps = FIRST_STEPS if self.options.steps == "auto" else self.options.steps
        while True:
            maps = self._integrate(x, baseline, steps, meter) if self.draws is None else self._turn(x, steps, meter)
            gap = _gap(maps, fx_n, baseline_n)
            if self.options.steps != "auto" or gap <= self.options.tolerance or steps >= MOST_STEPS:
                break
            steps *= 2
        return {"maps": maps, "fx": fx_n, "baseline": baseline_n, "steps": steps, "gap": gap}

    def facts(self, found: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the steps used, and a warning where they were too few."""
        worst, warnings = max(data["gap"] for data in found), []
        if worst > self.options.tolerance:
            warnings.append(
                f"completeness gap {worst:.2g} is above {self.options.tolerance:g} after {found[0]['steps']} steps; "
                "the function is rough along the path"
            )
        return {
            "steps": [data["steps"] for data in found],
            "rule": "gausslegendre",
            "path": "straight" if self.draws is None else "great circle",
            "peers": {"captum": version("captum")},
            "warnings": warnings,
        }

    def _turn(self, x: Tensor, steps: int, meter: Meter) -> Tensor:
        found = [integrate_from_prior(lambda rows: gradients(meter, rows), self.draws, z, steps) for z in x]
        return torch.stack(found).to(x.dtype)

    def _integrate(self, x: Tensor, baseline: Tensor, steps: int, meter: Meter) -> Tensor:
        from captum.attr import IntegratedGradients as CaptumIntegratedGradients  # seconds to import, so only here

        meter.rows_forward += steps * len(x)
        meter.rows_backward += steps * len(x)
        device = self.subject.device
        with torch.enable_grad():
            maps = CaptumIntegratedGradients(_plain(self.subject.fn)).attribute(
                x.to(device),
                baselines=baseline.to(device),
                n_steps=steps,
                method="gausslegendre",
                internal_batch_size=max(meter.micro_batch, len(x)),
            )
        return meter.finite(maps.detach().cpu().to(x.dtype), "the gradient", "be finite")


def _plain(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Hide a module from captum behind a function, so that it takes no interest in its hooks or device."""
    return lambda rows: fn(rows)


def _gap(maps: Tensor, fx_n: np.ndarray, baseline_n: np.ndarray) -> float:
    """Return the largest gap over the larger of |f(x)| and |f(baseline)|; of controls, where they are finite."""
    gap_n = np.abs(maps.double().flatten(1).sum(1).numpy() - (fx_n - baseline_n))
    made = np.isfinite(gap_n)
    scale = max(np.abs(fx_n[made]).max(initial=0), np.abs(baseline_n[made]).max(initial=0), np.finfo(float).tiny)
    return float(gap_n[made].max(initial=0) / scale)
