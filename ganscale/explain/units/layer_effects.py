"""What each layer of a generator contributes: its output is taken away or disturbed, whole or one unit at a time.

Each edit is measured in pixels, in the classifier's own features where it has some, and where there are judges in the
critic's logit and the classifier's verdict. How far layers differ is compared with the same effects shuffled between
the layers; what units do, with as many random units of the same layer.

Legend: N latents, L layers, n rows.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ganscale.explain.base import SCORING, Meter, Options
from ganscale.explain.edits import Edit, edited, used_layers
from ganscale.explain.latent.base import LatentExplainer
from ganscale.explain.layers import find_layer, layer_output
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.scores import against_shuffled
from ganscale.explain.subject import Subject
from ganscale.explain.types import Explanation, Score
from ganscale.explain.units.single_units import Units, choose_units, look, results, without_unit

ROWS_A_CHUNK = 16
SHOWN = 6


class LayerOptions(Options):
    """``layers`` auto: every layer with weights, in order of use; else names with commas between."""

    layers: str = Field("auto", description="auto (all with weights), or dotted names with commas between")


class LayerMethod(LatentExplainer):
    """Base of the methods that look at one layer after the other; a chunk is a few latents."""

    Options = LayerOptions
    options: LayerOptions

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        if self.options.layers != "auto":
            for name in self._named:
                find_layer(subject.generator, name)

    @property
    def samples_apart(self) -> bool:
        """Whether each few latents are looked at apart: yes. What is usual is said by draws of the prior."""
        return True

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Return one chunk for every few latents."""
        if previous is not None:
            return []
        self.check_networks()
        assert self._layers
        return [
            Chunk(round=0, index=index, explanation=first, part=0)
            for index, first in enumerate(range(0, len(self.z), ROWS_A_CHUNK))
        ]

    @cached_property
    def _named(self) -> list[str]:
        return [name.strip() for name in self.options.layers.split(",") if name.strip()]

    @cached_property
    def _layers(self) -> list[str]:
        """Return the names of the layers that are edited, in order of use."""
        with self.subject.quiet():
            used = list(used_layers(self.subject.generator, self.z[:2].to(self.subject.device)))
        # a block and the layer inside it that makes its output are one place
        outermost = [name for name in used if not any(name.startswith(f"{other}.") for other in used)]
        if self.options.layers == "auto":
            return outermost
        return self._named

    def _run(self, z: Tensor, layers: list[str] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        images: list[Tensor] = []
        outputs = {}
        for name in self._layers if layers is None else layers:
            outputs[name] = layer_output(self.subject.generator, name, lambda: images.append(self.subject.generator(z)))
        return images[0], outputs

    def _effects(self, partial: Partial) -> dict[str, np.ndarray]:
        """Return key -> effects of all rows [L, E, N]."""
        parts = [data for _, _, data in partial.of_round(0)]
        return {key: np.concatenate([part[key] for part in parts], axis=2) for key in parts[0] if key != "units"}


class LayerEffect(LayerMethod):
    """Base of the methods that disturb layers. Subclasses write ``edits`` and set ``edit_names``."""

    edit_names: ClassVar[tuple[str, ...]]
    shares: ClassVar[tuple[float, ...]]  # of the shown edit's amount, beside the whole: the points of its curve

    @abstractmethod
    def edits(self, outputs: dict[str, Tensor], rng: np.random.Generator) -> dict[str, dict[str, Edit]]:
        """Return layer -> what to do -> edit; ``outputs`` are the layers' own on the same latents."""

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return the effect of every edit on every row: pixels [L, E, n], and as many of what is judged."""
        rows = slice(chunk.explanation, chunk.explanation + ROWS_A_CHUNK)
        z, generator = self.z[rows].to(self.subject.device), self.subject.generator
        with torch.no_grad():
            plain, outputs = self._run(z)
            before = self._judged(plain)
            found: dict[str, list[list[np.ndarray]]] = {}
            for name, ways in self.edits(outputs, chunk.rng(self.request.seed)).items():
                per_way: dict[str, list[np.ndarray]] = {}
                for edit in ways.values():
                    with edited(generator, name, edit):
                        changed = generator(z)
                    for key, value in self._compare(plain, before, changed).items():
                        per_way.setdefault(key, []).append(value)
                    meter.rows_forward += 2 * len(z)
                for key, values in per_way.items():
                    found.setdefault(key, []).append(values)
            arrays = {key: np.array(values) for key, values in found.items()}
            return arrays | self.of_units(z, plain, before, chunk, meter)

    def of_units(
        self, z: Tensor, plain: Tensor, before: dict[str, Tensor], chunk: Chunk, meter: Meter
    ) -> dict[str, Any]:
        """Return what is measured of single units beside the layers, under "units"."""
        return {}

    def _judged(self, images: Tensor) -> dict[str, Tensor]:
        judged = {}
        if self.subject.critic is not None:
            judged["critic"] = self.subject.critic(images).double()
        if self.subject.classifier is not None:
            judged["class"] = self.subject.classifier(images).argmax(dim=1)
            if self.subject.classifier.has_features:
                judged["features"] = self.subject.classifier.features(images).double()
        return judged

    @cached_property
    def _apart(self) -> float:
        """How far two pictures of the prior are from each other in the classifier's features, root mean square."""
        with torch.no_grad():
            drawn = [self.subject.generator(z) for z in self.prior.to(self.subject.device).split(ROWS_A_CHUNK)]
            features = torch.cat([self.subject.classifier.features(images).double() for images in drawn])
        return max(float(features.var(dim=0).sum().mul(2).sqrt()), 1e-12)

    def _compare(self, plain: Tensor, before: dict[str, Tensor], changed: Tensor) -> dict[str, np.ndarray]:
        """Return per row: the root mean square change of pixels, the logit's change, whether the verdict changed.

        And how far features went, where 1 is as far as to another latent's picture.
        """
        after = self._judged(changed)
        effect = {"pixels": (changed - plain).double().flatten(1).square().mean(dim=1).sqrt()}
        if "critic" in after:
            effect["critic"] = after["critic"] - before["critic"]
        if "class" in after:
            effect["class"] = (after["class"] != before["class"]).double()
        if "features" in after:
            effect["features"] = (after["features"] - before["features"]).norm(dim=1) / self._apart
        return {key: value.cpu().numpy() for key, value in effect.items()}

    def _pictures(self, shown: str) -> dict[str, Tensor]:
        """Return the first latents' images, and under one kind of edit of each layer [L, n, C, H, W]."""
        z = self.z[:SHOWN].to(self.subject.device)
        rng = np.random.default_rng(np.random.SeedSequence(self.request.seed, spawn_key=(0, 0)))
        rows = []
        with self.subject.quiet(), torch.no_grad():
            whole = self.z[:ROWS_A_CHUNK].to(self.subject.device)
            plain, outputs = self._run(whole)
            for name, ways in self.edits(outputs, rng).items():
                with edited(self.subject.generator, name, ways[shown]):
                    rows.append(self.subject.generator(whole)[: len(z)].cpu())
        return {"layer_plain": plain[: len(z)].cpu(), "layer_edited": torch.stack(rows)}


class LayerAblationOptions(LayerOptions):
    """``amount`` 1 takes a layer's variation away wholly; less leaves a part of it. ``units`` 0 leaves units out."""

    units: Annotated[int, Field(ge=0, le=4096)] = Field(
        4, description="units of each layer taken away one at a time: the most varied, and as many random ones"
    )
    amount: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="share of the layer that is taken away")


