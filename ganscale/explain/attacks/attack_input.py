"""How far an input has to move before a critic or a classifier changes its verdict.

Random noise, the fast gradient step and projected gradient descent run at the same budgets, on every sample, and noise
of equal norm is the control of the other two. Budgets are written in 1/255 of the picture, so that 8 means the same
for pictures in [-1, 1] and in [0, 1].

Legend: N samples, n samples of a chunk, E budgets, A attacks (noise, fgsm, pgd), R draws of noise, K classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from ganscale.explain.attacks import steps as moves
from ganscale.explain.attacks.objective import Loss, Objective, kind_of_output
from ganscale.explain.attacks.strength import masking_signs
from ganscale.explain.base import Explainer, Meter, Options
from ganscale.explain.errors import ExplainInputError, ExplainOptionError
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.scores import Z95, against_random
from ganscale.explain.subject import Subject, check_callable, check_range
from ganscale.explain.types import Explanation, Score

ATTACKS = ("noise", "fgsm", "pgd")
SAMPLES_A_CHUNK = 4
BUDGETS = {"linf": (1.0, 2.0, 4.0, 8.0, 16.0), "l2": (32.0, 64.0, 128.0, 256.0, 512.0)}


def split_commas(value: object) -> object:
    """Read "1,2,4" as the command line gives it; auto is the empty list."""
    if not isinstance(value, str):
        return value
    return () if value == "auto" else tuple(part.strip() for part in value.split(","))


Budgets = Annotated[tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], BeforeValidator(split_commas)]


class AttackInputOptions(Options):
    """How far and by which steps inputs are moved, and when a verdict has turned."""

    norm: moves.Norm = Field("linf", description="of the ball in which the input stays")
    budgets: Budgets = Field(
        (), description="its radii in 1/255 of the range, plain where there is none; none given: 1 to 16, l2 32 to 512"
    )
    steps: Annotated[int, Field(ge=1, le=10_000)] = Field(10, description="steps of PGD")
    step: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = Field(0.25, description="their length, in radii")
    random_start: bool = Field(False, description="begin at noise")
    goal: Literal["flip", "raise", "lower"] = Field(
        "flip", description="of an attack on a critic: turn each verdict, or raise or lower every logit"
    )
    threshold: Literal["auto"] | Annotated[float, Field(allow_inf_nan=False)] = Field(
        "auto", description="logit at which a critic's verdict turns; auto: between real and generated means, or 0"
    )
    loss: Loss = Field("cross-entropy", description="what is raised on a classifier")
    noise_draws: Annotated[int, Field(ge=2, le=1000)] = Field(8, description="draws of noise a sample and radius")


class AttackInput(Explainer):
    """Noise, FGSM and PGD on the input of a critic's one logit or of a classifier."""

    name = "attack-input"
    summary = "how far an input must move before the verdict changes: FGSM and PGD beside noise of equal norm"
    Options = AttackInputOptions
    options: AttackInputOptions
    primary = ("pgd_margin_drop",)
    needs_gradient = True
    domains = ("x",)

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        self.x = request.inputs["x"]
        self.range_warnings = check_range(self.x, subject.value_range)
        of_class = subject.target.kind == "class" and subject.classifier is not None
        self.network = subject.classifier if of_class else subject.fn
        with subject.quiet():
            self.classes = kind_of_output(self.network, self.x.to(subject.device))
        if self.classes > 1 and self.options.goal != "flip":
            raise ExplainOptionError("goal", "be flip for a classifier", self.options.goal, "leave it out")
        chosen = self.options.budgets or BUDGETS[self.options.norm]
        self.budgets = tuple(sorted(set(chosen)))
        self.unit = budget_unit(subject.value_range)

    @property
    def samples_apart(self) -> bool:
        """Whether each sample is attacked apart: unless the samples' own logits fix where the verdict turns."""
        return self.classes > 1 or self.options.threshold != "auto" or "generated" not in self.request.inputs

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Judge all samples once, which fixes threshold and sides, and list one chunk for every few samples."""
        if previous is not None:
            return []
        one_number = self.subject
        if self.classes > 1:
            one_number = replace(self.subject, fn=lambda rows: self.network(rows).amax(dim=1))
        check_callable(one_number, self.x, companion(self.x, self.subject.value_range), gradient=True)
        with self.subject.quiet():
            threshold, sides_N, right_N = self._verdicts()
        starts = range(0, len(self.x), SAMPLES_A_CHUNK)
        parts = [slice(start, start + SAMPLES_A_CHUNK) for start in starts]
        works = [{"threshold": threshold, "sides": sides_N[part], "right": right_N[part]} for part in parts]
        return [
            Chunk(round=0, index=index, explanation=start, part=0, work=work)
            for index, (start, work) in enumerate(zip(starts, works, strict=True))
        ]

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Attack a few samples with every attack at every budget, all budgets in one batch."""
        x = self.x[chunk.explanation : chunk.explanation + SAMPLES_A_CHUNK]
        objective = Objective(
            network=self.network,
            meter=meter,
            classes=self.classes > 1,
            sides=torch.from_numpy(chunk.work["sides"]),
            threshold=chunk.work["threshold"],
            loss=self.options.loss,
        )
        count = len(self.budgets)
        wide, each = x.repeat_interleave(count, dim=0), objective.repeated(count)
        noisy, fast, pushed = self._attack(objective, each, x, wide, chunk.rngs(self.request.seed, len(x)))
        shape = (len(x), count)
        noise_RnE = np.stack([each.margins(rows).numpy().reshape(shape) for rows in noisy])
        pgd_nE = each.margins(pushed).numpy().reshape(shape)
        shown_n = _first_success(pgd_nE)
        return {
            "threshold": chunk.work["threshold"],
            "right": chunk.work["right"],
            "clean": objective.margins(x).numpy(),
            "noise": noise_RnE.transpose(1, 0, 2),
            "fgsm": each.margins(fast).numpy().reshape(shape),
            "pgd": pgd_nE,
            "norms": np.stack(
                [moves.lengths(rows - wide, self.options.norm).numpy().reshape(shape) for rows in (fast, pushed)]
            ).transpose(1, 0, 2),
            "shown": shown_n,
            "adversarial": pushed.reshape(*shape, *x.shape[1:])[torch.arange(len(x)), torch.from_numpy(shown_n)],
        }

    def _attack(
        self, objective: Objective, each: Objective, x: Tensor, wide: Tensor, rngs: list[np.random.Generator]
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return all draws of noise, the fast step and PGD of ``wide``: each sample once for every budget."""
        ball = {"norm": self.options.norm, "value_range": self.subject.value_range}
        radius_E = torch.tensor([budget * self.unit for budget in self.budgets], dtype=torch.float64)
        radius = radius_E.repeat(len(x))
        slope = objective.first_gradient(x)
        fast = moves.fgsm(slope.cpu().repeat_interleave(len(self.budgets), dim=0), wide, radius, **ball)
        noisy = [moves.noise(wide, radius, rngs=rngs, **ball) for _ in range(self.options.noise_draws)]
        pushed = moves.pgd(
            lambda rows: each.gradient(rows).cpu(),
            wide,
            radius,
            steps=self.options.steps,
            step=self.options.step,
            start=noisy[0] if self.options.random_start else None,
            **ball,
        )
        return noisy, fast, pushed

    def finish(self, partial: Partial) -> Explanation:
        """Put the samples together; score both attacks against noise of equal norm."""
        found = [data for _, _, data in partial.of_round(0)]
        joined = {
            key: np.concatenate([data[key] for data in found])
            for key in ("clean", "noise", "fgsm", "pgd", "norms", "right")
        }
        clean_N, noise_NRE = joined["clean"], joined["noise"]
        margins_NAE = np.stack([noise_NRE.mean(axis=1), joined["fgsm"], joined["pgd"]], axis=1)
        held_NAE = np.stack([(noise_NRE >= 0).mean(axis=1), joined["fgsm"] >= 0, joined["pgd"] >= 0], axis=1)
        signs = masking_signs(
            {name: clean_N[:, None] - margins_NAE[:, place] for place, name in enumerate(ATTACKS)},
            held_NE=joined["pgd"] >= 0,
            budgets=self.budgets,
        )
        values = {
            "budgets": np.array(self.budgets),
            "clean_margins": clean_N,
            "margins": margins_NAE,
            "verdict_held": held_NAE.astype(np.float64),
            "norms": joined["norms"],
            "shown_budget": np.array(self.budgets)[np.concatenate([data["shown"] for data in found])],
            "noise_margins": noise_NRE,
        }
        return self.explanation(
            partial,
            values={
                "adversarial": torch.cat([data["adversarial"] for data in found]),
                **{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in values.items()},
            },
            inputs=dict(self.request.inputs),
            scores=self._scores(joined),
            meta={
                "norm": self.options.norm,
                "budgets_in": "1/255 of the range" if self.subject.value_range else "plain units",
                "attacked": "classifier" if self.classes > 1 else "critic",
                "threshold": found[0]["threshold"],
                "gradient_masking": bool(signs),
                "warnings": [*self.range_warnings, *signs],
            },
        )

    def _scores(self, joined: dict[str, np.ndarray]) -> dict[str, Score]:
        clean_N, noise_NRE = joined["clean"], joined["noise"]
        random_NR = (clean_N[:, None, None] - noise_NRE).mean(axis=2)
        dropped = {name: (clean_N[:, None] - joined[name]).mean(axis=1) for name in ("fgsm", "pgd")}
        stood_N = clean_N >= 0  # a verdict that was wrong before is no success of an attack
        flipped = {name: (joined[name][stood_N] < 0).mean(axis=1) for name in ("fgsm", "pgd")}
        found = {}
        for name in ("pgd", "fgsm"):
            found[f"{name}_margin_drop"] = against_random(dropped[name], random_NR, better="higher")
            if stood_N.any():
                by_noise = (noise_NRE[stood_N] < 0).mean(axis=2)
                found[f"{name}_success"] = against_random(flipped[name], by_noise, better="higher")
        right_n = joined["right"][~np.isnan(joined["right"])]
        if len(right_n):
            value, chance = float(right_n.mean()), self._chance()
            half = Z95 * float(np.sqrt(chance * (1 - chance) / len(right_n)))  # of a verdict by chance
            found["clean_accuracy"] = Score(
                value=value, low=value - half, high=value + half, control=chance, n=len(right_n), better="higher"
            )
        return found

    def _verdicts(self) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the threshold, the side that each sample is attacked from [N], and whether it is judged right [N]
        (NaN where the truth is not known).
        """
        parts = self.x.split(self.micro_batch)
        with torch.no_grad():
            output = torch.cat([self.network(part.to(self.subject.device)).cpu() for part in parts])
        if self.classes > 1:
            return 0.0, *self._class_verdicts(output)
        real_N, threshold = self._is_real(), self.options.threshold
        if threshold == "auto":
            both = real_N is not None and 0 < int(real_N.sum()) < len(real_N)
            threshold = float(output[real_N].mean() + output[~real_N].mean()) / 2 if both else 0.0
        above = (output >= threshold).numpy()
        sides = {"flip": np.where(above, 1, -1), "lower": np.ones(len(above)), "raise": -np.ones(len(above))}
        right = np.full(len(above), np.nan) if real_N is None else (above == real_N.numpy()).astype(float)
        return float(threshold), sides[self.options.goal].astype(np.int64), right

    def _class_verdicts(self, output: Tensor) -> tuple[np.ndarray, np.ndarray]:
        predicted = output.argmax(dim=1)
        labels = self.request.inputs.get("labels", torch.full((len(output),), -1))
        if int(labels.max()) >= self.classes:
            raise ExplainInputError(
                "inputs['labels']",
                f"be below {self.classes}, the number of classes",
                int(labels.max()),
                "use a classifier of the data's classes, or --samples generated",
            )
        known = labels >= 0
        right = torch.where(known, (predicted == labels).double(), torch.nan)
        return torch.where(known, labels, predicted).long().numpy(), right.numpy()

    def _is_real(self) -> Tensor | None:
        """Return which samples lie above the threshold where the critic is right; None where that is not known."""
        generated = self.request.inputs.get("generated")
        if generated is None:
            return None
        return generated.bool() if self.subject.target.sign == "fake" else ~generated.bool()

    def _chance(self) -> float:
        """Return the accuracy of always naming the most frequent truth."""
        truth = self._is_real() if self.classes == 1 else self.request.inputs["labels"]
        known = truth if self.classes == 1 else truth[truth >= 0]
        return float(known.unique(return_counts=True)[1].max()) / len(known)


def budget_unit(value_range: tuple[float, float] | None) -> float:
    """Return how far 1/255 of the picture is in the units of the input; 1 where it has no declared range."""
    return 1.0 if value_range is None else (value_range[1] - value_range[0]) / 255


def companion(x: Tensor, value_range: tuple[float, float] | None) -> Tensor:
    """Return one row [1, ...] that is not like the first: something to stand beside it in a check."""
    return -x[:1] if value_range is None else torch.full_like(x[:1], value_range[0])


def _first_success(margin_nE: np.ndarray) -> np.ndarray:
    """Return the place of the smallest budget that changes the verdict, the last where none does, [n]."""
    changed = margin_nE < 0
    return np.where(changed.any(axis=1), changed.argmax(axis=1), margin_nE.shape[1] - 1)
