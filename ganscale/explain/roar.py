"""Remove and retrain (Hooker et al. 2019, arXiv:1806.10758): does a map point at what a classifier needs to learn?

Deleting regions also makes pictures that no network has seen. Here a small network is trained anew on pictures without
the regions that the map ranks first, and judged on held-out pictures treated alike: the faster its accuracy falls, the
more of what tells the classes apart the map has found. Regions go by the size of their share, whatever its sign; the
control removes them at random. (The holes themselves can give a class away: one run proves little.) Classes are the
samples' labels, or real against generated where both are there.

Legend: N samples, M players, F shares removed, R repeats.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ganscale.explain.attribution import TWIN, AttributionExplainer
from ganscale.explain.base import SCORING, Explainer, Meter, Options, check_serves, find_explainer
from ganscale.explain.cells import compose
from ganscale.explain.errors import ExplainInputError, ExplainOptionError
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.scores import Z95, against_random
from ganscale.explain.subject import Subject
from ganscale.explain.types import Explanation

LEAST_SAMPLES = 40
HELD_OUT = 4  # every fourth sample of each class is held out
BATCH = 32
LEARNING_RATE = 2e-3
SHARES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)  # with nothing removed it is seen whether there is anything to lose
AT_CHANCE = "its networks are at chance: the test says nothing"


class RoarOptions(Options):
    """Which maps are tested, and how much is trained."""

    of: str = Field("integrated-gradients", description="the method whose maps are tested")
    repeats: Annotated[int, Field(ge=2, le=100)] = Field(3, description="networks trained for each removed share")
    epochs: Annotated[int, Field(ge=1, le=1000)] = Field(12, description="epochs that each is trained for")
    cells: Annotated[int, Field(ge=2, le=64)] = Field(7, description="cells a side of an image: they are removed")


class Roar(Explainer):
    """Accuracy of networks that are trained without what a map calls important."""

    name = "roar"
    summary = "does a map find what classes are told apart by: networks retrained without its first regions"
    Options = RoarOptions
    options: RoarOptions
    domains = ("x",)
    least_samples = 200  # some of a run's samples are generated, and have no label
    primary = ("accuracy_after_removal",)

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        from ganscale.explain import EXPLAINERS  # the registry holds this class too

        kind = find_explainer(self.options.of, EXPLAINERS)
        if not issubclass(kind, AttributionExplainer):
            known = [name for name, one in EXPLAINERS.items() if issubclass(one, AttributionExplainer)]
            raise ExplainOptionError("of", f"be one of {', '.join(known)}", self.options.of, "for example of=saliency")
        check_serves(kind, subject)
        options = kind.Options.model_validate({"cells": self.options.cells}).model_dump(mode="json")
        self.base = kind(subject, replace(request, method=self.options.of, options=options))
        self.labels = _labels(request.inputs)

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Return the base method's chunks, then one training for each share and repeat, by the map and by chance."""
        if previous is None:
            return [chunk for chunk in self.base.plan() if chunk.part < TWIN]
        if previous.round > 0:
            return []
        sizes_NM = np.abs(self.base.maps_of(previous).weights_NM)  # what speaks against a class tells it apart as well
        rank_NM = np.argsort(np.argsort(-sizes_NM, axis=1, kind="stable"), axis=1)
        places = [(by_map, f, r) for by_map in (1, 0) for f in range(len(SHARES)) for r in range(self.options.repeats)]
        gone_F = [round(share * self.base.players) for share in SHARES]
        return [
            Chunk(
                round=1,
                index=index,
                explanation=f,
                part=SCORING + 2 * r + by_map,
                # a bit for each region of each sample: more would be sent with every one of these chunks
                work={"gone": gone_F[f], "which": np.packbits(rank_NM < gone_F[f]) if by_map else None},
            )
            for index, (by_map, f, r) in enumerate(places)
        ]

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Make maps (round 0), or train one network without some regions and return its held-out accuracy."""
        if chunk.round == 0:
            return self.base.attribute(chunk, meter)
        rng, base = chunk.rng(self.request.seed), self.base
        shape, which = (len(base.x), base.players), chunk.work["which"]
        if which is None:
            gone_NM = rng.random(shape).argsort(axis=1).argsort(axis=1) < chunk.work["gone"]
        else:
            gone_NM = np.unpackbits(which, count=shape[0] * shape[1]).reshape(shape).astype(bool)
        rows = [
            compose(base.x[n], base.baseline[n], ~gone_NM[n : n + 1], base.segments_of(n)) for n in range(len(base.x))
        ]
        return {"accuracy": _trained(torch.cat(rows), self.labels, self.options.epochs, int(rng.integers(2**31)))}

    def finish(self, partial: Partial) -> Explanation:
        """Put the accuracies together; the score is their mean over the shares of which something was removed."""
        found = np.array([data["accuracy"] for _, _, data in partial.of_round(1)])
        own_FR, random_FR = found.reshape(2, len(SHARES), self.options.repeats)
        judged = self.labels[held_out(self.labels)].numpy()
        chance = float(np.bincount(judged).max() / len(judged))
        margin = Z95 * float(np.sqrt(chance * (1 - chance) / len(judged)))  # of the judged pictures, one draw of many
        whole = float(found.reshape(2, len(SHARES), -1)[:, 0].mean())
        at_chance = whole <= chance + margin
        more = {"banner": AT_CHANCE, "warnings": [AT_CHANCE]} if at_chance else {}
        return self.explanation(
            partial,
            values={
                "accuracy": torch.from_numpy(own_FR),
                "accuracy_random": torch.from_numpy(random_FR),
                "removed_share": torch.tensor(SHARES, dtype=torch.float64),
            },
            inputs=dict(self.request.inputs),
            scores={"accuracy_after_removal": against_random(own_FR[1:].mean(axis=1), random_FR[1:], better="lower")},
            meta={"of": self.options.of, "classes": int(self.labels.max()) + 1, "majority": chance, **more},
        )


def _labels(inputs: dict[str, Tensor]) -> Tensor:
    """Return int64 [N]: real against generated where both are there, else the labels."""
    generated, labels = inputs.get("generated"), inputs.get("labels")
    if generated is not None and bool(generated.any()) and not bool(generated.all()):
        found = generated.long()
    elif labels is not None and bool((labels >= 0).all()):
        found = torch.unique(labels, return_inverse=True)[1]
    else:
        raise ExplainInputError("inputs", "have labels, or be real and generated", sorted(inputs), "use --samples both")
    if len(found) < LEAST_SAMPLES or int(found.max()) < 1:
        got = f"{len(found)} samples of {int(found.max()) + 1} classes"
        rule = f"be at least {LEAST_SAMPLES} samples of 2 classes for roar"
        raise ExplainInputError("inputs", rule, got, "use --num-samples 200")
    return found


def held_out(labels: Tensor) -> Tensor:
    """Return bool [N]: every fourth sample of each class, whatever order the classes come in."""
    members = torch.nn.functional.one_hot(labels)
    place = (members.cumsum(dim=0) * members).sum(dim=1) - 1  # how many of its class came before each sample
    return place % HELD_OUT == 0


def _trained(x: Tensor, labels: Tensor, epochs: int, seed: int) -> float:
    """Train a small network on three quarters of the samples and return its accuracy on the others."""
    held = held_out(labels)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        torch.manual_seed(seed)  # the caller holds the global stream apart
        network = nn.Sequential(
            nn.Conv2d(x.shape[1], 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.LazyLinear(int(labels.max()) + 1),
        ).to(x.dtype)
        network(x[:1])
        optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        images, targets = x[~held], labels[~held]
        for _ in range(epochs):
            for rows in torch.randperm(len(images), generator=generator).split(BATCH):
                optimizer.zero_grad()
                cross_entropy(network(images[rows]), targets[rows]).backward()
                optimizer.step()
    with torch.no_grad():
        return float((network(x[held]).argmax(dim=1) == labels[held]).double().mean())
