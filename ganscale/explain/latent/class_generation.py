"""What a classifier takes for each class when a generator is the prior: latents that make it most certain.

The search stays on the sphere where a normal latent lies (its radius is the square root of D), so that what it finds is
something that the generator draws, and is beside the nearest real images of that class and beside plain draws. That
the classifier says yes to it proves nothing, as that was searched for; that its nearest real images are of the class
decides. A generator that takes labels draws each class itself; then nothing is searched for, draws of any label are the
control, and the classifier decides.

Legend: K classes, B candidates a class, D latent, P real images, n rows.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ganscale.explain.base import Explainer, Meter, Options
from ganscale.explain.errors import ExplainOptionError
from ganscale.explain.latent.attfind import one_against_rest
from ganscale.explain.latent.base import LatentExplainer
from ganscale.explain.plan import Chunk, Partial
from ganscale.explain.scores import against_control
from ganscale.explain.types import Explanation

SHOWN = 4
NEIGHBOURS = 5


class ClassGenerationOptions(Options):
    """The best ``candidates`` of ``draws`` latents are improved by ``steps`` steps; or drawn as their label says."""

    way: Literal["auto", "draw", "search"] = Field(
        "auto", description="draw: by the generator's labels; search: what the classifier is surest of; auto: draw"
    )
    draws: Annotated[int, Field(ge=1, le=65536)] = Field(64, description="latents drawn for each class")
    candidates: Annotated[int, Field(ge=1, le=256)] = Field(8, description="best of them that are improved")
    steps: Annotated[int, Field(ge=0, le=10_000)] = Field(40, description="steps of the search")
    step: Annotated[float, Field(gt=0, le=10)] = Field(0.2, description="length of a step, L2")
    classes: Annotated[int, Field(ge=1)] | Literal["auto"] = Field("auto", description="auto: all; or the first ones")


class ClassGeneration(LatentExplainer):
    """For each class the latents that the classifier is most certain of. Stopped early it is of fewer classes."""

    name = "class-generation"
    summary = "what the classifier takes for each class when the generator is the prior, beside plain draws"
    Options = ClassGenerationOptions
    options: ClassGenerationOptions
    needs = ("generator", "classifier")
    primary = ("real_neighbours_of_class",)
    pieces = "classes"

    @property
    def samples_apart(self) -> bool:
        """Whether classes are searched for apart: yes."""
        return True

    @property
    def total(self) -> int:
        """Return how many classes there are."""
        known, asked = self.subject.classifier.classes, self.options.classes
        if asked != "auto" and asked > known:
            rule = f"be at most the {known} of {self.subject.classifier.name}"
            raise ExplainOptionError("classes", rule, asked, "leave it out")
        return known if asked == "auto" else asked

    def first(self, count: int) -> Explainer:
        """Return this explainer for the first ``count`` classes."""
        return self.with_options(classes=count)

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Return one chunk a class."""
        if previous is not None:
            return []
        self.check_networks()
        if self.options.way == "draw" and self.labelled is None:
            rule, remedy = "be search where the generator takes no labels", "leave it out"
            raise ExplainOptionError("way", rule, self.options.way, remedy)
        return [Chunk(round=0, index=k, explanation=k, part=0) for k in range(self.total)]

    @property
    def _draws(self) -> bool:
        return self.options.way != "search" and self.labelled is not None

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Draw one class, or search for it; returns latents [B, D] and log-odds, and those of as many plain draws."""
        drawn = chunk.rng(self.request.seed).standard_normal((self.options.draws, self.z.shape[1]))
        z = torch.from_numpy(drawn).to(self.z.dtype).to(self.subject.device)
        found = self._draw(z, chunk.explanation, meter) if self._draws else self._search(z, chunk.explanation, meter)
        return {name: value.detach().cpu().numpy() for name, value in found.items()}

    def _draw(self, z: Tensor, k: int, meter: Meter) -> dict[str, Tensor]:
        """Give the drawn latents the label; the plain draws keep their own."""
        plain = z[: self.options.candidates]
        at = self.labelled.with_label(plain, k)
        with torch.no_grad():
            odds, plain_odds = (torch.cat([self._odds(p, k) for p in x.split(self.micro_batch)]) for x in (at, plain))
        meter.rows_forward += 4 * len(plain)
        return {"z": at, "odds": odds, "plain": plain, "plain_odds": plain_odds}

    def _search(self, z: Tensor, k: int, meter: Meter) -> dict[str, Tensor]:
        """Improve the best of the drawn latents."""
        options = self.options
        with torch.no_grad():
            odds = torch.cat([self._odds(part, k) for part in z.split(self.micro_batch)])
        order = odds.argsort(descending=True, stable=True)[: options.candidates]
        best, best_odds = z[order].clone(), odds[order].clone()
        radius, at = self.z.shape[1] ** 0.5, best.clone()
        for _ in range(options.steps):
            leaf = at.requires_grad_(True)
            value = self._odds(leaf, k)
            (slope,) = torch.autograd.grad(value.sum(), leaf)
            better = value.detach() > best_odds
            best = torch.where(better[:, None], leaf.detach(), best)
            best_odds = torch.where(better, value.detach(), best_odds)
            moved = leaf.detach() + options.step * slope / slope.norm(dim=1, keepdim=True).clamp_min(1e-30)
            at = moved * (radius / moved.norm(dim=1, keepdim=True).clamp_min(1e-30))
        meter.rows_forward += 2 * (options.draws + options.steps * len(order))
        meter.rows_backward += 2 * options.steps * len(order)
        return {"z": best, "odds": best_odds, "plain": z[: len(order)], "plain_odds": odds[: len(order)]}

    def finish(self, partial: Partial) -> Explanation:
        """Put the classes together, beside real images, and score them against plain draws."""
        parts = [data for _, _, data in partial.of_round(0)]
        classes = len(parts)
        odds, plain_odds = (np.stack([part[key] for part in parts]) for key in ("odds", "plain_odds"))
        hits, plain_hits = (odds > 0).astype(float), (plain_odds > 0).astype(float)
        z, plain = (torch.from_numpy(np.stack([part[key] for part in parts])) for key in ("z", "plain"))
        ranked = np.zeros(odds.shape) if self._draws else -odds  # of draws the first are shown, not the best
        order = torch.from_numpy(np.argsort(ranked, axis=1, kind="stable")[:, :SHOWN].copy())
        best_z = z[torch.arange(classes)[:, None], order]
        shape, count = (classes, order.shape[1]), min(self.options.candidates, odds.shape[1])
        images = self.images(best_z.flatten(0, 1))
        shown_odds = torch.from_numpy(odds)[torch.arange(classes)[:, None], order].double()
        scores = {"hit_rate": against_control(hits.mean(axis=1), plain_hits.mean(axis=1), better="higher")}
        values = {
            "class_images": images.unflatten(0, shape),
            "class_probability": shown_odds.sigmoid(),
            "class_latents": best_z,
            "hits": torch.from_numpy(hits.mean(axis=1)),
            "hits_of_draws": torch.from_numpy(plain_hits.mean(axis=1)),
            "log_odds_random": torch.from_numpy(plain_odds),
        }
        if self.subject.critic is not None:
            made, drawn = (self.judge(self.subject.critic, self.images(part.flatten(0, 1))) for part in (z, plain))
            values["class_critic"] = self.judge(self.subject.critic, images).unflatten(0, shape)
            both = (part.unflatten(0, (classes, count)).mean(dim=1).numpy() for part in (made, drawn))
            scores["plausibility_critic"] = against_control(*both, better="higher")
        labels = self.request.inputs.get("real_labels")
        if self.real is not None and labels is not None and bool((labels >= 0).any()):
            agreed = [self._agreement(part, labels) for part in (z, plain)]
            scores["real_neighbours_of_class"] = against_control(*agreed, better="higher")
            values["class_nearest"] = self.real[self._nearest(images, 1)[:, 0]].unflatten(0, shape)
        classifier = self.subject.classifier
        names = [classifier.label(k) for k in range(classes)]
        meta = {"class_names": names, "candidates": count, "way": "draw" if self._draws else "search"}
        if self._draws:
            meta["primary"] = ["hit_rate"]
        elif "real_neighbours_of_class" not in scores:
            meta["warnings"] = ["without labelled real images nothing decides: what was searched for is found"]
        return self.explanation(partial, values=values, inputs={"z": self.z}, scores=scores, meta=meta)

    def _odds(self, z: Tensor, k: int) -> Tensor:
        return one_against_rest(self.subject.classifier(self.subject.generator(z)))[:, k]

    def _nearest(self, images: Tensor, count: int) -> Tensor:
        distances = torch.cdist(images.double().flatten(1), self.real.double().flatten(1))
        return distances.argsort(dim=1, stable=True)[:, :count]

    def _agreement(self, z: Tensor, labels: Tensor) -> np.ndarray:
        """Return per class which share of the nearest real images carries its label: no network has a say in that."""
        nearest = self._nearest(self.images(z.flatten(0, 1)), NEIGHBOURS)
        own = labels[nearest].unflatten(0, z.shape[:2]) == torch.arange(len(z))[:, None, None]
        return own.double().mean(dim=(1, 2)).numpy()
