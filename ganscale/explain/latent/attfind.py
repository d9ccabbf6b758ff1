"""Which coordinates drive a judge: each is moved both ways and the judge's answer is read (AttFind).

Lang et al. 2021 (StylEx, arXiv:2104.13369, algorithm 1), here for any generator: the coordinates are those of z or the
channels of a layer. Half of the latents choose each class's best coordinate, the other half says what it is worth, and
as many random directions of the same length are chosen from and measured in the same way.

Legend: N base latents, D coordinates and as many random directions, M = 2 D moves, K classes (1 for a critic), W of
them that count, n rows, m and l the moves and latents of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ganscale.explain.base import SCORING, Meter, Options
from ganscale.explain.edits import edited, shift
from ganscale.explain.errors import ExplainTargetError
from ganscale.explain.latent.base import LatentExplainer
from ganscale.explain.layers import layer_output
from ganscale.explain.plan import Chunk, Partial
from ganscale.explain.scores import Z95, against_control, gini
from ganscale.explain.types import Explanation, Score

MOVES_A_CHUNK, LATENTS_A_CHUNK = 8, 4  # both ways: 64 rows
SETS = 100  # of other random directions
SHOWN = 6  # rows of pictures
STEPS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # of the shift, in pictures


class AttFindOptions(Options):
    """``layer``: z, or a layer of the generator by its dotted name, whose channels are the coordinates.

    A channel's standard deviation is that over draws of the prior.
    """

    layer: str = Field("z", description="z, or the layer whose channels are moved")
    shift: Annotated[float, Field(gt=0, le=20)] = Field(2.0, description="how far, in standard deviations")


class AttFind(LatentExplainer):
    """Moves each coordinate of the latent, or each channel of a layer, and reads the judge."""

    name = "attfind"
    summary = "which latent coordinates or channels drive a classifier or the critic, each moved both ways"
    Options = AttFindOptions
    options: AttFindOptions
    primary = ("best_effect",)

    @property
    def samples_apart(self) -> bool:
        """Whether latents are moved apart: which coordinate is best is chosen, in the end, by those that are there."""
        return True

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Return for every few latents one chunk for every few moves: the coordinates, then the random directions."""
        if previous is not None:
            return []
        if self.subject.classifier is None and self.subject.critic is None:
            rule = f"have a classifier or a critic for {self.name}"
            raise ExplainTargetError("the subject", rule, self.subject.name, "pass --classifier NAME|PATH")
        self.check_networks()
        sigma_D = self._sigma()
        moves = range(0, 2 * len(sigma_D), MOVES_A_CHUNK)
        places = [(n, m) for n in range(0, len(self.z), LATENTS_A_CHUNK) for m in moves]
        return [
            Chunk(round=0, index=index, explanation=latent, part=move, work={"sigma": sigma_D})
            for index, (latent, move) in enumerate(places)
        ]

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return by how much each move, both ways, changes the log-odds of each class: float32 [m, 2, l, K]."""
        sigma_D = chunk.work["sigma"]
        moves = self._moves(len(sigma_D))[chunk.part :][:MOVES_A_CHUNK] * sigma_D
        z = self.z[chunk.explanation :][:LATENTS_A_CHUNK].to(self.subject.device)
        both = np.stack([moves, -moves], axis=1).reshape(-1, len(sigma_D))
        with torch.no_grad():
            base = self._answers(z, None)
            after = self._answers(z.repeat(len(both), 1), np.repeat(both, len(z), axis=0))
        meter.rows_forward += len(z) * (1 + len(both))
        effect = after.unflatten(0, (len(moves), 2, len(z))) - base
        return {"effect": effect.float().cpu().numpy(), "sigma": sigma_D}

    def finish(self, partial: Partial) -> Explanation:
        """Choose on one half of the latents, measure on the other, and draw the strongest coordinates."""
        found = [data for _, _, data in partial.of_round(0)]
        sigma_D = found[0]["sigma"]
        effect = self._effect(partial)  # [M, 2, N, K]
        own, random = effect[: len(sigma_D)], effect[len(sigma_D) :]
        choosing, judging = self._halves()
        best_K, held_NK = _chosen(own, choosing, judging)
        _, control_NK = _chosen(random, choosing, judging)
        wanted = self._wanted(own.shape[3])
        rows = self._rows(own, best_K, wanted)
        values = {
            "effect": torch.from_numpy(own.mean(axis=2)),
            "effect_random": torch.from_numpy(random.mean(axis=2)),
            "ranking": torch.from_numpy(np.argsort(-own.mean(axis=2), axis=0, kind="stable")),
            "best": torch.from_numpy(best_K),
            "best_held_out": torch.from_numpy(held_NK.mean(axis=0)),
            "best_held_out_random": torch.from_numpy(control_NK.mean(axis=0)),
            "random_directions": torch.from_numpy(self._moves(len(sigma_D))[len(sigma_D) :]),
            **self._pictures(rows, sigma_D),
        }
        classifier = self.subject.classifier
        meta = {
            "layer": self.options.layer,
            "judge": "critic" if classifier is None else "classifier",
            "class_names": [] if classifier is None else [classifier.label(k) for k in range(classifier.classes)],
            "shift": self.options.shift,
            "steps": [step * self.options.shift for step in STEPS],
            "choosing": len(choosing),
            "judging": len(judging),
        }
        return self.explanation(
            partial, values=values, inputs={"z": self.z}, scores=self._scores(own, random, wanted), meta=meta
        )

    def _scores(self, own: np.ndarray, random: np.ndarray, wanted: list[int]) -> dict[str, Score]:
        """Score the best coordinates and how few there are, beside random directions [D, 2, N, K] of either.

        The margin of the best counts two things: other latents would say otherwise, and of other directions another
        would be the best. The axes are one set of directions, the random ones another.
        """
        halves = self._halves()
        value_N, control_N = (_chosen(part, *halves)[1][:, wanted].mean(axis=1) for part in (own, random))
        rng = np.random.default_rng(np.random.SeedSequence(self.request.seed, spawn_key=(0, SCORING + 9)))
        by_halves = np.stack([random[:, :, half][..., wanted].mean(axis=2) for half in halves], axis=1)
        of_sets = [(_worth(one), _concentration(one.mean(axis=1))) for one in other_sets(by_halves, rng)]
        another, half = Z95 * np.sqrt(2) * np.std(of_sets, axis=0, ddof=1)  # of the difference of two sets
        best = against_control(value_N, control_N, better="higher")
        if best.margin is not None:
            both = float(np.hypot(best.margin, another))
            best = replace(best, low=best.value - both, high=best.value + both)
        value, control = (_concentration(part.mean(axis=2)[..., wanted]) for part in (own, random))
        concentration = Score(
            value=value,
            low=value - float(half),
            high=value + float(half),
            control=control,
            n=len(wanted),
            better="higher",
        )
        return {"best_effect": best, "concentration_gini": concentration}

    def _effect(self, partial: Partial) -> np.ndarray:
        """Return the effects of all moves on all latents, float64 [M, 2, N, K]."""
        by_latents: dict[int, list[np.ndarray]] = {}
        for latent, _, data in partial.of_round(0):
            by_latents.setdefault(latent, []).append(data["effect"])
        return np.concatenate([np.concatenate(parts) for parts in by_latents.values()], axis=2).astype(np.float64)

    def _answers(self, z: Tensor, moves_nD: np.ndarray | None) -> Tensor:
        """Return the log-odds of each class [n, K], or the critic's logit [n, 1], after a move of each row's own."""
        images = self._moved(z, moves_nD)
        if self.subject.classifier is None:
            return self.subject.critic(images)[:, None].double()
        return one_against_rest(self.subject.classifier(images).double())

    def _moved(self, z: Tensor, moves_nD: np.ndarray | None) -> Tensor:
        """Return G(z) after the moves, in shifts; of all rows at z itself where there are none."""
        generator, layer = self.subject.generator, self.options.layer
        if moves_nD is None:
            return torch.cat([generator(part) for part in z.split(self.micro_batch)])
        amounts = torch.from_numpy(moves_nD * self.options.shift).to(z.device)
        if layer == "z":
            return self._moved((z.double() + amounts).to(z.dtype), None)
        images = []
        for part, amount in zip(z.split(self.micro_batch), amounts.split(self.micro_batch), strict=True):
            with edited(generator, layer, shift(amount)):
                images.append(generator(part))
        return torch.cat(images)

    def _sigma(self) -> np.ndarray:
        """Return the standard deviation of each coordinate: 1 for those of z, measured for channels."""
        if self.options.layer == "z":
            return np.ones(self.z.shape[1])
        generator = self.subject.generator
        with self.subject.quiet(), torch.no_grad():
            z = self.prior.to(self.subject.device)
            output = layer_output(generator, self.options.layer, lambda: generator(z)).double()
        return output.transpose(0, 1).flatten(1).std(dim=1, correction=0).cpu().numpy()

    def _moves(self, coordinates: int) -> np.ndarray:
        """Return the unit vectors of all moves [M, D]: the axes, then random directions."""
        if coordinates not in self._known_moves:
            rng = np.random.default_rng(np.random.SeedSequence(self.request.seed, spawn_key=(0, SCORING)))
            random = rng.standard_normal((coordinates, coordinates))
            random /= np.linalg.norm(random, axis=1, keepdims=True)
            self._known_moves[coordinates] = np.concatenate([np.eye(coordinates), random])
        return self._known_moves[coordinates]

    @cached_property
    def _known_moves(self) -> dict[int, np.ndarray]:
        return {}

    def _halves(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the latents that choose and those that judge; a single one does both."""
        rows = np.arange(len(self.z))
        return (rows, rows) if len(rows) == 1 else (rows[::2], rows[1::2])

    def _wanted(self, classes: int) -> list[int]:
        """Return the classes that count: the target's, else all."""
        target = self.subject.target
        return [target.index] if classes > 1 and target.kind == "class" else list(range(classes))

    def _rows(self, own: np.ndarray, best_K: np.ndarray, wanted: list[int]) -> list[tuple[int, int, int, int]]:
        """Return what is drawn: (class, coordinate, way, latent that answers most) a row, strongest first.

        Classes that share a best coordinate have one row, that of the strongest.
        """
        mean = own.mean(axis=2)  # [D, 2, K]
        if len(wanted) > 1:
            chosen = [(k, *divmod(int(best_K[k]), 2)) for k in wanted]
            chosen.sort(key=lambda row: -mean[row[1], row[2], row[0]])
        else:
            order = np.argsort(-mean[:, :, wanted[0]].max(axis=1), kind="stable")
            chosen = [(wanted[0], int(unit), int(mean[unit, :, wanted[0]].argmax())) for unit in order]
        first = {
            unit: (k, unit, way) for k, unit, way in reversed(chosen)
        }  # a coordinate once, for its strongest class
        kept = [row for row in chosen if first[row[1]] == row][:SHOWN]
        return [(k, unit, way, int(own[unit, way, :, k].argmax())) for k, unit, way in kept]

    def _pictures(self, rows: list[tuple[int, int, int, int]], sigma_D: np.ndarray) -> dict[str, Tensor]:
        axes, device = np.eye(len(sigma_D)) * sigma_D, self.subject.device
        walks, answers = [], []
        with self.subject.quiet(), torch.no_grad():
            for k, unit, _, sample in rows:
                z = self.z[sample].to(device).expand(len(STEPS), -1)
                way = np.array(STEPS)[:, None] * axes[unit]
                walks.append(self._moved(z, way).cpu())
                answers.append(self._answers(z, way)[:, k].cpu())
        return {
            "attribute_rows": torch.tensor(rows),
            "attribute_walks": torch.stack(walks),
            "attribute_answers": torch.stack(answers),
        }


