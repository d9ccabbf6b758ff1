"""How much a generator can be moved by a small step in its latent, and what the critic makes of it.

Three attacks inside ||delta|| <= epsilon: the one that moves the image most, the one that raises the critic's logit
(fools it) and the one that lowers it (unmasks the image). Random steps of equal length are the control. An attack on
the pixels that may move them as far as the fooling latent attack did tells how much of the critic's weakness the
generator can reach.

Legend: N latents, n latents of a chunk, D latent, E budgets, R random steps, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ganscale.explain.attacks import steps as moves
from ganscale.explain.attacks.attack_input import Budgets
from ganscale.explain.base import Explainer, Meter, Options
from ganscale.explain.errors import ExplainInputError, ZeroGradientError
from ganscale.explain.labels import label_numbers
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.scores import against_random
from ganscale.explain.subject import Subject
from ganscale.explain.types import Explanation, Score

ATTACKS = ("random", "move", "fool", "unmask")
LATENTS_A_CHUNK = 2
SHOWN = 8  # latents whose images are kept
PIXEL_STEP = 0.25


class AttackLatentOptions(Options):
    """How far and by which steps latents are moved."""

    budgets: Budgets = Field(
        (0.25, 0.5, 1.0, 2.0), description="lengths of the step in latent space; 1: a coordinate's standard deviation"
    )
    steps: Annotated[int, Field(ge=1, le=10_000)] = Field(20, description="steps of each ascent")
    step: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = Field(
        0.25, description="length of those on the critic, in budgets"
    )
    random_draws: Annotated[int, Field(ge=2, le=1000)] = Field(8, description="random steps, which are the control")


class AttackLatent(Explainer):
    """Small steps of z that move G most, or fool or unmask D; joint curves of both."""

    name = "attack-latent"
    summary = "small latent steps that move the image most, fool or unmask the critic, beside random steps"
    Options = AttackLatentOptions
    options: AttackLatentOptions
    input_name = "z"
    needs = ("generator",)
    primary = ("image_change_per_step", "critic_raised")

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        self.z = request.inputs["z"]
        if self.z.ndim != 2:
            raise ExplainInputError("inputs['z']", "be latents [N, D]", tuple(self.z.shape), "draw them anew")
        self.budgets = tuple(sorted(set(self.options.budgets))) or (0.25, 0.5, 1.0, 2.0)

    @property
    def samples_apart(self) -> bool:
        """Whether each latent is attacked apart from the others: always."""
        return True

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Return one chunk for every few latents."""
        if previous is not None:
            return []
        starts = range(0, len(self.z), LATENTS_A_CHUNK)
        return [Chunk(round=0, index=index, explanation=start, part=0) for index, start in enumerate(starts)]

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Attack a few latents at all budgets in one batch; returns changes, logits, and a few images."""
        z = self.z[chunk.explanation : chunk.explanation + LATENTS_A_CHUNK]
        count, rngs = len(self.budgets), chunk.rngs(self.request.seed, len(z))
        wide = z.repeat_interleave(count, dim=0)
        radius = torch.tensor(self.budgets, dtype=torch.float64).repeat(len(z))
        look = _Look(self.subject, meter)
        base = look.images(z)
        base_wide = base.repeat_interleave(count, dim=0)
        # no step changes the label: an ascent cannot
        ball = {"norm": "l2", "value_range": None, "rngs": rngs, "still": label_numbers(self.subject.generator)}
        random = [moves.noise(wide, radius, **ball) for _ in range(self.options.random_draws)]
        climb = {"steps": self.options.steps, "start": random[0]}
        moved, _ = moves.climb(look.away_from(base_wide), wide, radius, step=None, **climb)
        rows = {"move": moved}
        if self.subject.critic is not None:
            climb |= {"step": self.options.step, "start": wide}
            for name, sign in (("fool", 1.0), ("unmask", -1.0)):
                rows[name], _ = moves.climb(look.signed_logit(sign), wide, radius, **climb)
        images = {name: look.images(latent) for name, latent in rows.items()}
        random_images = [look.images(latent) for latent in random]
        shape = (len(z), count)
        found = {
            "random_change": np.stack([_change(one, base_wide).reshape(shape) for one in random_images], axis=1),
            "change": np.stack([_change(one, base_wide).reshape(shape) for one in images.values()], axis=1),
            "length": np.stack([moves.lengths(one - wide, "l2").numpy().reshape(shape) for one in rows.values()], 1),
        }
        if self.subject.critic is not None:
            logits = {name: look.logits(one).reshape(shape) for name, one in images.items()}
            reach = torch.from_numpy(_change(images["fool"], base_wide))
            found |= {
                "clean": look.logits(base),
                "random_logits": np.stack([look.logits(one).reshape(shape) for one in random_images], axis=1),
                "logits": np.stack(list(logits.values()), axis=1),
                "pixel_logits": look.logits(self._pixel_attack(look, base_wide, reach)).reshape(shape),
            }
        if chunk.explanation < SHOWN:
            last = slice(count - 1, None, count)  # at the largest budget
            shown = [base, random_images[0][last], *(one[last] for one in images.values())]
            found["images"] = torch.stack(shown, dim=1)
        return found

    def finish(self, partial: Partial) -> Explanation:
        """Put the latents together and score the attacks against random steps."""
        found = [data for _, _, data in partial.of_round(0)]
        arrays = {key: np.concatenate([data[key] for data in found]) for key in found[0] if key not in ("images",)}
        images = torch.cat([data["images"] for data in found if "images" in data])
        values = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        names = {"clean": "clean_logits", "change": "image_change", "random_change": "random_image_change"}
        return self.explanation(
            partial,
            values={
                "latent_budgets": torch.tensor(self.budgets, dtype=torch.float64),
                "latent_images": images,
                **{names.get(name, name): tensor for name, tensor in values.items()},
            },
            inputs=dict(self.request.inputs),
            scores=self._scores(arrays),
            meta={"attacks": [name for name in ATTACKS[1:] if self.subject.critic is not None or name == "move"]},
        )

    def _scores(self, arrays: dict[str, np.ndarray]) -> dict[str, Score]:
        budgets_E = np.array(self.budgets)
        scores = {
            "image_change_per_step": against_random(
                (arrays["change"][:, 0] / budgets_E).mean(axis=1),
                (arrays["random_change"] / budgets_E).mean(axis=2),
                better="higher",
            )
        }
        if self.subject.critic is None:
            return scores
        clean_N1 = arrays["clean"][:, None]
        random_NR = (arrays["random_logits"] - clean_N1[..., None]).mean(axis=2)
        raised_N = (arrays["logits"][:, 1] - clean_N1).mean(axis=1)
        lowered_N = (arrays["logits"][:, 2] - clean_N1).mean(axis=1)
        pixels_N = (arrays["pixel_logits"] - clean_N1).mean(axis=1)
        scores["critic_raised"] = against_random(raised_N, random_NR, better="higher")
        scores["critic_lowered"] = against_random(lowered_N, random_NR, better="lower")
        whole = max(float(pixels_N.mean()), np.finfo(float).tiny)
        scores["share_of_pixel_attack"] = against_random(raised_N / whole, random_NR / whole, better="higher")
        return scores

    def _pixel_attack(self, look: _Look, base: Tensor, reach: Tensor) -> Tensor:
        """Return images that raise the critic's logit as far from ``base`` as the latent attack went."""
        return moves.pgd(
            look.image_gradient,
            base,
            reach,
            norm="l2",
            value_range=self.subject.value_range,
            steps=self.options.steps,
            step=PIXEL_STEP,
        )


