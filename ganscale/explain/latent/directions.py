"""Latent directions, measured: whatever they were found by, their images and judges are walked along them.

How far the image and the critic's logit follow a direction is measured by walking it from every base latent, and random
unit directions walk the same way as the control. Where the directions come from is in ``direction_sources.py``.

Legend: N base latents, D latent, K directions kept, R random directions, S steps of a walk, A assessed outputs, C
channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from scipy.special import stdtrit
from torch import Tensor

from ganscale.explain.base import SCORING, Meter, Options
from ganscale.explain.errors import ExplainOptionError, ExplainTargetError
from ganscale.explain.labels import label_numbers
from ganscale.explain.latent.base import LatentExplainer
from ganscale.explain.latent.direction_sources import SOURCES, Found, Source, class_odds, project_out
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.subject import Subject, check_callable
from ganscale.explain.types import Better, Explanation, Score

RANDOM_DIRECTIONS = 20
RANDOM_SHOWN = 2
USUAL, MOST_NAMED = 8, 12
MOST_CLASSES = 32  # that have a direction each without being asked for: every one costs a walk from every latent


class DirectionsOptions(Options):
    """Options of the source, of the walks, and of what is assessed."""

    by: Literal["sefa", "pca", "boundary", "score"] = Field("sefa", description="where the directions come from")
    num_directions: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = Field(
        "auto",
        description=f"how many, strongest first; auto: one for each of up to {MOST_CLASSES} classes assessed, else 8",
    )
    steps: Annotated[int, Field(ge=3, le=101)] = Field(7, description="of a walk; odd")
    reach: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = Field(3.0, description="sigmas to either side")
    layer: str = Field("auto", description="of sefa and pca: auto (the one that sees z), or a dotted name")
    assess: Literal["target", "classes"] = Field("target", description="of boundary and score: what is assessed")
    num_draws: Annotated[int, Field(ge=16, le=10_000_000)] = Field(2048, description="latents drawn by a source")
    extremes: Annotated[int, Field(ge=4, le=1_000_000)] = Field(200, description="of boundary: draws at either end")
    disentangle: bool = Field(False, description="project the other directions out of each")


class Directions(LatentExplainer):
    """What the generator varies along, measured on its images beside random directions."""

    name = "directions"
    summary = "what the generator varies along (sefa, pca, boundary, score), measured against random directions"
    Options = DirectionsOptions
    options: DirectionsOptions
    wants = ()
    beside = MappingProxyType({})
    least_latent = 2
    primary = ("image_change_per_sigma",)

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        if self.options.steps % 2 == 0:
            raise ExplainOptionError(
                "steps", "be odd, so that the base image is in the middle", self.options.steps, "add one"
            )
        self.sigmas_S = np.linspace(-self.options.reach, self.options.reach, self.options.steps)

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Return the rounds of the source, then one chunk a direction: the K that were found and the R random ones."""
        number = 0 if previous is None else previous.round + 1
        if number > self._source.rounds:
            return []
        if previous is None:
            self.check_networks()
        if number < self._source.rounds:
            return self._source.chunks(number, previous)
        everything = np.concatenate([self._found(previous).directions, self._random_directions()])
        return [
            Chunk(round=number, index=row, explanation=row, part=0, work={"direction": everything[row]})
            for row in range(len(everything))
        ]

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Walk one direction from every base latent, or compute a chunk of the source.

        A walk gives the L2 distance of each image from its base [N, S], the critic's logits [N, S], what is assessed
        [N, S, A], and where it is shown the images of the first base latent [S, C, H, W] with their probabilities of
        each class.
        """
        if chunk.round < self._source.rounds:
            return self._source.compute(chunk, meter)
        direction_D = torch.from_numpy(chunk.work["direction"])
        offsets_SD = torch.from_numpy(self.sigmas_S)[:, None] * direction_D
        count, steps = len(self.z), len(self.sigmas_S)
        walks = (self.z.double()[:, None] + offsets_SD).to(self.z.dtype).flatten(0, 1)
        images: list[Tensor] = []
        assessed: list[Tensor] = []

        def look(z: Tensor) -> Tensor:
            image = self.subject.generator(z)
            images.append(image.cpu())
            if self._assess is not None:
                assessed.append(self._assess(image).double().cpu())
            return image.new_zeros(len(image)) if self.subject.critic is None else self.subject.critic(image)

        logits = meter.evaluate(look, len(walks), lambda part: walks[part]).reshape(count, steps)
        found = torch.cat(images)[: len(walks)]  # the padding of the last micro-batch is at its end
        flat = found.double().reshape(count, steps, -1)
        change = (flat - flat[:, steps // 2 : steps // 2 + 1]).norm(dim=2).numpy()
        data = {"change": change, "logits": logits}
        if assessed:
            data["assessed"] = torch.cat(assessed)[: len(walks)].unflatten(0, (count, steps)).numpy()
        if chunk.explanation < self._count + RANDOM_SHOWN:
            data["images"] = found[:steps]
            if self.subject.classifier is not None:
                with self.subject.quiet(), torch.no_grad():
                    logits = self.subject.classifier(found[:steps].to(self.subject.device))
                data["probabilities"] = logits.double().softmax(dim=1).cpu().numpy()
        return data

    def finish(self, partial: Partial) -> Explanation:
        """Put the walks together and score the directions against the random ones."""
        source = self._found(partial)
        walks = [data for _, _, data in partial.of_round(self._source.rounds)]
        kept = len(source.directions)
        slopes = np.array([change_per_sigma(data["change"], self.sigmas_S) for data in walks])
        values = {
            "directions": torch.from_numpy(source.directions.copy()),
            "eigenvalues": torch.from_numpy(source.numbers[:kept].copy()),
            "traversal": torch.stack([data["images"] for data in walks[:kept]]),
            "traversal_random": torch.stack([data["images"] for data in walks[kept : kept + RANDOM_SHOWN]]),
            "random_directions": torch.from_numpy(self._random_directions()),
            "sigmas": torch.from_numpy(self.sigmas_S),
            "image_change": torch.from_numpy(slopes[:kept]),
            "image_change_random": torch.from_numpy(slopes[kept:]),
            **source.values,
        }
        scores = {"image_change_per_sigma": _against_random(slopes, kept, better="higher")}
        if source.outputs:
            scores = self._assessment(walks, source) | scores
            self.primary = ("assessed_slope_per_sigma",)
        if self.subject.critic is not None:
            more_scores, more_values = self._of_critic(walks, kept)
            scores, values = scores | more_scores, values | more_values
        names = {} if self._classes is None else {"class_names": [self._classes.label(a) for a in source.outputs]}
        if self.subject.classifier is not None:
            values |= self._verdicts(walks, kept)
            seen = torch.cat([values["walk_class"], values["walk_class_random"]]).unique().tolist()
            names["walk_class_names"] = {str(k): self.subject.classifier.label(k) for k in seen}
        numbers = source.numbers
        share = float(numbers[:kept].sum() / max(numbers.sum(), np.finfo(float).tiny))
        meta = {
            "by": self.options.by,
            "number_name": source.number_name,
            **({"share_of_eigenvalues": share} if source.number_name == "eigenvalue" else {}),
            "random_directions": RANDOM_DIRECTIONS,
            "warnings": self._left_out(source),
            **source.facts,
            **names,
        }
        return self.explanation(partial, values=values, inputs=dict(self.request.inputs), scores=scores, meta=meta)

    def _verdicts(self, walks: list[dict[str, Any]], kept: int) -> dict[str, Tensor]:
        """Return the class of each picture that is shown (the target's where that is a class) and its probability."""
        share = np.stack([data["probabilities"] for data in walks[: kept + RANDOM_SHOWN]])  # [K + R, S, classes]
        target = self.subject.target
        of = np.full(share.shape[:2], target.index) if target.kind == "class" else share.argmax(axis=2)
        values = {"walk_class": of, "walk_probability": np.take_along_axis(share, of[..., None], axis=2)[..., 0]}
        parts = {"": slice(kept), "_random": slice(kept, None)}
        return {f"{n}{end}": torch.from_numpy(v[part].copy()) for n, v in values.items() for end, part in parts.items()}

    def _of_critic(self, walks: list[dict[str, Any]], kept: int) -> tuple[dict[str, Score], dict[str, Tensor]]:
        logits = np.stack([data["logits"] for data in walks])  # [K + R, N, S]
        slope, r_squared = linear_effect(logits, self.sigmas_S)
        along = logits.mean(axis=(1, 2))
        scores = {
            "critic_slope_per_sigma": _against_random(np.abs(slope).mean(axis=1), kept, better="higher"),
            "critic_linearity_r2": _against_random(r_squared.mean(axis=1), kept, better="higher"),
            "critic_score_on_path": _against_random(along, kept, better="higher"),
        }
        return scores, {
            "critic_path": torch.from_numpy(logits[:kept].mean(axis=1)),
            "critic_path_random": torch.from_numpy(logits[kept:].mean(axis=1)),
            "critic_first_walk": torch.from_numpy(logits[:kept, 0].copy()),
            "critic_first_walk_random": torch.from_numpy(logits[kept : kept + RANDOM_SHOWN, 0].copy()),
            "critic_slope": torch.from_numpy(slope[:kept].mean(axis=1)),
        }

    def _assessment(self, walks: list[dict[str, Any]], source: Found) -> dict[str, Score]:
        """Score how steadily each direction raises its own output, and how much it moves the others."""
        assessed = np.stack([data["assessed"] for data in walks])  # [K + R, N, S, A]
        slope, _ = linear_effect(assessed.swapaxes(2, 3), self.sigmas_S)
        mean = slope.mean(axis=1)  # [K + R, A]
        kept, outputs = len(source.directions), list(source.outputs)
        own = mean[np.arange(kept), outputs]
        random = np.abs(mean[kept:][:, outputs]).mean(axis=1)
        scores = {"assessed_slope_per_sigma": _against_random(np.concatenate([own, random]), kept, better="higher")}
        if mean.shape[1] > 1:
            others = [np.abs(np.delete(mean[k], a)).mean() / max(abs(own[k]), 1e-12) for k, a in enumerate(outputs)]
            ratio = [
                np.abs(np.delete(row, outputs[0])).mean() / max(abs(row[outputs[0]]), 1e-12) for row in mean[kept:]
            ]
            scores["leakage"] = Score(
                value=float(np.mean(others)), control=float(np.median(ratio)), n=kept, better="lower"
            )
        return scores

    @property
    def _classes(self) -> Any:
        by_class = self.options.assess == "classes" and self.options.by in ("boundary", "score")
        return self.subject.classifier if by_class else None

    @property
    def _count(self) -> int:
        """Return how many directions are looked for: as many as a latent has numbers at most."""
        asked = self.options.num_directions
        if asked == "auto":
            classes = None if self._classes is None else self._classes.classes
            asked = USUAL if classes is None or classes > MOST_CLASSES else classes
        return min(asked, self.z.shape[1])

    def _left_out(self, source: Found) -> list[str]:
        """Say of which classes there is no direction."""
        if self._classes is None or len(source.outputs) == self._classes.classes:
            return []
        names = [self._classes.label(k) for k in range(self._classes.classes) if k not in source.outputs]
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        words = f"{len(source.outputs)} directions for {self._classes.classes} classes"
        return [f"{words}: none of {', '.join(names[:MOST_NAMED])}{more}"]

    @cached_property
    def _assess(self) -> Callable[[Tensor], Tensor] | None:
        """Return what boundary and score look at: images to [n, A]; None for the other sources."""
        subject = self.subject
        if self.options.by not in ("boundary", "score"):
            return None
        if self.options.assess == "classes":
            if subject.classifier is None:
                remedy = "pass --classifier NAME|PATH"
                raise ExplainTargetError("the subject", "have a classifier for assess=classes", subject.name, remedy)
            return class_odds(subject)
        score = subject.score_images or subject.critic
        return None if score is None else lambda images: score(images)[:, None]

    @cached_property
    def _source(self) -> Source:
        options = self.options
        return SOURCES[options.by](
            subject=self.subject,
            seed=self.request.seed,
            latent=self.z.shape[1],
            count=self._count,
            layer=options.layer,
            draws=options.num_draws,
            extremes=options.extremes,
            reach=options.reach,
            assess=self._assess,
        )

    def _found(self, partial: Partial | None) -> Found:
        found = self._source.find(partial)
        if not self.options.disentangle:
            return found
        every = found.directions
        apart = np.array([project_out(row, np.delete(every, k, axis=0)) for k, row in enumerate(every)])
        return replace(found, directions=apart)

    def _random_directions(self) -> np.ndarray:
        rng = np.random.default_rng(np.random.SeedSequence(self.request.seed, spawn_key=(0, SCORING)))
        drawn = rng.standard_normal((RANDOM_DIRECTIONS, self.z.shape[1]))
        drawn[:, drawn.shape[1] - label_numbers(self.subject.generator) :] = 0  # as in every direction that is found
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    def check_networks(self) -> None:
        """Ask both for two pictures, and whether the critic judges each by itself; raises CallableError."""
        super().check_networks()
        generator = self.subject.generator
        if self.subject.critic is not None:
            look = Subject(
                name="critic on generated images",
                fn=lambda z: self.subject.critic(generator(z)),
                module=self.subject.module,
                generator=generator,
                critic=self.subject.critic,
            )
            check_callable(look, self.z, -self.z[:1], gradient=False)


def change_per_sigma(change_NS: np.ndarray, sigmas_S: np.ndarray) -> float:
    """Return the slope through zero of image distance on |sigma|, over all base latents (L2 norm per sigma)."""
    reach_S = np.abs(sigmas_S)
    return float((change_NS @ reach_S).sum() / (len(change_NS) * (reach_S**2).sum()))


def linear_effect(effect: np.ndarray, sigmas_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return slope per sigma and R^2 of the least-squares line through effects [..., S]; R^2 is 0 where nothing
    varies.
    """
    centred = effect - effect.mean(axis=-1, keepdims=True)
    slope = centred @ sigmas_S / (sigmas_S**2).sum()  # sigmas are symmetric about zero
    total = (centred**2).sum(axis=-1)
    explained = slope**2 * (sigmas_S**2).sum()
    return slope, np.divide(explained, total, out=np.zeros_like(total), where=total > 0)


def _against_random(all_directions: np.ndarray, kept: int, *, better: Better) -> Score:
    """Score the mean of the first ``kept`` numbers against the rest; the interval is that of a mean of random ones."""
    values_K, random_R = all_directions[:kept], all_directions[kept:]
    spread = float(random_R.std(ddof=1)) * float(np.sqrt(1 / kept + 1 / len(random_R)))
    half = float(stdtrit(len(random_R) - 1, 0.975)) * spread
    value = float(values_K.mean())
    return Score(
        value=value, low=value - half, high=value + half, control=float(random_R.mean()), n=kept, better=better
    )