def one_against_rest(logits_nK: Tensor) -> Tensor:
    """Return the log-odds of each class against all others, [n, K]."""
    classes = logits_nK.shape[1]
    own = torch.eye(classes, dtype=torch.bool, device=logits_nK.device)
    rest = logits_nK[:, None, :].expand(-1, classes, -1).masked_fill(own, float("-inf")).logsumexp(dim=2)
    return logits_nK - rest


def other_sets(effect: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield what ``SETS`` other sets of as many random directions would do, each [D, ...], from those at hand [D, ...].

    Normal numbers of the same mean and covariance: what a direction does is, to first order, a sum over its many
    coordinates. Resampling the directions themselves would show the same few best ones again and again.
    """
    flat = effect.reshape(len(effect), -1)
    mean = flat.mean(axis=0)
    factor = np.linalg.qr((flat - mean) / np.sqrt(max(len(flat) - 1, 1)), mode="r")
    for _ in range(SETS):
        yield (rng.standard_normal((len(flat), len(factor))) @ factor + mean).reshape(effect.shape)


def _concentration(effect: np.ndarray) -> float:
    """Return in how few moves the effect [D, 2, W] lies: the Gini coefficient of each class's, on average."""
    return float(gini(np.abs(effect).max(axis=1).T).mean())


def _worth(effect: np.ndarray) -> float:
    """Return what the moves that are best by one half of [D, halves, 2, W] are worth by the other, over W classes."""
    choosing, judging = (effect[:, half].reshape(-1, effect.shape[3]) for half in (0, 1))
    return float(judging[choosing.argmax(axis=0), np.arange(judging.shape[1])].mean())


def _chosen(effect: np.ndarray, choosing: np.ndarray, judging: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each class's best move (2 x coordinate + way) [K] by the choosing half, and its effects on the other."""
    flat = effect.reshape(-1, *effect.shape[2:])  # [2 M, N, K]
    best_K = flat[:, choosing].mean(axis=1).argmax(axis=0)
    held = np.stack([flat[best, judging, k] for k, best in enumerate(best_K)], axis=1)
    return best_K, held