class _Look:
    """Generator and critic of a chunk, evaluated in micro-batches and counted."""

    def __init__(self, subject: Subject, meter: Meter) -> None:
        self.subject, self.meter = subject, meter

    def images(self, z: Tensor) -> Tensor:
        """Return G(z) on the CPU."""
        return self._forward(self.subject.generator, z)

    def logits(self, images: Tensor) -> np.ndarray:
        """Return D(x), float64 [n]."""
        return self._forward(self.subject.critic, images).double().numpy()

    def away_from(self, base: Tensor) -> moves.ValueAndGradient:
        """Return the objective ||G(z) - base||^2 / 2, one a row."""

        def objective(images: Tensor, part: slice) -> Tensor:
            return 0.5 * (images - base[part].to(images)).flatten(1).square().sum(dim=1)

        return self._of_latent(objective)

    def signed_logit(self, sign: float) -> moves.ValueAndGradient:
        """Return the objective sign * D(G(z))."""
        return self._of_latent(lambda images, part: sign * self.subject.critic(images))

    def image_gradient(self, images: Tensor) -> Tensor:
        """Return the gradient of D at images."""
        return self._backward(lambda rows, part: self.subject.critic(rows), images)[1]

    def _of_latent(self, objective: Callable[[Tensor, slice], Tensor]) -> moves.ValueAndGradient:
        return lambda z: self._backward(lambda rows, part: objective(self.subject.generator(rows), part), z)

    def _forward(self, network: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        self.meter.rows_forward += len(rows)
        with torch.no_grad():
            return torch.cat([network(part.to(self.subject.device)).cpu() for part in rows.split(self._size)])

    def _backward(self, objective: Callable[[Tensor, slice], Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
        self.meter.rows_forward += len(rows)
        self.meter.rows_backward += len(rows)
        value, slope = [], []
        for start in range(0, len(rows), self._size):
            part = slice(start, start + self._size)
            with torch.enable_grad():
                leaf = rows[part].detach().to(self.subject.device).requires_grad_(True)
                value_n = objective(leaf, part)
                (gradient,) = torch.autograd.grad(value_n.sum(), leaf)
            value.append(value_n.detach().cpu())
            slope.append(gradient.cpu())
        gradient = torch.cat(slope)
        if not gradient.any():
            raise ZeroGradientError(
                "the gradient in the latent",
                "not be exactly zero",
                "zeros for all latents",
                "look for a detached graph or a saturated output",
            )
        return torch.cat(value), gradient

    @property
    def _size(self) -> int:
        return self.meter.micro_batch


def _change(images: Tensor, base: Tensor) -> np.ndarray:
    """Return the L2 distance of each image from its base, float64 [n]."""
    return (images.double() - base.double()).flatten(1).norm(dim=1).numpy()