class LayerAblation(LayerEffect):
    """Replaces the output of a layer, or of one of its units, by its mean over the prior: x (1 - a) + mean a."""

    name = "layer-ablation"
    summary = (
        "what each layer of the generator contributes, and its units: they are replaced by their mean over latents"
    )
    Options = LayerAblationOptions
    options: LayerAblationOptions
    primary = ("effect_spread",)
    edit_names = ("mean", "zero")
    shares = (0.25, 0.5, 0.75)

    def edits(self, outputs: dict[str, Tensor], rng: np.random.Generator) -> dict[str, dict[str, Edit]]:
        """Return the edits to the mean and to zero, and a part of the way to the mean."""

        def towards(goal: Tensor, share: float = 1.0) -> Edit:
            a = self.options.amount * share
            return lambda output: output * (1 - a) + goal.to(output) * a

        found = {}
        for name in outputs:
            mean = self._means[name]
            parts = {_part("mean", share): towards(mean, share) for share in self.shares}
            found[name] = {"mean": towards(mean), "zero": towards(torch.zeros(())), **parts}
        return found

    def of_units(
        self, z: Tensor, plain: Tensor, before: dict[str, Tensor], chunk: Chunk, meter: Meter
    ) -> dict[str, Any]:
        """Take away one unit after the other, chosen ones and random ones."""
        if not self._units.layers:
            return {}

        def edit(name: str, unit: int) -> Edit:
            return without_unit(unit, self._means[name], self.options.amount)

        def compare(changed: Tensor) -> dict[str, np.ndarray]:
            meter.rows_forward += 2 * len(changed)
            return self._compare(plain, before, changed)

        generator = self.subject.generator
        return {"units": look(generator, z, self._units, edit, compare, plain, chunk.explanation)}

    @cached_property
    def _over_prior(self) -> dict[str, Tensor]:
        # whichever chunk asks: so that an edit does not depend on the latents beside it
        with torch.no_grad():
            return self._run(self.prior.to(self.subject.device))[1]

    @cached_property
    def _means(self) -> dict[str, Tensor]:
        return {name: output.mean(dim=0, keepdim=True) for name, output in self._over_prior.items()}

    @cached_property
    def _units(self) -> Units:
        rng = np.random.default_rng(np.random.SeedSequence(self.request.seed, spawn_key=(0, SCORING + 8)))
        return choose_units(self._over_prior, self.options.units, rng)

    def finish(self, partial: Partial) -> Explanation:
        """Put the effects together, and what single units do beside them."""
        parts = [data["units"] for _, _, data in partial.of_round(0) if "units" in data]
        with self.subject.quiet():
            of_units = results(self._units, parts) if parts else ({}, {})
        return _layer_result(self, partial, "mean", of_units)


