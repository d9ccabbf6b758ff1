"""Dissection: which unit of a generator draws which concept, and what vanishes without it.

Bau et al. 2019 (GAN dissection, arXiv:1811.10597, section 3): a unit's map, enlarged to the picture and cut at a
threshold, is compared with the mask of each concept; then the units that fit a concept best are set to zero. Threshold
and units are chosen on half of the latents and judged on the other half; draws of the prior say which thresholds there
are.

Legend: N latents, U units, K concepts, T thresholds, H height, W width, R random sets, n rows of a chunk.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from ganscale.explain.base import Meter, Options
from ganscale.explain.edits import ablate, edited, used_layers
from ganscale.explain.errors import LayerError
from ganscale.explain.latent.base import LatentExplainer
from ganscale.explain.layers import layer_output
from ganscale.explain.plan import Chunk, Partial
from ganscale.explain.scores import against_control, against_random
from ganscale.explain.types import Explanation
from ganscale.explain.units.concepts import Concepts

ROWS_A_CHUNK = 16
QUANTILES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
SHARES = (0.2, 0.35, 0.5, 0.65)  # of the way from a unit's median to its largest value: further thresholds
LOOKED_AT = 64  # latents whose pictures may be shown
RANDOM_SETS = 8
LEAST_PIXELS = 50  # of a concept in either half, below which nothing is said about it
SHOWN, TOP_IMAGES = 6, 3


class DissectOptions(Options):
    """``layer`` auto: the last hidden layer with a map."""

    layer: str = Field("auto", description="the generator's layer whose channels are the units")
    ablate: Annotated[int, Field(ge=1, le=4096)] = Field(4, description="units set to zero for each concept")


class Dissect(LatentExplainer):
    """Compares each unit's map with each concept's mask, then removes the units that fit.

    Which units are removed hangs on all latents, so that within a budget this is done again as their number doubles.
    """

    name = "dissect"
    summary = "which unit of the generator draws which concept, and what vanishes without it"
    Options = DissectOptions
    options: DissectOptions
    primary = ("iou_held_out",)
    rounds_apart = False

    @property
    def samples_apart(self) -> bool:
        """Whether overlaps are counted apart: yes, for every few latents."""
        return True

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Return one chunk for every few latents and each layer, then one for each concept that appeared."""
        if previous is None:
            starts = range(0, len(self.z), ROWS_A_CHUNK)
            work = [
                (part, first, {"layer": layer, "thresholds": thresholds_TU})
                for part, layer in enumerate(self._counted)
                for thresholds_TU in [self._thresholds(layer)]
                for first in starts
            ]
            return [
                Chunk(round=0, index=index, explanation=first, part=part, work=what)
                for index, (part, first, what) in enumerate(work)
            ]
        if previous.round > 0:
            return []
        found = self._fit(previous)
        units = [(k, found["order"][: self.options.ablate, k]) for k in found["seen"]]
        return [
            Chunk(round=1, index=index, explanation=int(k), part=1, work={"units": chosen, "latents": len(self.z)})
            for index, (k, chosen) in enumerate(units)
        ]

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Count overlaps (round 0) or measure what vanishes without a concept's units (round 1)."""
        with torch.no_grad():
            return self._count(chunk, meter) if chunk.round == 0 else self._remove(chunk, meter)

    def finish(self, partial: Partial) -> Explanation:
        """Choose units and thresholds on one half, score them on the other, and draw the best units."""
        found = self._fit(partial)
        removed = {k: data for k, _, data in partial.of_round(1)}
        seen, names = found["seen"], self.concepts.names
        best_K = found["order"][0]
        value_K = found["held"][best_K[seen], seen]
        control_K = found["held_permuted"][found["order_permuted"][0][seen], seen]
        share_K = np.array([removed[k]["removed"] for k in seen])
        random_KR = np.array([removed[k]["random"] for k in seen])
        has = np.isfinite(share_K)
        by_layer = [self._fit(partial, part) for part in range(len(self._counted))]
        scores = {"iou_held_out": against_control(value_K, control_K, better="higher")}
        if has.any():
            scores["pixels_removed"] = against_random(share_K[has], random_KR[has], better="higher")
        every = np.full(len(names), np.nan)
        values = {
            "iou": torch.from_numpy(found["held"]),
            "iou_permuted": torch.from_numpy(found["held_permuted"]),
            "best_unit": torch.from_numpy(best_K.copy()),
            "thresholds": torch.from_numpy(found["thresholds"]),
            "units_by_layer": _counts([(one["held"], one["held_permuted"]) for one in by_layer]),
            "units_by_layer_permuted": _counts([(one["held_permuted"], one["held"]) for one in by_layer]),
            "removed": torch.from_numpy(_put(every, seen, share_K)),
            "removed_random": torch.from_numpy(_put(every, seen, random_KR.mean(axis=1) if len(seen) else share_K)),
            "removed_by_random_sets": torch.from_numpy(random_KR),
            "random_units": torch.from_numpy(np.array([removed[k]["sets"] for k in seen])),
            **self._pictures(found),
        }
        meta = {
            "layer": self._layer[0],
            "concepts": list(names),
            "seen": [names[k] for k in seen],
            "ablated_units": self.options.ablate,
            "layers": self._counted,
            "units_in_layers": [len(one["held"]) for one in by_layer],
            "thresholds": f"quantiles {QUANTILES} and shares {SHARES} from median to maximum",
        }
        return self.explanation(partial, values=values, inputs={"z": self.z}, scores=scores, meta=meta)

    @cached_property
    def concepts(self) -> Concepts:
        """The concepts and their masks."""
        return Concepts(self.subject)

    @cached_property
    def _layer(self) -> tuple[str, int]:
        """Return the layer's name and its number of units; raises LayerError where it has no map."""
        generator, z = self.subject.generator, self.z[:2].to(self.subject.device)
        with self.subject.quiet(), torch.no_grad():
            shapes = used_layers(generator, z)
            maps = [name for name, shape in shapes.items() if len(shape) == 3 and min(shape[1:]) > 1]
            if self.options.layer == "auto":
                if len(maps) < 2:
                    names = ", ".join(shapes)
                    raise LayerError("the generator", "have a hidden layer with a map", names, "name one: layer=...")
                return maps[-2], shapes[maps[-2]][0]
            shape = layer_output(generator, self.options.layer, lambda: generator(z)).shape[1:]
        if len(shape) != 3:
            raise LayerError("layer", "have a map (C, h, w)", f"{self.options.layer} of {tuple(shape)}", "name another")
        return self.options.layer, shape[0]

    @cached_property
    def _counted(self) -> list[str]:
        """Return the layer that is dissected, then the other hidden layers with maps, in order of use."""
        with self.subject.quiet(), torch.no_grad():
            shapes = used_layers(self.subject.generator, self.z[:2].to(self.subject.device))
        maps = [name for name, shape in shapes.items() if len(shape) == 3 and min(shape[1:]) > 1]
        hidden = [name for name in maps[:-1] if not any(name.startswith(f"{other}.") for other in maps)]
        chosen = self._layer[0]
        return [chosen, *(name for name in hidden if name != chosen)]

    def _maps(self, z: Tensor, layer: str | None = None) -> tuple[Tensor, Tensor]:
        """Return images [n, C, H, W] and the units' maps enlarged to them [n, U, H, W]."""
        generator, images = self.subject.generator, []
        output = layer_output(generator, layer or self._layer[0], lambda: images.append(generator(z)))
        return images[0], interpolate(output.float(), images[0].shape[2:], mode="bilinear", align_corners=False)

    def _thresholds(self, layer: str) -> np.ndarray:
        """Return each unit's quantiles over pixels of draws and levels between, float64 [T, U]."""
        self.check_networks()
        with self.subject.quiet(), torch.no_grad():
            z = self.prior.to(self.subject.device)
            flat = torch.cat([self._maps(part, layer)[1] for part in z.split(ROWS_A_CHUNK)]).transpose(0, 1).flatten(1)
        levels = np.quantile(flat.double().cpu().numpy(), (*QUANTILES, 1.0), axis=1)
        middle, most = levels[0], levels[-1]
        return np.concatenate([levels[:-1], [middle + share * (most - middle) for share in SHARES]])

    def _count(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return pixel counts of a few latents, for each half (0 choosing, 1 judging) and for permuted masks."""
        rows = np.arange(chunk.explanation, min(chunk.explanation + ROWS_A_CHUNK, len(self.z)))
        z = self.z[rows].to(self.subject.device)
        images, maps = self._maps(z, chunk.work["layer"])
        meter.rows_forward += 2 * len(z)
        masks = self.concepts(images).float().flatten(2)  # [n, K, HW]
        away = masks.roll(1, dims=0)  # each image under the mask of another
        thresholds = torch.from_numpy(chunk.work["thresholds"]).to(maps)
        halves = [torch.from_numpy(np.flatnonzero(rows % 2 == half)).to(z.device) for half in (0, 1)]
        counts: dict[str, list[Any]] = {"both": [], "both_permuted": [], "above": [], "mask": []}
        for half in halves:
            own, other = (m[half].transpose(0, 1).flatten(1) for m in (masks, away))
            part = maps[half].transpose(0, 1).flatten(1)  # [U, n HW]
            above = [(part > level[:, None]).float() for level in thresholds]
            counts["both"].append(torch.stack([a @ own.T for a in above]))
            counts["both_permuted"].append(torch.stack([a @ other.T for a in above]))
            counts["above"].append(torch.stack([a.sum(dim=1) for a in above]))
            counts["mask"].append(torch.stack([own.sum(dim=1), other.sum(dim=1)]))
        # counts of pixels below 2^24 are exact in float32
        kept = {name: torch.stack(part).round().to(torch.int32).cpu().numpy() for name, part in counts.items()}
        return {**kept, "thresholds": chunk.work["thresholds"]}

    def _fit(self, partial: Partial, of_layer: int = 0) -> dict[str, Any]:
        """Return IoUs on the judging half at thresholds chosen on the other, and the units' order a concept."""
        parts = [data for _, part, data in partial.of_round(0) if part == of_layer]
        names = ("both", "both_permuted", "above", "mask")
        total = {name: sum(part[name].astype(np.int64) for part in parts) for name in names}
        found: dict[str, Any] = {"thresholds": parts[0]["thresholds"]}
        for name, row, mark in (("both", 0, ""), ("both_permuted", 1, "_permuted")):
            both, mask = total[name], total["mask"][:, row]  # [2, T, U, K], [2, K]
            union = total["above"][..., None] + mask[:, None, None] - both
            iou = np.divide(both, union, out=np.zeros(both.shape), where=union > 0)
            best = iou[0].argmax(axis=0)  # [U, K]
            chosen, held = (np.take_along_axis(part, best[None], axis=0)[0] for part in iou)
            found[f"held{mark}"], found[f"order{mark}"] = held, np.argsort(-chosen, axis=0, kind="stable")
            found[f"level{mark}"] = best
        found["seen"] = np.flatnonzero((total["mask"][:, 0] >= LEAST_PIXELS).all(axis=0))
        return found

    def _remove(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return which share of a concept's pixels vanishes without its units, and without random ones [R]."""
        rng, units = chunk.rng(self.request.seed), self._layer[1]
        size = len(chunk.work["units"])
        sets = [chunk.work["units"], *(rng.choice(units, size, replace=False) for _ in range(RANDOM_SETS))]
        gone, all_pixels = np.zeros(len(sets)), 0
        z = self.z[: chunk.work["latents"]]
        judging = z[1::2] if len(z) > 1 else z
        for part in judging.split(ROWS_A_CHUNK):
            z = part.to(self.subject.device)
            before = self.concepts(self.subject.generator(z))[:, chunk.explanation]
            all_pixels += int(before.sum())
            for place, chosen in enumerate(sets):
                with edited(self.subject.generator, self._layer[0], ablate(torch.from_numpy(np.asarray(chosen)))):
                    after = self.concepts(self.subject.generator(z))[:, chunk.explanation]
                gone[place] += int((before & ~after).sum())
            meter.rows_forward += 2 * len(z) * (1 + len(sets))
        share = gone / all_pixels if all_pixels else np.full(len(sets), np.nan)
        return {"removed": float(share[0]), "random": share[1:], "sets": np.array(sets[1:])}

    def _pictures(self, found: dict[str, Any]) -> dict[str, Tensor]:
        """Return for the best concepts: pictures where its unit is strongest, with its region, and one without it."""
        seen = found["seen"]
        best = found["order"][0]
        shown = sorted(seen, key=lambda k: -found["held"][best[k], k])[:SHOWN]
        z = self.z[:LOOKED_AT].to(self.subject.device)
        rows: dict[str, list[Tensor]] = {"unit_images": [], "unit_regions": [], "without": []}
        with self.subject.quiet(), torch.no_grad():
            pairs = [self._maps(part) for part in z.split(ROWS_A_CHUNK)]
            images, maps = (torch.cat(part) for part in zip(*pairs, strict=True))
            present = self.concepts(images).flatten(2).any(dim=2)
            for k in shown:
                unit = int(best[k])
                level = float(found["thresholds"][found["level"][unit, k], unit])
                order = maps[:, unit].flatten(1).amax(dim=1).argsort(descending=True, stable=True)
                order = torch.cat([order[present[order, k]], order[~present[order, k]]])  # the concept's pictures first
                top = order[torch.arange(TOP_IMAGES) % len(order)]
                rows["unit_images"].append(images[top].cpu())
                rows["unit_regions"].append((maps[top, unit] > level).cpu())
                units = torch.from_numpy(found["order"][: self.options.ablate, k].copy())
                with edited(self.subject.generator, self._layer[0], ablate(units)):
                    rows["without"].append(self.subject.generator(z[top[:1]])[0].cpu())
        stacked = {name: torch.stack(part) for name, part in rows.items() if part}
        return {**stacked, "shown_concepts": torch.tensor([int(k) for k in shown], dtype=torch.int64)}


def _counts(layers: list[tuple[np.ndarray, np.ndarray]]) -> Tensor:
    """Return for each layer and concept how many units of the first IoUs [U, K] beat every one of the second [L, K]."""
    return torch.from_numpy(np.array([(own > other.max(axis=0)).sum(axis=0) for own, other in layers]))


def _put(every: np.ndarray, places: np.ndarray, values: np.ndarray) -> np.ndarray:
    filled = every.copy()
    filled[places] = values
    return filled
