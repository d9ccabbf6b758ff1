"""Counterfactuals: the smallest move in latent space that turns a decision round and stays a picture.

A classifier's verdict on G(z) (or the critic's, where there is no classifier) is turned by moving z, so that what
changes is what the generator can draw. The same search in pixel space is the control: it turns the verdict too, by
noise that no picture holds. Random steps of equal length say what any move would do.

Legend: N base latents, D latent, P real images, R random steps, T pictures on the way, K classes, n rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ganscale.explain.base import Meter, Options
from ganscale.explain.errors import CallableError, ExplainTargetError
from ganscale.explain.labels import label_numbers
from ganscale.explain.latent.base import LatentExplainer
from ganscale.explain.latent.decision import Decision, smallest_step
from ganscale.explain.plan import Chunk, Partial
from ganscale.explain.scores import against_control, against_random
from ganscale.explain.types import Explanation, Score

GROUP = 4  # rows of a chunk: they share forward passes
RANDOM_STEPS = 20
NOISE_DRAWS = 8
CHANGED = 0.1  # of the pictures' range: a pixel that moved by more counts as changed
PICTURES = 6  # on the way from the original to its counterfactual, both ends included
MOST_SHOWN = 16
NEIGHBOURS = 5
LONGEST_PIXEL_STEP = 4.0  # L2, in [-1, 1]


class CounterfactualOptions(Options):
    """Auto: the classifier judges where there is one; to the target's class, else to each image's runner-up."""

    judge: Literal["auto", "classifier", "critic"] = Field("auto", description="whose verdict is turned round")
    to: Annotated[int, Field(ge=0)] | str = Field("auto", description="the wished class: a number, a name, or auto")
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = Field(0.95, description="wished probability of that class")
    steps: Annotated[int, Field(ge=1, le=10_000)] = Field(60, description="steps of the search")
    longest_step: Annotated[float, Field(gt=0, le=100)] = Field(1.0, description="longest step of the search, L2")
    noise: Annotated[float, Field(ge=0, le=2)] = Field(
        0.25, description="standard deviation, in [-1, 1], of the noise under which survival is measured"
    )


class LatentCounterfactual(LatentExplainer):
    """The smallest latent move that turns a decision round."""

    name = "latent-counterfactual"
    summary = "the smallest move in latent space that turns a decision round, against random and pixel-space moves"
    Options = CounterfactualOptions
    options: CounterfactualOptions
    primary = ("flip_rate",)

    @property
    def samples_apart(self) -> bool:
        """Whether each latent is searched apart: unless all images together fix where the critic's verdict turns."""
        return self._by_classifier or self.real is None

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Return one chunk for every few latents; decides from which verdict to which each goes."""
        if previous is not None:
            return []
        self._check_judge()
        self.check_networks()
        images = self.images(self.z)
        threshold = self._threshold(images)
        ends = self._ends(images, threshold)
        return [
            Chunk(
                round=0,
                index=index,
                explanation=first,
                part=0,
                work={"threshold": threshold, **{name: ends[name][first : first + GROUP] for name in ends}},
            )
            for index, first in enumerate(range(0, len(self.z), GROUP))
        ]

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Search in latent space and in pixels, and take random steps of the same length, for a few latents."""
        generator, device = self.subject.generator, self.subject.device
        z = self.z[chunk.explanation :][: len(chunk.work["to"])].to(device)
        to, decision = torch.from_numpy(chunk.work["to"]).to(device), self._decision(chunk.work["threshold"])
        with torch.no_grad():
            original = generator(z)
        low, high = (float(end) for end in self.subject.value_range or (-math.inf, math.inf))

        def of_latent(at: Tensor) -> Tensor:
            return decision.margin(generator(at), to)

        def of_pixels(at: Tensor) -> Tensor:
            return decision.margin(at.clamp(low, high), to)

        try:
            in_latent = smallest_step(of_latent, z, steps=self.options.steps, longest=self.options.longest_step)
            in_pixels = smallest_step(of_pixels, original, steps=self.options.steps, longest=LONGEST_PIXEL_STEP)
        except RuntimeError as error:
            words = str(error).splitlines()[0]
            raise CallableError("generator and judge", "be differentiable", words, "use networks of torch") from error
        meter.rows_forward += in_latent.rows_forward + in_pixels.rows_forward
        meter.rows_backward += in_latent.rows_backward + in_pixels.rows_backward
        rngs = chunk.rngs(self.request.seed, len(z))
        drawn = torch.from_numpy(_drawn(rngs, RANDOM_STEPS, z.shape[1:])).to(z)
        length = in_latent.step.norm(dim=1)[None, :, None]
        drawn[..., drawn.shape[2] - label_numbers(generator) :] = 0  # a step keeps its label, as the search does
        stepped = z + drawn / drawn.norm(dim=2, keepdim=True) * length
        with torch.no_grad():
            random = torch.stack([generator(part) for part in stepped])
            found = {"step": in_latent.step, "pixels": (original + in_pixels.step).clamp(low, high)}
            ends = {"found": generator(z + in_latent.step), "pixel": found["pixels"], "before": original}
            odds = {name: decision.log_odds(image, to) for name, image in ends.items()}
            odds["random"] = torch.stack([decision.log_odds(image, to) for image in random], dim=1)
            survived = self._survival(decision, ends, to, rngs)
        meter.rows_forward += len(z) * (2 * RANDOM_STEPS + 2 * 3 + 2 * NOISE_DRAWS)
        numbers = {f"odds_{name}": value for name, value in odds.items()} | survived
        numbers |= {"granted": in_latent.granted, "granted_pixel": in_pixels.granted}
        kept = {name: value.cpu().numpy() for name, value in {**found, **numbers}.items()}
        return {**kept, **{name: chunk.work[name] for name in ("to", "before", "threshold")}}

    def finish(self, partial: Partial) -> Explanation:
        """Put the searches together, draw what they found, and score it against both controls."""
        parts = [data for _, _, data in partial.of_round(0)]
        threshold = parts[0]["threshold"]
        every = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "threshold"}
        step = torch.from_numpy(every.pop("step"))
        original, found = self.images(self.z), self.images(self.z + step)
        pixels = torch.from_numpy(every.pop("pixels"))
        decision = self._decision(threshold)
        scores = {**self._turned(every), **self._likeness(every, decision, original, found, pixels)}
        shown = slice(0, MOST_SHOWN)
        share = torch.linspace(0, 1, PICTURES, dtype=step.dtype)[None, :, None]
        walk = self.z[shown, None] + share * step[shown, None]
        path = self.images(walk.flatten(0, 1))
        to = torch.from_numpy(every["to"])
        odds_path = self.judge(_Odds(decision, to[shown].repeat_interleave(PICTURES)), path)
        values = {
            "counterfactual": found[shown],
            "original": original[shown],
            "pixel_counterfactual": pixels[shown],
            "step": step,
            "latent_length": step.double().norm(dim=1),
            "path": path.unflatten(0, (-1, PICTURES)),
            "path_probability": odds_path.sigmoid().unflatten(0, (-1, PICTURES)),
            "probability_before": torch.from_numpy(every["odds_before"]).double().sigmoid(),
            "probability_after": torch.from_numpy(every["odds_found"]).double().sigmoid(),
            "probability_pixel": torch.from_numpy(every["odds_pixel"]).double().sigmoid(),
            "log_odds_random": torch.from_numpy(every["odds_random"]),
            "from": torch.from_numpy(every["before"]),
            "to": to,
            "flipped": torch.from_numpy(every["granted"]),
        }
        classifier = self.subject.classifier
        labels = [classifier.label(k) for k in range(classifier.classes)] if self._by_classifier else []
        meta = {
            "judge": "classifier" if self._by_classifier else "critic",
            "threshold": threshold,
            "class_names": labels,
            "random_steps": RANDOM_STEPS,
            "pixel_flip_rate": float(every["granted_pixel"].mean()),
            "noise": self.options.noise,
        }
        inputs = {"z": self.z} | ({} if self.real is None else {"real_count": torch.tensor(len(self.real))})
        return self.explanation(partial, values=values, inputs=inputs, scores=scores, meta=meta)

    @property
    def _by_classifier(self) -> bool:
        return self.options.judge != "critic" and self.subject.classifier is not None

    def _check_judge(self) -> None:
        subject, judge = self.subject, self.options.judge
        missing = subject.critic is None if judge == "critic" else subject.classifier is None
        if missing and (judge != "auto" or subject.critic is None):
            rule = f"have {'a classifier or a critic' if judge == 'auto' else f'a {judge}'} for {self.name}"
            raise ExplainTargetError("the subject", rule, subject.name, "pass --classifier NAME|PATH")

    def _decision(self, threshold: float) -> Decision:
        confidence = self.options.confidence
        return Decision(
            subject=self.subject,
            by_classifier=self._by_classifier,
            odds=math.log(confidence / (1 - confidence)),
            threshold=threshold,
        )

    def _threshold(self, images: Tensor) -> float:
        """Return the logit that parts real from generated: half-way between their medians; 0 without real images."""
        if self._by_classifier or self.real is None:
            return 0.0
        real, made = (self.judge(self.subject.critic, part).median() for part in (self.real, images))
        return float((real + made) / 2)

    def _ends(self, images: Tensor, threshold: float) -> dict[str, np.ndarray]:
        """Return the verdict on each image and the one that is wished, int64 [N] each."""
        decision, classifier = self._decision(threshold), self.subject.classifier
        before = self.judge(decision.verdicts, images).long()
        if not decision.by_classifier:
            return {"before": before.numpy(), "to": -before.numpy()}
        logits = self.judge(classifier, images)
        order = logits.argsort(dim=1, descending=True, stable=True)
        wish = self.options.to
        if wish == "auto" and self.subject.target.kind == "class":
            wish = self.subject.target.index
        if wish == "auto":
            return {"before": before.numpy(), "to": order[:, 1].numpy()}
        chosen = classifier.find_class(int(wish) if str(wish).isdecimal() else wish)
        to = torch.where(before == chosen, order[:, 1], chosen)  # who is there already goes to its runner-up
        return {"before": before.numpy(), "to": to.numpy()}

    def _survival(
        self, decision: Decision, ends: dict[str, Tensor], to: Tensor, rngs: list[np.random.Generator]
    ) -> dict[str, Tensor]:
        """Return for both kinds of step how often the verdict is still the wished one under the same noise [n]."""
        noise = _drawn(rngs, NOISE_DRAWS, ends["found"].shape[1:]) * self.options.noise
        kept = {}
        for name in ("found", "pixel"):
            noisy = [ends[name] + torch.from_numpy(draw).to(ends[name]) for draw in noise]
            hits = torch.stack([decision.log_odds(image, to) > 0 for image in noisy])
            kept[f"survival_{name}"] = hits.double().mean(dim=0)
        return kept

    def _turned(self, every: dict[str, np.ndarray]) -> dict[str, Score]:
        """Score how often the verdict turned, and by how much, against random steps of the same length."""
        goal = math.log(self.options.confidence / (1 - self.options.confidence))
        random_NR = every["odds_random"].astype(np.float64)
        before_N, found_N = every["odds_before"].astype(np.float64), every["odds_found"].astype(np.float64)
        flips_N = every["granted"].astype(float)
        return {
            "flip_rate": against_random(flips_N, (random_NR >= goal).astype(float), better="higher"),
            "gain_log_odds": against_random(found_N - before_N, random_NR - before_N[:, None], better="higher"),
        }

    def _likeness(
        self, every: dict[str, np.ndarray], decision: Decision, original: Tensor, found: Tensor, pixels: Tensor
    ) -> dict[str, Score]:
        """Score how much of a picture each counterfactual is, against the pixel-space search; where both turned."""
        both = every["granted"] & every["granted_pixel"]
        scores = {
            "survival_under_noise": against_control(
                every["survival_found"][both], every["survival_pixel"][both], better="higher"
            ),
        }
        if self.subject.critic is not None:
            logits = [self.judge(self.subject.critic, part).numpy()[both] for part in (found, pixels)]
            scores["plausibility_critic"] = against_control(*logits, better="higher")
        if self.real is not None and decision.by_classifier:
            verdicts = self.judge(decision.verdicts, self.real).long().numpy()
            near = [_nearest(part, every["to"], self.real, verdicts) for part in (found, pixels)]
            away, agreed = zip(*near, strict=True)
            scores["distance_to_real_of_class"] = against_control(*(part[both] for part in away), better="lower")
            scores["neighbours_of_class"] = against_control(*(part[both] for part in agreed), better="higher")
        width = 2.0 if self.subject.value_range is None else self.subject.value_range[1] - self.subject.value_range[0]
        share = ((found - original).abs() > CHANGED * width).flatten(1).double().mean(dim=1).numpy()
        other = ((original.roll(1, dims=0) - original).abs() > CHANGED * width).flatten(1).double().mean(dim=1).numpy()
        scores["changed_share"] = against_control(share, other, better="lower")
        lengths = [(part - original).double().flatten(1).norm(dim=1).numpy() for part in (found, original.roll(1, 0))]
        scores["pixel_l2"] = against_control(*lengths, better="lower")
        return {name: score for name, score in scores.items() if score.n}  # some need a sample that turned both ways


