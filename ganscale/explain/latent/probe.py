"""Where a classifier fails on generated images, and what it says on the way from one class to another.

What an image is meant to be is said by the label that the generator was given; where it takes none, by the labels of
the real images nearest to it in pixels, which no network has fitted. The classifier's verdict is set against that.
Ways from one verdict to another go through latent space; the control blends the two pictures instead.

Legend: n draws, K classes, P real images, T points of a way, W ways.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ganscale.explain.base import Explainer, Meter, Options
from ganscale.explain.errors import ExplainInputError
from ganscale.explain.latent.base import LatentExplainer
from ganscale.explain.plan import Chunk, Partial
from ganscale.explain.scores import against_control, against_random
from ganscale.explain.types import Explanation

DRAWS_A_CHUNK = 64
NEIGHBOURS = 5
PERMUTATIONS = 20
SURE = 0.9
WAYS_SHOWN = 6


class ProbeOptions(Options):
    """``draws`` latents are judged; ways lead between neighbours among the given latents."""

    draws: Annotated[int, Field(ge=8, le=10_000_000)] = Field(512, description="latents drawn and judged")
    points: Annotated[int, Field(ge=3, le=101)] = Field(9, description="points of a way from one verdict to another")


class ProbeClassifier(LatentExplainer):
    """Sets a classifier's verdicts on generated images against what they are meant to be.

    Stopped early it is of fewer draws.
    """

    name = "probe-classifier"
    summary = "where a classifier fails on generated images: meant against predicted class, and ways between classes"
    Options = ProbeOptions
    options: ProbeOptions
    needs = ("generator", "classifier")
    primary = ("agreement",)
    pieces = "draws"

    @property
    def samples_apart(self) -> bool:
        """Whether draws are judged apart: yes. The ways between the latents belong to the first of them."""
        return True

    @property
    def total(self) -> int:
        """Return how many draws there are."""
        return self.options.draws

    def place_of(self, chunk: Chunk) -> int:
        """Return the first draw of a chunk."""
        return chunk.explanation * DRAWS_A_CHUNK

    def first(self, count: int) -> Explainer:
        """Return this explainer for its first ``count`` draws."""
        return self.with_options(draws=count)

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Return one chunk for every 64 draws, then one for the ways."""
        if previous is not None:
            return []
        if self.labelled is None:
            self._check_real()
        self.check_networks()
        firsts = range(0, self.options.draws, DRAWS_A_CHUNK)
        draws = [
            Chunk(
                round=0,
                index=index,
                explanation=index,
                part=0,
                work={"rows": min(DRAWS_A_CHUNK, self.options.draws - first)},
            )
            for index, first in enumerate(firsts)
        ]
        return [*draws, Chunk(round=0, index=len(draws), explanation=0, part=1)]

    def _check_real(self) -> None:
        """Refuse to judge where nothing says what a picture is meant to be."""
        labels = self.request.inputs.get("real_labels")
        if self.real is None or labels is None or not bool((labels >= 0).any()):
            rule = f"hold real images with labels for {self.name}"
            raise ExplainInputError("inputs", rule, sorted(self.request.inputs), "explain a run on labelled data")
        classes = self.subject.classifier.classes
        if int(labels.max()) >= classes:
            rule, remedy = f"be below {classes}, the number of classes", "use a classifier of the data's classes"
            raise ExplainInputError("labels of the real images", rule, int(labels.max()), remedy)

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Judge a chunk of draws, or walk the ways."""
        with torch.no_grad():
            return self._walk(meter) if chunk.part else self._draw(chunk, meter)

    def finish(self, partial: Partial) -> Explanation:
        """Count meant against predicted classes and score both parts."""
        found = partial.of_round(0)
        draws = [data for _, part, data in found if part == 0]
        ways = next(data for _, part, data in found if part == 1)
        classifier = self.subject.classifier
        classes = classifier.classes
        meant, predicted, sure = (
            np.concatenate([data[key] for data in draws]) for key in ("meant", "predicted", "confidence")
        )
        matrix = np.zeros((classes, classes), dtype=np.int64)
        np.add.at(matrix, (meant, predicted), 1)
        rng = np.random.default_rng(np.random.SeedSequence(self.request.seed, spawn_key=(0, 2)))
        permuted = np.stack([rng.permutation(meant) == predicted for _ in range(PERMUTATIONS)], axis=1).astype(float)
        agreed = (meant == predicted).astype(float)
        scores = {"agreement": against_random(agreed, permuted, better="higher")}
        wrong = agreed == 0
        values = {
            "probe_matrix": torch.from_numpy(matrix),
            "agreement_permuted": torch.from_numpy(permuted.mean(axis=0)),
            "confidence": torch.from_numpy(
                np.array(
                    [sure[~wrong].mean() if (~wrong).any() else np.nan, sure[wrong].mean() if wrong.any() else np.nan]
                )
            ),
            "sure_and_wrong": torch.tensor(float((wrong & (sure >= SURE)).mean())),
            "unsure": torch.tensor(float((sure < 0.5).mean())),
        }
        if len(ways["third"]):
            scores["third_class_on_the_way"] = against_control(ways["third"], ways["third_blend"], better="lower")
            values |= {
                "way_ends": torch.from_numpy(ways["ends"]),
                "way_probability": torch.from_numpy(ways["probability"]),
                "way_images": self._ways_shown(ways["rows"][:WAYS_SHOWN]),
            }
        meta = {
            "class_names": [classifier.label(k) for k in range(classes)],
            "draws": len(meant),
            "meant_by": self._meant_by,
            "sure_and_wrong": float(values["sure_and_wrong"]),
        }
        return self.explanation(partial, values=values, inputs={"z": self.z}, scores=scores, meta=meta)

    @property
    def _meant_by(self) -> str:
        if self.labelled is not None:
            return "label that the generator was given"
        return f"label of most of the {NEIGHBOURS} nearest of {len(self.real)} real images, in pixels"

    def _draw(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        drawn = chunk.rng(self.request.seed).standard_normal((chunk.work["rows"], self.z.shape[1]))
        z = torch.from_numpy(drawn).to(self.z.dtype).to(self.subject.device)
        images = self.subject.generator(z)
        share, predicted = self.subject.classifier(images).double().softmax(dim=1).max(dim=1)
        meter.rows_forward += 2 * len(z)
        return {
            "meant": self._meant(images.cpu()) if self.labelled is None else self.labelled.labels(z).cpu().numpy(),
            "predicted": predicted.cpu().numpy(),
            "confidence": share.cpu().numpy(),
        }

    def _meant(self, images: Tensor) -> np.ndarray:
        """Return the label of most of the nearest labelled real images; the nearest decides a tie."""
        labels = self.request.inputs["real_labels"]
        pool, labels = self.real[labels >= 0], labels[labels >= 0]
        distances = torch.cdist(images.double().flatten(1), pool.double().flatten(1))
        near = labels[distances.argsort(dim=1, stable=True)[:, :NEIGHBOURS]]
        votes = torch.nn.functional.one_hot(near, self.subject.classifier.classes).double()
        weights = 1 + 1e-3 * torch.arange(near.shape[1], 0, -1)
        return (votes * weights[None, :, None]).sum(dim=1).argmax(dim=1).numpy()

    def _walk(self, meter: Meter) -> dict[str, Any]:
        """Return for each way between different verdicts what the classifier says along it, and along the blend."""
        z = self.z.to(self.subject.device)
        partner = z.roll(-1, dims=0)
        ends = torch.stack(
            [self.subject.classifier(self.subject.generator(part)).argmax(dim=1) for part in (z, partner)]
        )
        rows = torch.nonzero(ends[0] != ends[1])[:, 0]
        third, blended, probabilities = [], [], []
        for row in rows.tolist():
            path = self._path(row)
            images = self.subject.generator(path)
            share = torch.linspace(0, 1, len(path), device=z.device)[:, None, None, None].to(images)
            blend = images[:1] * (1 - share) + images[-1:] * share
            logits = [self.subject.classifier(part).double() for part in (images, blend)]
            own = ends[:, row]
            strangers = [((part.argmax(1) != own[0]) & (part.argmax(1) != own[1])).double().mean() for part in logits]
            third.append(float(strangers[0]))
            blended.append(float(strangers[1]))
            probabilities.append(logits[0].softmax(dim=1)[:, own].T.cpu().numpy())
            meter.rows_forward += 3 * len(path)
        shape = (0, 2, self.options.points)
        return {
            "rows": rows.cpu().numpy(),
            "ends": ends[:, rows].T.cpu().numpy(),
            "third": np.array(third),
            "third_blend": np.array(blended),
            "probability": np.stack(probabilities) if probabilities else np.zeros(shape),
        }

    def _path(self, row: int) -> Tensor:
        """Return the points of the great circle from a latent to the next, [T, D] (White 2016, arXiv:1609.04468).

        Where the generator takes labels, the first half has the first one's and the rest the other's.
        """
        a, b = (self.z[at % len(self.z)].double() for at in (row, row + 1))
        share = torch.linspace(0, 1, self.options.points, dtype=torch.float64)[:, None]
        angle = ((a @ b) / (a.norm() * b.norm())).clamp(-0.9999, 0.9999).acos()
        path = (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()
        path = path.to(self.z.dtype).to(self.subject.device)
        if self.labelled is None:
            return path
        ends = self.labelled.labels(self.z[[row % len(self.z), (row + 1) % len(self.z)]])
        return self.labelled.with_label(path, ends.to(path.device)[(share[:, 0] > 0.5).long()])

    def _ways_shown(self, rows: np.ndarray) -> Tensor:
        with self.subject.quiet(), torch.no_grad():
            return torch.stack([self.subject.generator(self._path(int(row))).cpu() for row in rows])
