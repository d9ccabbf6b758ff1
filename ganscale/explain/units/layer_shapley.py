"""Fair shares of a generator's layers in a number that is told of its pictures, by trying every coalition of layers.

A layer that is off puts out its mean over latents (or zero), so it says nothing of the latent at hand; a layer that is
on puts out what it computes of what it is given. Shares are Shapley's (1953), by their definition: they add up to what
is lost when all layers are off, and where two layers do something together alone, each has half of it.

Legend: N latents, L layers, n rows, P = L + 1 points of a curve, R random orders.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ganscale.explain import scores
from ganscale.explain.base import SCORING, Meter
from ganscale.explain.coalitions import coalitions_in_binary
from ganscale.explain.edits import edited, put_out
from ganscale.explain.errors import CallableError, ExplainInputError
from ganscale.explain.exact_shapley import MOST_PLAYERS, chunks_of_coalitions, shares_of_coalitions
from ganscale.explain.labels import plain_network
from ganscale.explain.plan import Chunk, Partial
from ganscale.explain.types import Explanation, Score
from ganscale.explain.units.layer_effects import ROWS_A_CHUNK, LayerMethod, LayerOptions

COALITIONS_A_CHUNK = 64


class LayerShapleyOptions(LayerOptions):
    """Up to 12 layers, 2^L passes a latent."""

    off: Literal["mean", "zero"] = Field("mean", description="what a layer that is off puts out: its mean, or zero")


class LayerShapley(LayerMethod):
    """Shares the target out among the generator's layers."""

    name = "layer-shapley"
    summary = "fair shares of the generator's layers in the target, by switching off every combination of them"
    Options = LayerShapleyOptions
    options: LayerShapleyOptions
    primary = ("deletion_auc", "insertion_auc")

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Return for every few latents the coalitions in blocks."""
        if previous is not None:
            return []
        self.check_networks()
        if not 2 <= len(self._layers) <= MOST_PLAYERS:
            rule, names = f"be 2 to {MOST_PLAYERS} for {self.name}", ", ".join(self._layers)
            raise ExplainInputError("layers", rule, f"{len(self._layers)}: {names}", "name some with --set layers=A,B")
        self._check_target()
        return chunks_of_coalitions(range(0, len(self.z), ROWS_A_CHUNK), len(self._layers), COALITIONS_A_CHUNK)

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return the target's value of a few latents under each coalition of the chunk, float64 [n, coalitions]."""
        z = self.z[chunk.explanation :][:ROWS_A_CHUNK].to(self.subject.device)
        with torch.no_grad():
            tried = coalitions_in_binary(len(self._layers), *chunk.work["coalitions"])
            found = [self._value(z, present) for present in tried]
        meter.rows_forward += 2 * len(z) * len(found)
        values = meter.finite(torch.stack(found, dim=1), "the target", "be finite whatever layers are off")
        return {"values": values.cpu().numpy()}

    def finish(self, partial: Partial) -> Explanation:
        """Add the coalitions up into shares, and remove layers in their order."""
        by_latents: dict[int, list[np.ndarray]] = {}
        for first, _, data in partial.of_round(0):
            by_latents.setdefault(first, []).append(data["values"])
        worth = np.concatenate([np.concatenate(parts, axis=1) for parts in by_latents.values()])  # [N, 2^L]
        weights = shares_of_coalitions(coalitions_in_binary(len(self._layers), 0, worth.shape[1]))
        shares_NL = np.stack([row @ weights for row in worth])  # apart: a latent's shares are its own to the last bit
        curves, measured = self._curves(worth, shares_NL)
        count = len(worth)
        spread = shares_NL.std(axis=0, ddof=1) / np.sqrt(count) if count > 1 else np.full(shares_NL.shape[1], np.nan)
        values = {
            "layer_shares": shares_NL.mean(axis=0),
            "layer_shares_error": spread,
            "layer_shares_rows": shares_NL,
            "coalition_values": worth.mean(axis=0),
            **curves,
        }
        measured["completeness_gap"] = scores.completeness(shares_NL, worth[:, -1], worth[:, 0])
        return self.explanation(
            partial,
            values={name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in values.items()},
            inputs={"z": self.z},
            scores=measured,
            meta={"layers": self._layers, "off": self.options.off, "coalitions": worth.shape[1]},
        )

    def _value(self, z: Tensor, present: np.ndarray) -> Tensor:
        """Return the target's value of latents with the layers on that are present, float64 [n]."""
        generator = self.subject.generator
        with ExitStack() as edits:
            for name, on in zip(self._layers, present, strict=True):
                if not on:
                    edits.enter_context(edited(generator, name, put_out(self._off[name])))
            found = self.subject.fn(z if self.subject.domain == "z" else generator(z))
        return found.double()

    @cached_property
    def _off(self) -> dict[str, Tensor]:
        """What each layer puts out when it is off: over the prior, so that it depends on no latent beside it."""
        if self.options.off == "zero":
            return dict.fromkeys(self._layers, torch.zeros(()))
        with torch.no_grad():
            outputs = self._run(self.prior.to(self.subject.device))[1]
        return {name: output.mean(dim=0, keepdim=True) for name, output in outputs.items()}

    def _check_target(self) -> None:
        """Refuse what is no number a picture, as a generator alone is."""
        rule, remedy = "be one number a picture", "pass a Subject whose fn takes its pictures, such as the critic"
        generator, fn = self.subject.generator, self.subject.fn
        if fn in (generator, plain_network(generator)):
            raise CallableError("the target", rule, "the generator itself", remedy)
        with self.subject.quiet(), torch.no_grad():
            z = self.z[:2].to(self.subject.device)
            found = fn(z if self.subject.domain == "z" else generator(z))
        if found.shape != (len(z),):
            raise CallableError("the target", f"{rule}, shape ({len(z)},)", tuple(found.shape), remedy)

    def _curves(self, worth: np.ndarray, shares_NL: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Score]]:
        """Return what is left as layers go in the order of their shares, and in random ones; no pass is needed."""
        count, layers = shares_NL.shape
        rng = np.random.default_rng(np.random.SeedSequence(self.request.seed, spawn_key=(0, SCORING + 7)))
        random = rng.permuted(np.tile(np.arange(layers), (count, scores.RANDOM_ORDERS, 1)), axis=2)
        order = np.argsort(-shares_NL, axis=1, kind="stable")

        def left(orders: np.ndarray) -> np.ndarray:  # [N, L] to [N, P]: the coalition's number after each removal
            gone = np.cumsum(2**orders, axis=1)
            numbers = 2**layers - 1 - np.concatenate([np.zeros((count, 1), dtype=gone.dtype), gone], axis=1)
            return np.take_along_axis(worth, numbers, axis=1)

        steps = np.arange(layers + 1)
        deletion, insertion = left(order), left(order[:, ::-1])[:, ::-1]
        random_NRP = np.stack([left(random[:, r]) for r in range(random.shape[1])], axis=1)
        random_NR = scores.area(random_NRP, steps)
        measured = {
            "deletion_auc": scores.against_random(scores.area(deletion, steps), random_NR, better="lower"),
            "insertion_auc": scores.against_random(scores.area(insertion, steps), random_NR, better="higher"),
        }
        curves = {"deletion_curve": deletion, "insertion_curve": insertion, "random_curves": random_NRP}
        return {**curves, "curve_share": steps / layers}, measured