def _drawn(rngs: list[np.random.Generator], count: int, shape: Sequence[int]) -> np.ndarray:
    """Return ``count`` normal draws of each row, from its own generator: [count, n, ...]."""
    return np.stack([rng.standard_normal((count, *shape)) for rng in rngs], axis=1)


class _Odds:
    """The wished log-odds of pictures whose wishes differ, taken in turn as batches come."""

    def __init__(self, decision: Decision, to: Tensor) -> None:
        self.decision, self.to, self.done = decision, to, 0

    def __call__(self, images: Tensor) -> Tensor:
        to = self.to[self.done : self.done + len(images)].to(images.device)
        self.done += len(images)
        return self.decision.log_odds(images, to)


def _nearest(images: Tensor, to: np.ndarray, real: Tensor, verdicts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compare each image with real ones, in pixels, which no gradient of the judge has fitted.

    Returns the L2 distance to the nearest real image of the wished class [n] (NaN where there is none), and the share
    of the ``NEIGHBOURS`` nearest of all that are of that class [n].
    """
    distances = torch.cdist(images.double().flatten(1), real.double().flatten(1)).numpy()
    own = verdicts[None, :] == to[:, None]
    away = np.where(own, distances, np.inf).min(axis=1)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
    return np.where(np.isfinite(away), away, np.nan), np.take_along_axis(own, nearest, axis=1).mean(axis=1)
