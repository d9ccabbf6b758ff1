"""Does a map survive a small change of the input that keeps the output? (Ghorbani et al. 2019, arXiv:1710.10547)

Inside a ball around each sample the attack looks for the input whose map differs most while f stays where it was. The
map of a piecewise linear network has no gradient, so the attack climbs by finite differences along random directions
(Wierstra et al. 2014, arXiv:1106.4487), and corrects each step so that f keeps its value. Random steps of equal norm
under the same correction are the control.

Legend: N samples, P directions of one estimate, R random steps, n rows.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ganscale.explain.attacks import steps as moves
from ganscale.explain.attacks.attack_input import budget_unit, companion
from ganscale.explain.base import Explainer, Meter, Options
from ganscale.explain.errors import ZeroGradientError
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.scores import against_random
from ganscale.explain.subject import Subject, check_callable, check_range
from ganscale.explain.types import Explanation, Score

RANDOM_STEPS = 20
TOP_SHARE = 0.1  # of the map's entries: those that people look at
PROBE = 0.5  # length of a finite difference, in budgets


class ExplanationRobustnessOptions(Options):
    """Which map, and how it is attacked.

    The strongest single step of a budget moves f, to first order, by the budget times the sum of the gradient's sizes.
    """

    map: Literal["saliency", "input-x-gradient"] = Field("saliency", description="which map is attacked")
    budget: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        8.0, description="largest change of a pixel in 1/255 of the range; in plain units where there is none"
    )
    tolerance: Annotated[float, Field(gt=0, le=1)] = Field(
        0.05, description="how far f may move, as a share of what the strongest step of that budget would do"
    )
    steps: Annotated[int, Field(ge=1, le=10_000)] = Field(20, description="steps of the climb")
    directions: Annotated[int, Field(ge=1, le=4096)] = Field(16, description="pairs of probes a step")


class ExplanationRobustness(Explainer):
    """How different a map can be made while input and output stay as good as the same."""

    name = "explanation-robustness"
    summary = "how far a map changes under an attack that keeps the output, beside random steps of equal norm"
    Options = ExplanationRobustnessOptions
    options: ExplanationRobustnessOptions
    primary = ("map_change",)
    needs_gradient = True
    domains = ("x",)

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        self.x = request.inputs["x"]
        self.range_warnings = check_range(self.x, subject.value_range)
        self.radius = torch.tensor([self.options.budget * budget_unit(subject.value_range)], dtype=torch.float64)
        self.ball = {"norm": "linf", "value_range": subject.value_range}

    @property
    def samples_apart(self) -> bool:
        """Whether each sample's map is attacked apart from the others: always."""
        return True

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Check the callable and list one chunk a sample."""
        if previous is not None:
            return []
        check_callable(self.subject, self.x, companion(self.x, self.subject.value_range), gradient=True)
        return [Chunk(round=0, index=row, explanation=row, part=0) for row in range(len(self.x))]

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Attack one sample's map; returns the maps, the changed input, and what random steps reach."""
        x, rng = self.x[chunk.explanation][None], chunk.rng(self.request.seed)
        f_1, gradient, map_1 = self._f_map_gradient(x, meter)
        if not gradient.any():
            raise ZeroGradientError(
                "the gradient", "not be exactly zero over a whole sample", "zeros", "explain raw logits"
            )
        allowed = self.options.tolerance * float(self.radius) * float(gradient.double().abs().sum())
        wide = x.repeat_interleave(RANDOM_STEPS, dim=0)
        noisy = moves.noise(wide, self.radius.repeat(RANDOM_STEPS), rngs=[rng], **self.ball)
        noisy = self._keep_output(noisy, wide, f_1, meter)
        noise_f, _, noise_maps = self._f_map_gradient(noisy, meter)
        noise_change = map_change(noise_maps, map_1)
        best, best_change = x, 0.0
        for place in np.argsort(-noise_change):  # the attack begins at the worst that chance has found
            if abs(float(noise_f[place] - f_1[0])) <= allowed:
                best, best_change = noisy[place][None], float(noise_change[place])
                break
        rows = best
        for _ in range(self.options.steps):
            rows, probed = self._climb(rows, x, map_1, rng, meter)
            candidates = self._keep_output(torch.cat([rows, probed]), x, f_1, meter)
            f_n, _, maps = self._f_map_gradient(candidates, meter)
            change_n = np.where((f_n - f_1).abs().numpy() <= allowed, map_change(maps, map_1), -np.inf)
            if change_n.max() > best_change:
                best, best_change = candidates[int(change_n.argmax())][None], float(change_n.max())
            rows = candidates[:1]
        f_after, _, map_after = self._f_map_gradient(best, meter)
        return {
            "map_before": map_1,
            "map_after": map_after,
            "attacked": best,
            "f": np.array([float(f_1[0]), float(f_after[0])]),
            "change": best_change,
            "overlap": top_overlap(map_after, map_1)[0],
            "noise_change": noise_change,
            "noise_overlap": top_overlap(noise_maps, map_1),
            "noise_f": (noise_f - f_1).abs().numpy(),
            "norm": float(moves.lengths(best - x, "linf")[0]),
        }

    def finish(self, partial: Partial) -> Explanation:
        """Put the samples together; the map's change is scored against random steps."""
        found = [data for _, _, data in partial.of_round(0)]
        column = {key: np.array([data[key] for data in found]) for key in ("change", "overlap", "norm")}
        noise = {key: np.stack([data[key] for data in found]) for key in ("noise_change", "noise_overlap", "noise_f")}
        f_N2 = np.stack([data["f"] for data in found])
        moved_N = np.abs(f_N2[:, 1] - f_N2[:, 0])
        scores = {
            "map_change": against_random(column["change"], noise["noise_change"], better="higher"),
            "top_overlap": against_random(column["overlap"], noise["noise_overlap"], better="lower"),
            "output_moved": Score(
                value=float(moved_N.max()), control=float(noise["noise_f"].max()), n=len(found), better="lower"
            ),
        }
        maps = {key: torch.cat([data[key] for data in found]) for key in ("map_before", "map_after", "attacked")}
        arrays = {"map_change": column["change"], "f_before_after": f_N2, "norm": column["norm"], **noise}
        return self.explanation(
            partial,
            values={**maps, **{name: torch.from_numpy(array) for name, array in arrays.items()}},
            inputs=dict(self.request.inputs),
            scores=scores,
            meta={"map": self.options.map, "warnings": [*self.range_warnings]},
        )

    def _climb(
        self, rows: Tensor, x: Tensor, map_1: Tensor, rng: np.random.Generator, meter: Meter
    ) -> tuple[Tensor, Tensor]:
        """Return one step up the estimated slope of the map's change, and the probes of the estimate."""
        count = self.options.directions
        ways = torch.from_numpy(rng.standard_normal((count, *x.shape[1:]))).to(x).sign()
        probe = float(self.radius) * PROBE
        both = torch.cat([rows + probe * ways, rows - probe * ways])
        radius = self.radius.repeat(2 * count)
        both = moves.project(both, x.expand_as(both), radius, **self.ball)
        change = map_change(self._f_map_gradient(both, meter)[2], map_1)
        slope = torch.from_numpy(change[:count] - change[count:]).to(x)
        estimate = (slope.reshape(-1, *[1] * (x.ndim - 1)) * ways).sum(dim=0, keepdim=True)
        stepped = rows + float(self.radius) / 2 * estimate.sign()
        return moves.project(stepped, x, self.radius, **self.ball), both[np.argsort(-change)[:4]]

    def _keep_output(self, rows: Tensor, x: Tensor, f_1: Tensor, meter: Meter) -> Tensor:
        """Return rows moved along the gradient of f so that f is, to first order, what it was at x; three times."""
        radius = self.radius.repeat(len(rows))
        base = x.expand_as(rows)
        for _ in range(3):
            f_n, gradient, _ = self._f_map_gradient(rows, meter)
            power_n = gradient.flatten(1).square().sum(dim=1).clamp_min(1e-30)
            back = ((f_n - f_1).to(rows) / power_n).reshape(-1, *[1] * (rows.ndim - 1))
            rows = moves.project(rows - back * gradient, base, radius, **self.ball)
        return rows

    def _f_map_gradient(self, rows: Tensor, meter: Meter) -> tuple[Tensor, Tensor, Tensor]:
        f_n, gradient = self._f_and_map(rows, meter)
        return f_n, gradient, gradient * rows if self.options.map == "input-x-gradient" else gradient

    def _f_and_map(self, rows: Tensor, meter: Meter) -> tuple[Tensor, Tensor]:
        """Return f [n], float64, and its gradient at rows, on the CPU."""
        meter.rows_forward += len(rows)
        meter.rows_backward += len(rows)
        values, slopes = [], []
        for part in rows.split(self.micro_batch):
            with torch.enable_grad():
                leaf = part.detach().to(self.subject.device).requires_grad_(True)
                f_n = self.subject.fn(leaf)
                (slope,) = torch.autograd.grad(f_n.sum(), leaf)
            values.append(f_n.detach().double().cpu())
            slopes.append(slope.cpu())
        return torch.cat(values), torch.cat(slopes)


def map_change(maps: Tensor, reference: Tensor) -> np.ndarray:
    """Return 1 - the cosine of each map with the reference [1, ...], float64 [n]: 0 the same, 1 unrelated."""
    flat, wanted = maps.double().flatten(1), reference.double().flatten(1)
    length = (flat.norm(dim=1) * wanted.norm()).clamp_min(1e-300)
    return (1 - (flat @ wanted[0]) / length).numpy()


def top_overlap(maps: Tensor, reference: Tensor) -> np.ndarray:
    """Return the share of the reference's top entries by size that are among each map's own, float64 [n]."""
    flat, wanted = maps.abs().flatten(1), reference.abs().flatten(1)
    count = max(1, round(TOP_SHARE * flat.shape[1]))
    top = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, flat.topk(count).indices, True)
    return top[:, wanted[0].topk(count).indices].double().mean(dim=1).numpy()