class LayerNoiseOptions(LayerOptions):
    """``amount``: noise in parts of each channel's standard deviation."""

    amount: Annotated[float, Field(gt=0, le=100)] = Field(1.0, description="noise, in standard deviations of a channel")


class LayerNoise(LayerEffect):
    """Adds noise of each channel's own size to one layer at a time."""

    name = "layer-noise"
    summary = "how sensitive the picture is to each layer of the generator: noise of a channel's own size is added"
    Options = LayerNoiseOptions
    options: LayerNoiseOptions
    primary = ("effect_spread",)
    edit_names = ("noise",)
    shares = (0.25, 0.5, 2.0)

    def edits(self, outputs: dict[str, Tensor], rng: np.random.Generator) -> dict[str, dict[str, Edit]]:
        """Return the noises, drawn for these rows; the parts of a curve are the same noise, smaller or larger."""

        def added(noise: Tensor) -> Edit:
            return lambda current: current + noise

        found = {}
        for name, output in outputs.items():
            drawn = torch.from_numpy(rng.standard_normal(tuple(output.shape))).to(output)
            noise = drawn * self._spreads[name].to(output) * self.options.amount
            parts = {_part("noise", share): added(noise * share) for share in self.shares}
            found[name] = {"noise": added(noise), **parts}
        return found

    @cached_property
    def _spreads(self) -> dict[str, Tensor]:
        with torch.no_grad():
            outputs = self._run(self.prior.to(self.subject.device))[1]
        spreads = {}
        for name, output in outputs.items():
            flat = output.transpose(0, 1).flatten(1).double().std(dim=1, correction=0)
            spreads[name] = flat.to(output).view(1, -1, *(1 for _ in output.shape[2:]))
        return spreads

    def finish(self, partial: Partial) -> Explanation:
        """Put the effects together."""
        return _layer_result(self, partial, "noise")


def _layer_result(
    explainer: LayerEffect,
    partial: Partial,
    shown: str,
    of_units: tuple[dict[str, Tensor], dict[str, Score]] | None = None,
) -> Explanation:
    """Return the effects of a layer x edit grid, scored by how far layers differ.

    The score is the standard deviation of the layers' mean effects; the control is the same with the layers of each row
    shuffled, as if no layer were different from another.
    """
    effects = explainer._effects(partial)
    layers, ways = explainer._layers, list(explainer.edit_names)
    pixels_LN = effects["pixels"][:, ways.index(shown)]
    amounts, curve_LAN = _curve(explainer, effects["pixels"], ways.index(shown))
    rng = np.random.default_rng(np.random.SeedSequence(explainer.request.seed, spawn_key=(1, 0)))
    score, shuffled = against_shuffled(pixels_LN, rng)
    more_values, more_scores = of_units or ({}, {})
    scores = {"effect_spread": score, **more_scores}
    values = {
        **{f"effect_{key}": torch.from_numpy(array[:, : len(ways)].mean(axis=2)) for key, array in effects.items()},
        "curve_amounts": torch.tensor(amounts, dtype=torch.float64),
        "curve_pixels": torch.from_numpy(curve_LAN.mean(axis=2)),
        "curve_error": torch.from_numpy(_standard_errors(curve_LAN)),
        "effect_pixels_rows": torch.from_numpy(pixels_LN.copy()),
        "shuffled_spread": torch.from_numpy(shuffled),
        **more_values,
        **explainer._pictures(shown),
    }
    meta = {"layers": layers, "edits": ways, "shown_edit": shown, "amount": explainer.options.amount}
    return explainer.explanation(partial, values=values, inputs={"z": explainer.z}, scores=scores, meta=meta)


def _standard_errors(values_LAN: np.ndarray) -> np.ndarray:
    """Return the standard errors of the means over the last axis; NaN where one number has no spread."""
    count = values_LAN.shape[2]
    return values_LAN.std(axis=2) / np.sqrt(count - 1) if count > 1 else np.full(values_LAN.shape[:2], np.nan)


def _part(way: str, share: float) -> str:
    return f"{way} × {share:g}"


def _curve(explainer: LayerEffect, effect_LEN: np.ndarray, shown: int) -> tuple[list[float], np.ndarray]:
    """Return the amounts of the shown edit in rising order, from 0 on, and its effects at them [L, A, N]."""
    base = len(explainer.edit_names)
    places = [(1.0, shown), *((share, base + place) for place, share in enumerate(explainer.shares))]
    chosen = [effect_LEN[:, place] for _, place in sorted(places)]
    amounts = [0.0, *(explainer.options.amount * share for share, _ in sorted(places))]
    return amounts, np.stack([np.zeros_like(chosen[0]), *chosen], axis=1)
