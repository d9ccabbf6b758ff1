"""Is a map about this network at all? The model parameter randomisation test (Adebayo et al. 2018, arXiv:1810.03292).

The weights are shuffled layer by layer, from the output back, each stage keeping what the one before shuffled; after
each stage the same method draws the map anew. A map that stays what it was shows the picture, not what was learned. How
alike two maps are is the absolute rank correlation (Spearman). The control is the trained network's own maps of inputs
that were moved a little: a shuffled network has to change the map more than that.

Legend: N samples, S stages, R moved inputs, n samples shown, C channels, H height, W width, M players.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from scipy.stats import rankdata

from ganscale.explain import scores
from ganscale.explain.attribution import TWIN, AttributionExplainer, Maps
from ganscale.explain.base import Explainer, Meter, Options, check_serves, find_explainer
from ganscale.explain.errors import ExplainOptionError, ExplainTargetError
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.shuffling import has_weights, shuffled_weights, weighted_layers
from ganscale.explain.subject import Subject
from ganscale.explain.types import Explanation

MOVED = 4  # inputs moved for the control
SHOWN = 4  # samples whose maps are kept


class MprtOptions(Options):
    """Which maps are tested, and how finely."""

    of: str = Field("integrated-gradients", description="the method whose maps are tested")
    stages: Annotated[int, Field(ge=1, le=10)] = Field(
        8, description="stages at most: of more layers, some are shuffled together"
    )
    cells: Annotated[int, Field(ge=2, le=64)] = Field(7, description="cells a side of an image, for that method")
    baseline: str = Field("auto", description="what stands for an absent part, for that method")


class Mprt(Explainer):
    """Maps of a network that loses what it learned, layer by layer."""

    name = "mprt"
    summary = "is a map about this network: what becomes of it as the weights are shuffled, from the output back"
    Options = MprtOptions
    options: MprtOptions
    primary = ("similarity_all_shuffled",)

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        self.base = self._base()
        if not has_weights(subject.module):
            rule, remedy = "have a network with weights for mprt", "explain a network, or name it in a Subject"
            raise ExplainTargetError("the subject", rule, subject.name, remedy)
        layers = weighted_layers(subject.module)[::-1]
        count = min(self.options.stages, len(layers))
        ends = [round((stage + 1) * len(layers) / count) for stage in range(count)]
        self.stages = [layers[:end] for end in ends]

    @property
    def samples_apart(self) -> bool:
        """Whether each sample is explained apart: as by the base method."""
        return self.base.samples_apart

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Return the base method's chunks, once for every map: the own one, the moved inputs', each stage's."""
        if previous is not None:
            return []
        own = [chunk for chunk in self.base.plan() if chunk.part < TWIN]
        maps = range(1 + MOVED + len(self.stages))
        chunks = [replace(chunk, part=chunk.part + number * TWIN) for number in maps for chunk in own]
        return [replace(chunk, index=index) for index, chunk in enumerate(chunks)]

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Run one chunk of one map; NaN for the samples of which a shuffled network gives nothing finite."""
        number, inner = chunk.part // TWIN, replace(chunk, part=chunk.part % TWIN)
        if number <= MOVED:
            return self.base.twin(number - 1).attribute(inner, meter)
        layers = self.stages[number - MOVED - 1]
        meter.tolerant = True
        with shuffled_weights(self.subject.module, seed=self.request.seed, layers=layers):
            return self.base.attribute(inner, meter)

    def finish(self, partial: Partial) -> Explanation:
        """Compare all maps with the trained network's own."""
        found = [self._maps(partial, number) for number in range(1 + MOVED + len(self.stages))]
        own = found[0]
        alike = [self._alike(own, other) for other in found[1:]]
        moved_RN, stages_SN = np.stack(alike[:MOVED]), np.stack(alike[MOVED:])
        control_N, measured = moved_RN.mean(axis=0), {}
        for name, row in (("similarity_output_shuffled", 0), ("similarity_all_shuffled", -1)):
            measured[name] = scores.against_control(stages_SN[row], control_N, better="lower")
        shown = [own, *found[1 + MOVED :]]
        lost = {layers[-1]: int((~one.made_N).sum()) for layers, one in zip(self.stages, shown[1:], strict=True)}
        count = len(own.weights_NM)
        return self.explanation(
            partial,
            values={
                "similarity": torch.from_numpy(stages_SN),
                "similarity_moved": torch.from_numpy(moved_RN),
                "stage_maps": torch.stack([one.attribution[:SHOWN].nan_to_num() for one in shown]),
            },
            inputs=dict(self.request.inputs),
            scores=measured,
            meta={
                "of": self.options.of,
                "layers": [layers[-1] for layers in self.stages],
                "baseline": self.options.baseline,
                "signed": own.meta.get("signed", True),
                "warnings": [
                    f"no finite map of {failed} of {count} samples once {name} was shuffled"
                    for name, failed in lost.items()
                    if failed
                ],
            },
        )

    def _base(self) -> AttributionExplainer:
        from ganscale.explain import EXPLAINERS  # the registry holds this class too

        kind = find_explainer(self.options.of, EXPLAINERS)
        if not issubclass(kind, AttributionExplainer):
            known = [name for name, one in EXPLAINERS.items() if issubclass(one, AttributionExplainer)]
            raise ExplainOptionError("of", f"be one of {', '.join(known)}", self.options.of, "for example of=saliency")
        check_serves(kind, self.subject)
        options = {"shakes": MOVED, "cells": self.options.cells, "baseline": self.options.baseline}
        options = kind.Options.model_validate(options).model_dump(mode="json")
        return kind(self.subject, replace(self.request, method=self.options.of, options=options))

    def _maps(self, partial: Partial, number: int) -> Maps:
        low = number * TWIN
        items = [item for item in partial.items if low <= item[2] < low + TWIN]
        items = [(round_, explanation, part - low, data) for round_, explanation, part, data in items]
        return self.base.twin(number - 1 if number <= MOVED else -1).collect(replace(partial, items=tuple(items)))

    def _alike(self, own: Maps, other: Maps) -> np.ndarray:
        """Return |Spearman's rho| of each sample's two maps [N]; 0 where a map is even, NaN where one was not made."""
        pixels = self.base.weighs == "pixels"
        rows = [m.attribution.double().flatten(1).numpy() if pixels else m.weights_NM for m in (own, other)]
        one, two = (rankdata(values, axis=1) for values in rows)
        one, two = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (one, two))
        size = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
        alike_N = np.abs(np.divide((one * two).sum(axis=1), size, out=np.zeros(len(size)), where=size > 0))
        return np.where(other.made_N, alike_N, np.nan)
