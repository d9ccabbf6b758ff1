"""Convolutional layers of generator and critic side by side: which are alike, and what gradient of D reaches G where.

Both networks see the same images G(z); a layer's features are its channels' means over the map. Layers are compared by
debiased CKA; the controls pair each generator layer with the critic's features of shuffled images. Then each channel of
the generator is set to zero: what it does to the critic's logit.

Legend: N latents, n of a chunk, L_G, L_D layers, C channels, U units, R shuffles.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ganscale.explain.base import SCORING, Explainer, Meter
from ganscale.explain.beside import Beside
from ganscale.explain.errors import ExplainInputError, LayerError
from ganscale.explain.labels import plain_network
from ganscale.explain.likeness.cka import Sums, debiased_of_orders
from ganscale.explain.likeness.units_to_logit import (
    MOST_UNITS,
    ROWS,
    effects_of_units,
    most_varied,
    score_of_units,
    shown_channels,
)
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.scores import RANDOM_ORDERS, against_random
from ganscale.explain.subject import Subject
from ganscale.explain.types import Explanation

A_CHUNK = 32
UNITS_A_CHUNK = 16
WIDEST = 128  # numbers of a layer without a map


class ConvInteraction(Explainer):
    """CKA of each generator layer with each critic layer, D's gradient and each channel's part of D's logit."""

    name = "conv-interaction"
    summary = "layers of generator and critic side by side: CKA of every pair, and the gradient of D that reaches G"
    primary = ("best_alignment",)
    input_name = "z"
    least_samples = 4
    needs = ("generator", "critic")
    domains = ("x", "z")

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        self.z = request.inputs["z"]
        if len(self.z) < self.least_samples:
            rule = f"hold at least {self.least_samples} latents"
            raise ExplainInputError("inputs['z']", rule, len(self.z), "use --num-samples 64")

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Return one chunk for every few latents, then one for every few units of each generator layer."""
        if previous is not None:
            return []
        starts = range(0, len(self.z), A_CHUNK)
        units = [
            (part, start, {"layer": layer, "units": units[start : start + UNITS_A_CHUNK]})
            for part, layer in enumerate(self._hidden, 1)
            for units in [most_varied(self._first[0][layer], MOST_UNITS)]  # once: workers' last bits may differ
            for start in range(0, len(units), UNITS_A_CHUNK)
        ]
        return [
            *(Chunk(round=0, index=index, explanation=start, part=0) for index, start in enumerate(starts)),
            *(
                Chunk(round=0, index=len(starts) + index, explanation=start, part=part, work=work)
                for index, (part, start, work) in enumerate(units)
            ),
        ]

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return what a few latents or a few units give."""
        return self._align(chunk, meter) if chunk.part == 0 else self._take_away(chunk, meter)

    @cached_property
    def _first(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the layers of either network put out on the first latents, without gradients."""
        with self.subject.quiet(), torch.no_grad():
            images, of_g = watched(self.subject.generator, self.z[:A_CHUNK].to(self.subject.device))
            return of_g, watched(self.subject.critic, images)[1]

    @property
    def _hidden(self) -> list[str]:
        """The generator's layers whose channels are units: the last one's are the image's own, where it has others."""
        return list(self._first[0])[:-1] or list(self._first[0])

    def _take_away(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        layer, units = chunk.work["layer"], chunk.work["units"]
        z = self.z[:ROWS].to(self.subject.device)
        meter.rows_forward += 2 * len(z) * (1 + len(units))
        return {"units": units, "effect": effects_of_units(self.subject, z, layer, units)}

    def _align(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return a few latents' features and their sums, and squared gradients by layer."""
        z = self.z[chunk.explanation : chunk.explanation + A_CHUNK].to(self.subject.device)
        meter.rows_forward += 2 * len(z)
        meter.rows_backward += len(z)
        with torch.enable_grad():
            leaf = z.detach().requires_grad_(True)
            images, of_g = watched(self.subject.generator, leaf)
            logit_n, of_d = watched(self.subject.critic, images)
            slopes = torch.autograd.grad(logit_n.sum(), list(of_g.values()), allow_unused=True)
        g, d = ([_means(layer) for layer in layers.values()] for layers in (of_g, of_d))
        power = [0.0 if slope is None else float(slope.detach().double().square().sum()) for slope in slopes]
        return {
            "sums": Sums.of_rows([*g, *d]),
            "features": (g, d),
            "gradient": np.array(power),
            "names": (list(of_g), list(of_d)),
        }

    def finish(self, partial: Partial) -> Explanation:
        """Add the sums up, align every pair, and compare with shuffled pairs."""
        found = [data for _, part, data in partial.of_round(0) if part == 0]
        names_g, names_d = found[0]["names"]
        cka = _total([data["sums"] for data in found]).debiased()
        across = cka[: len(names_g), len(names_g) :]
        features = [data["features"] for data in found]
        chance_RGD = of_shuffled_images(features, self._rng(0, SCORING))
        best, best_R = across.max(axis=1).mean(keepdims=True), chance_RGD.max(axis=2).mean(axis=1)
        alignment = replace(against_random(best, best_R[None], better="higher"), n=len(self.z))
        gradient = np.sqrt(np.sum([data["gradient"] for data in found], axis=0) / len(self.z))
        values = {
            "cka": across,
            "cka_shuffled": chance_RGD.mean(axis=0),
            "cka_generator": cka[: len(names_g), : len(names_g)],
            "cka_critic": cka[len(names_g) :, len(names_g) :],
            "gradient_by_layer": gradient,
            **self._pictures(),
        }
        effects = self._effects(partial, values)
        return self.explanation(
            partial,
            values={name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in values.items()},
            inputs=dict(self.request.inputs),
            scores={
                "best_alignment": alignment,
                "best_units_on_logit": score_of_units(effects, self._rng(1, 0)),
            },
            meta={
                "layers_generator": names_g,
                "layers_critic": names_d,
                "layers_of_units": self._hidden,
                "latents_of_units": min(ROWS, len(self.z)),
            },
        )

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.request.seed, spawn_key=key))

    def _effects(self, partial: Partial, values: dict[str, np.ndarray]) -> np.ndarray:
        """Return the effects of all units [U, N], and put those of each layer into ``values``."""
        every = []
        for place in range(len(self._hidden)):
            parts = [data for _, part, data in partial.of_round(0) if part == 1 + place]
            effect_UN = np.concatenate([data["effect"] for data in parts])
            values[f"units_{place}"] = np.concatenate([data["units"] for data in parts])
            values[f"units_logit_{place}"] = effect_UN.mean(axis=1)
            values[f"units_logit_error_{place}"] = effect_UN.std(axis=1, ddof=1) / np.sqrt(effect_UN.shape[1])
            every.append(effect_UN)
        return np.concatenate(every)

    def _pictures(self) -> dict[str, np.ndarray]:
        """Return the first image, and maps and filters of a few channels of every layer with a map."""
        subject = self.subject
        with subject.quiet(), torch.no_grad():
            image = subject.generator(self.z[:1].to(subject.device))[0].cpu().numpy()
        kept = {"shown_image": image}
        for which, network, layers in zip("gd", (subject.generator, subject.critic), self._first, strict=True):
            for place, (name, output) in enumerate(layers.items()):
                if output.ndim == 4 and min(output.shape[2:]) > 1:
                    for key, array in shown_channels(network, name, output).items():
                        kept[f"{key}_{which}{place}"] = array
        return kept


def watched(network: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return network(x) and, by name, what its layers put out: the innermost modules with weights that are called.

    Vectors of more than ``WIDEST`` numbers are left out: their cross moments would be larger than the network. Raises
    LayerError where nothing is left.
    """
    seen: dict[str, list[Tensor]] = {}

    def hook_of(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            inner = any(other.startswith(f"{name}.") for other in seen)
            if isinstance(output, Tensor) and _narrow(output) and not inner:
                seen.setdefault(name, []).append(output)

        return hook

    handles = [
        module.register_forward_hook(hook_of(name))
        for name, module in plain_network(network).named_modules()
        if name and any(True for _ in module.parameters())
    ]
    try:
        output = network(x)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise LayerError("the network", "have layers with weights", type(network).__name__, "explain another")
    if isinstance(network, Beside):  # called once a row, with its companions behind it
        return output, {name: torch.cat([call[:1] for call in calls]) for name, calls in seen.items()}
    return output, {name: calls[0] for name, calls in seen.items()}


def _narrow(output: Tensor) -> bool:
    return output.ndim > 2 or (output.ndim == 2 and output.shape[1] <= WIDEST)


def _means(layer: Tensor) -> np.ndarray:
    return (
        layer.detach().double().flatten(2).mean(dim=2).cpu().numpy()
        if layer.ndim > 2
        else layer.detach().double().cpu().numpy()
    )


def of_shuffled_images(features: list[tuple[list[np.ndarray], ...]], rng: np.random.Generator) -> np.ndarray:
    """Return debiased CKA of G's layers with D's where each is of another image, [R, L_G, L_D].

    ``features``: for each part of the images those of G's layers and of D's, [n, C] each.
    """
    g, d = ([np.concatenate(rows) for rows in zip(*layers, strict=True)] for layers in zip(*features, strict=True))
    return debiased_of_orders(g, d, [rng.permutation(len(g[0])) for _ in range(RANDOM_ORDERS)])


def _total(sums: list[Sums]) -> Sums:
    total = sums[0]
    for one in sums[1:]:
        total = total + one
    return total
