"""What each layer of a network sees: the maps of its most varied channels, over the pictures they belong to.

How far a map depicts its own picture is measured as the correlation of its strength with the picture's edges and
brightness, place by place; the control is the same with the pictures exchanged.

With ``checkpoints`` the same channels are also looked at as they were earlier in training: of a generator on the same
latents, of a critic on the pictures of today.

Legend: N latents, S channels shown, L layers, T earlier times, h height, w width of a map.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from ganscale.explain.base import Explainer, Meter, Options
from ganscale.explain.beside import rows_a_row
from ganscale.explain.errors import ExplainOptionError, LayerError
from ganscale.explain.latent.base import LatentExplainer
from ganscale.explain.plan import Chunk, Partial
from ganscale.explain.scores import against_random
from ganscale.explain.subject import Earlier
from ganscale.explain.types import Explanation
from ganscale.explain.units.networks import called, layers_with_maps, maps_at, maps_of, network_of

SHOWN_ROWS = 4
PERMUTATIONS = 20


class FeatureMapsOptions(Options):
    """``network``: G on latents, D or C on the generator's pictures of them."""

    network: Literal["G", "D", "C"] = Field("G", description="whose layers: G, D or C")
    layers: str = Field("auto", description="auto (all with maps), or dotted names with commas between")
    channels: Annotated[int, Field(ge=1, le=64)] = Field(8, description="channels shown of each layer")
    checkpoints: Annotated[int, Field(ge=1, le=16)] = Field(
        1, description="checkpoints shown: this one and earlier ones"
    )


class FeatureMaps(LatentExplainer):
    """The maps of each layer's most varied channels. Stopped early it is of fewer layers."""

    name = "feature-maps"
    summary = "what each layer of the generator, the critic or the classifier sees: maps of its most varied channels"
    Options = FeatureMapsOptions
    options: FeatureMapsOptions
    primary = ("depicts_its_picture",)
    pieces = "layers"

    @property
    def samples_apart(self) -> bool:
        """Whether layers are looked at apart: yes."""
        return True

    @property
    def total(self) -> int:
        """Return how many layers there are."""
        return len(self._names)

    def first(self, count: int) -> Explainer:
        """Return this explainer for its first ``count`` layers."""
        return self.with_options(layers=",".join(self._names[:count]))

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Return one chunk a layer."""
        if previous is not None:
            return []
        if self.options.network == "C" and self.options.checkpoints > 1:
            remedy = "leave it out, or look at G or D"
            raise ExplainOptionError("checkpoints", "be 1 for a classifier", self.options.checkpoints, remedy)
        return [
            Chunk(round=0, index=k, explanation=k, part=0, work={"layer": name}) for k, name in enumerate(self._names)
        ]

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return one layer's chosen channels, their maps of the first rows, and how they depict their pictures."""
        rows = self._rows()
        maps = maps_of(self, self.options.network, chunk.work["layer"], rows)
        meter.rows_forward += len(rows) * rows_a_row(network_of(self, self.options.network))
        if maps.ndim != 4:
            got = f"{chunk.work['layer']} of {tuple(maps.shape[1:])}"
            raise LayerError("layer", "have a map (C, h, w)", got, "name another")
        varied = maps.double().transpose(0, 1).flatten(1).std(dim=1)
        channels = varied.argsort(descending=True, stable=True)[: self.options.channels]
        chosen = maps[:, channels]
        past = maps_at(self._before, self.options.network, chunk.work["layer"], rows[:1])
        meter.rows_forward += len(past)
        depicted, permuted = self._depicts(chosen, chunk.rng(self.request.seed))
        return {
            "layer": chunk.work["layer"],
            "channels": channels.numpy(),
            "maps": chosen[:SHOWN_ROWS].float().numpy(),
            "past": [one[0, channels].float().numpy() for one in past],
            "depicted": depicted,
            "permuted": permuted,
        }

    def finish(self, partial: Partial) -> Explanation:
        """Put the layers together."""
        found = [data for _, _, data in partial.of_round(0)]
        depicted, permuted = (np.concatenate([data[key] for data in found]) for key in ("depicted", "permuted"))
        values: dict[str, Tensor] = {"map_images": self.images(self.z[:SHOWN_ROWS])}
        for place, data in enumerate(found):
            values[f"map_{place}"] = torch.from_numpy(data["maps"])
            values[f"channels_{place}"] = torch.from_numpy(data["channels"])
            if data["past"]:
                values[f"past_{place}"] = torch.from_numpy(np.stack(data["past"]))
        before = self._before
        if before:
            with self.subject.quiet():
                values["past_images"] = torch.cat([called(one.generator, self.z[:1]).cpu() for one in before])
            values["past_times"] = torch.tensor([one.images for one in before], dtype=torch.int64)
        values["depicted"] = torch.tensor([float(data["depicted"].mean()) for data in found])
        values["depicted_permuted"] = torch.from_numpy(np.stack([data["permuted"].mean(axis=0) for data in found]))
        scores = {"depicts_its_picture": against_random(depicted, permuted, better="higher")}
        meta = {"network": self.options.network, "layers": [data["layer"] for data in found]}
        if len(before) + 1 < self.options.checkpoints:
            kept = f"{len(before) + 1} are kept (checkpoint.keep)"
            meta["warnings"] = [f"{self.options.checkpoints} checkpoints were asked for, {kept}"]
        return self.explanation(partial, values=values, inputs={"z": self.z}, scores=scores, meta=meta)

    @cached_property
    def _names(self) -> list[str]:
        """The layers that are looked at, in order of use; raises LayerError where there are none."""
        if self.options.layers != "auto":
            return [name.strip() for name in self.options.layers.split(",")]
        names = layers_with_maps(self, self.options.network, self._rows())
        if not names:
            raise LayerError("the network", "have a layer with a map", self.options.network, "choose another network")
        return names

    @property
    def _before(self) -> tuple[Earlier, ...]:
        """The earlier times that were asked for, the oldest first; the newest ones where there are more."""
        count = self.options.checkpoints - 1
        return self.subject.earlier[-count:] if count else ()

    def _rows(self) -> Tensor:
        return self.z if self.options.network == "G" else self.images(self.z)

    def _depicts(self, maps: Tensor, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return for each channel the mean |correlation| of map and picture over rows [S], and with others' [S, R]."""
        picture = self.images(self.z).double().mean(dim=1, keepdim=True)
        size = maps.shape[2:]
        bright = interpolate(picture, size, mode="area").flatten(2)
        flat = maps.double().flatten(2)

        def correlation(a: Tensor, b: Tensor) -> Tensor:
            a, b = a - a.mean(dim=2, keepdim=True), b - b.mean(dim=2, keepdim=True)
            return ((a * b).sum(dim=2) / (a.norm(dim=2) * b.norm(dim=2)).clamp_min(1e-12)).abs().mean(dim=0)

        orders = [torch.from_numpy(rng.permutation(len(picture))) for _ in range(PERMUTATIONS)]
        permuted = torch.stack([correlation(flat, bright[order]) for order in orders], dim=1)
        return correlation(flat, bright).numpy(), permuted.numpy()
