"""Convolutional layers of generator and critic side by side: which are alike, and what gradient of D reaches G where.

Both networks see the same images G(z); a layer's features are its channels' means over the map. Layers are compared by
debiased CKA; the control pairs each generator layer with the critic's features of another image.

Legend: N latents, n of a chunk, L_G, L_D layers, C channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ganscale.explain.base import Explainer, Meter
from ganscale.explain.errors import ExplainInputError, LayerError
from ganscale.explain.likeness.cka import Sums
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.subject import Subject
from ganscale.explain.types import Explanation, Score

A_CHUNK = 32
WIDEST = 128  # numbers of a layer without a map


class ConvInteraction(Explainer):
    """CKA of each generator layer with each critic layer, and D's gradient at each generator layer."""

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
        """Return one chunk for every few latents."""
        if previous is not None:
            return []
        starts = range(0, len(self.z), A_CHUNK)
        return [Chunk(round=0, index=index, explanation=start, part=0) for index, start in enumerate(starts)]

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return the sums of a few latents' features, those of shuffled pairs, and squared gradients by layer."""
        z = self.z[chunk.explanation : chunk.explanation + A_CHUNK].to(self.subject.device)
        meter.rows_forward += 2 * len(z)
        meter.rows_backward += len(z)
        with torch.enable_grad():
            leaf = z.detach().requires_grad_(True)
            images, of_g = watched(self.subject.generator, leaf)
            logit_n, of_d = watched(self.subject.critic, images)
            slopes = torch.autograd.grad(logit_n.sum(), list(of_g.values()), allow_unused=True)
        g, d = ([_means(layer) for layer in layers.values()] for layers in (of_g, of_d))
        order = chunk.rng(self.request.seed).permutation(len(z))
        power = [0.0 if slope is None else float(slope.detach().double().square().sum()) for slope in slopes]
        return {
            "sums": Sums.of_rows([*g, *d]),
            "shuffled": Sums.of_rows([*g, *(layer[order] for layer in d)]),
            "gradient": np.array(power),
            "names": (list(of_g), list(of_d)),
        }

    def finish(self, partial: Partial) -> Explanation:
        """Add the sums up, align every pair, and compare with the shuffled pairs."""
        found = [data for _, _, data in partial.of_round(0)]
        names_g, names_d = found[0]["names"]
        sums, shuffled = ([data[which] for data in found] for which in ("sums", "shuffled"))
        cka, control = (_total(one).debiased() for one in (sums, shuffled))
        across, chance = (matrix[: len(names_g), len(names_g) :] for matrix in (cka, control))
        best, best_chance = across.max(axis=1), chance.max(axis=1)
        half = float(1.96 * chance.std() / np.sqrt(max(len(names_g), 1)))
        value = float(best.mean())
        gradient = np.sqrt(np.sum([data["gradient"] for data in found], axis=0) / len(self.z))
        values = {
            "cka": across,
            "cka_shuffled": chance,
            "cka_generator": cka[: len(names_g), : len(names_g)],
            "cka_critic": cka[len(names_g) :, len(names_g) :],
            "gradient_by_layer": gradient,
        }
        return self.explanation(
            partial,
            values={name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in values.items()},
            inputs=dict(self.request.inputs),
            scores={
                "best_alignment": Score(
                    value=value,
                    low=value - half,
                    high=value + half,
                    control=float(best_chance.mean()),
                    n=len(self.z),
                    better="higher",
                )
            },
            meta={"layers_generator": names_g, "layers_critic": names_d},
        )


def watched(network: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return network(x) and, by name, what its layers put out: the innermost modules with weights that are called.

    Vectors of more than ``WIDEST`` numbers are left out: their cross moments would be larger than the network. Raises
    LayerError where nothing is left.
    """
    seen: dict[str, Tensor] = {}

    def hook_of(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            inner = any(other.startswith(f"{name}.") for other in seen)
            if isinstance(output, Tensor) and _narrow(output) and not inner:
                seen.setdefault(name, output)

        return hook

    handles = [
        module.register_forward_hook(hook_of(name))
        for name, module in network.named_modules()
        if name and any(True for _ in module.parameters())
    ]
    try:
        output = network(x)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise LayerError("the network", "have layers with weights", type(network).__name__, "explain another")
    return output, seen


def _narrow(output: Tensor) -> bool:
    return output.ndim > 2 or (output.ndim == 2 and output.shape[1] <= WIDEST)


def _means(layer: Tensor) -> np.ndarray:
    return (
        layer.detach().double().flatten(2).mean(dim=2).cpu().numpy()
        if layer.ndim > 2
        else layer.detach().double().cpu().numpy()
    )


def _total(sums: list[Sums]) -> Sums:
    total = sums[0]
    for one in sums[1:]:
        total = total + one
    return total
