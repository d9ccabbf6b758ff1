"""Where latent directions come from: weights, activations, a linear boundary, or the gradient of an assessor.

Each source lists chunks for rounds of its own (none for weights), computes mergeable statistics in them, and turns
their fold into unit directions [K, D] with one number each.

Legend: n draws, D latent, K directions, F features of a layer, A assessed outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganscale.explain.base import Meter
from ganscale.explain.edits import used_layers
from ganscale.explain.errors import ExplainTargetError, LayerError
from ganscale.explain.labels import label_numbers
from ganscale.explain.latent.attfind import one_against_rest
from ganscale.explain.layers import find_layer, first_latent_layer, latent_matrix, layer_output
from ganscale.explain.plan import Chunk, Partial
from ganscale.explain.subject import Subject

DRAWS_A_CHUNK = 256
GRADIENTS_A_CHUNK = 32
SCORE_ROUNDS = 3  # the first at the latents themselves, the others along the direction found so far
MOST_FEATURES = 512
RIDGE = 1e-2  # of the boundary's weights, against separable ends
NEWTON_STEPS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Directions [K, D] of unit length, ``numbers`` [all], what these are, and facts for the record.

    None changes a label: its numbers (``labels.label_numbers``) are zero.
    """

    directions: np.ndarray
    numbers: np.ndarray
    number_name: str
    outputs: tuple[int, ...] = ()  # which assessed output each direction is about
    facts: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """A way to find directions; built anew in every worker."""

    subject: Subject
    seed: int
    latent: int
    count: int
    layer: str
    draws: int
    extremes: int
    reach: float
    assess: Callable[[Tensor], Tensor] | None  # images to [n, A]

    rounds = 0

    def chunks(self, number: int, previous: Partial | None) -> list[Chunk]:
        """Return the chunks of round ``number``: the draws, a few hundred each."""
        return [
            Chunk(
                round=number,
                index=index,
                explanation=index,
                part=1,
                work={"rows": min(DRAWS_A_CHUNK, self.draws - first)},
            )
            for index, first in enumerate(range(0, self.draws, DRAWS_A_CHUNK))
        ]

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return the statistics of a chunk; a source without rounds has none."""
        return {}

    @abstractmethod
    def find(self, partial: Partial) -> Found:
        """Return the directions of the folded rounds."""

    def latents(self, chunk: Chunk) -> np.ndarray:
        """Return the standard normal draws of a chunk, float64 [n, D]."""
        return chunk.rng(self.seed).standard_normal((chunk.work["rows"], self.latent))

    @property
    def plain(self) -> int:
        """Return how many of the D numbers choose no label; those that do are the last."""
        return self.latent - label_numbers(self.subject.generator)

    def _with_labels(self, directions: np.ndarray) -> np.ndarray:
        """Return directions among the ``plain`` numbers as ones among all [K, D], which leave labels alone."""
        return np.pad(directions, ((0, 0), (0, self.latent - self.plain)))

    def _device(self, z_nD: np.ndarray) -> Tensor:
        return torch.from_numpy(z_nD).float().to(self.subject.device)

    def _assessor(self) -> Callable[[Tensor], Tensor]:
        if self.assess is None:
            remedy = "give the subject a critic, or a target with --target"
            raise ExplainTargetError("the subject", "have an assessor of images", self.subject.name, remedy)
        return self.assess


class Sefa(Source):
    """Closed-form factorisation of the layer that sees z (Shen and Zhou 2021, SeFa, arXiv:2007.06600, eq. 4)."""

    def find(self, partial: Partial) -> Found:
        """Return the eigenvectors of W W', strongest first; their numbers are all eigenvalues."""
        generator, name = self.subject.generator, self.layer
        if name == "auto":
            with self.subject.quiet():
                name = first_latent_layer(
                    generator, self._device(np.random.default_rng(0).standard_normal((2, self.latent)))
                )
        matrix_DO = latent_matrix(find_layer(generator, name), name, self.plain)
        eigenvalues, vectors = (array.numpy() for array in torch.linalg.eigh(matrix_DO @ matrix_DO.T))
        directions = _signed(vectors.T[::-1][: self.count])
        return Found(
            directions=self._with_labels(directions),
            numbers=eigenvalues[::-1].clip(min=0).copy(),
            number_name="eigenvalue",
            facts={"layer": name},
        )


class Pca(Source):
    """Principal components of a layer's activations, brought back to z (Härkönen et al. 2020, arXiv:2004.02546).

    Of a layer with a map the features are its channels' means. A direction is the regression of z on a component.
    """

    rounds = 1

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return the moments of a chunk: n, sums and products of features and latents, float64."""
        z = self.latents(chunk)
        with torch.no_grad():
            features = np.concatenate(
                [self._features(self._device(part)) for part in np.array_split(z, -(-len(z) // 64))]
            )
        meter.rows_forward += len(z)
        return {
            "n": len(z),
            "sum_F": features.sum(axis=0),
            "sum_D": z.sum(axis=0),
            "products_FF": features.T @ features,
            "products_DF": z.T @ features,
        }

    def find(self, partial: Partial) -> Found:
        """Return the latent directions of the strongest components; their numbers are all eigenvalues."""
        parts = [data for _, _, data in partial.of_round(0)]
        total = {name: sum(part[name] for part in parts) for name in parts[0]}
        mean_F, mean_D, n = total["sum_F"] / total["n"], total["sum_D"] / total["n"], total["n"]
        eigenvalues, vectors = np.linalg.eigh(total["products_FF"] / n - np.outer(mean_F, mean_F))
        components = _signed(vectors.T[::-1][: self.count])
        pulled = (total["products_DF"] / n - np.outer(mean_D, mean_F))[: self.plain] @ components.T  # [D, K]
        lengths = np.linalg.norm(pulled, axis=0)
        kept = lengths > 1e-9 * max(float(lengths.max()), 1e-300)
        return Found(
            directions=self._with_labels((pulled / np.where(kept, lengths, 1)).T[kept]),
            numbers=eigenvalues[::-1].clip(min=0).copy(),
            number_name="eigenvalue",
            facts={"layer": self._name(), "draws": int(n)},
            values={"components": torch.from_numpy(components[kept].copy())},
        )

    def _name(self) -> str:
        """Return the layer; auto is the first one in use with few enough features, else the one that sees z."""
        if self.layer != "auto":
            return self.layer
        generator, z = self.subject.generator, self._device(np.random.default_rng(0).standard_normal((2, self.latent)))
        with self.subject.quiet():
            shapes = used_layers(generator, z)
            hidden = [name for name, shape in list(shapes.items())[:-1] if 2 <= shape[0] <= MOST_FEATURES]
            return hidden[0] if hidden else first_latent_layer(generator, z)

    def _features(self, z: Tensor) -> np.ndarray:
        generator, name = self.subject.generator, self._name()
        output = layer_output(generator, name, lambda: generator(z)).double()
        features = output.flatten(2).mean(dim=2) if output.ndim > 2 else output
        if features.shape[1] > MOST_FEATURES:
            rule = f"have at most {MOST_FEATURES} features for by=pca"
            raise LayerError(f"layer {name}", rule, features.shape[1], "name one with channels: layer=...")
        return features.cpu().numpy()


class Boundary(Source):
    """The normal of a linear boundary between the ends of an assessment (Shen et al. 2020, arXiv:1907.10786)."""

    rounds = 1

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return the assessments of a chunk's draws, float64 [n, A]."""
        assess, z = self._assessor(), self.latents(chunk)
        with torch.no_grad():
            found = [assess(self.subject.generator(self._device(part))) for part in np.array_split(z, -(-len(z) // 64))]
        meter.rows_forward += 2 * len(z)
        return {"assessed": torch.cat(found).double().cpu().numpy()}

    def find(self, partial: Partial) -> Found:
        """Return a boundary's unit normal for each output; the numbers are their accuracies on other draws' ends."""
        assessed = np.concatenate([data["assessed"] for _, _, data in partial.of_round(0)])
        z = np.concatenate([self.latents(chunk) for chunk in self.chunks(0, None)])[:, : self.plain]
        outputs = tuple(range(min(assessed.shape[1], self.count)))
        directions, accuracies = [], []
        for a in outputs:
            order = np.argsort(assessed[:, a], kind="stable")
            size = min(self.extremes, len(order) // 4)
            low, high = order[:size], order[-size:]
            normal, offset = fit_boundary(z[np.concatenate([low, high])], np.repeat([0.0, 1.0], size))
            directions.append(normal / np.linalg.norm(normal))
            rest = order[size:-size]
            ends = np.concatenate([rest[:size], rest[-size:]])
            accuracies.append(float(((z[ends] @ normal + offset > 0) == np.repeat([False, True], size)).mean()))
        facts = {"draws": len(z), "extremes": self.extremes}
        return Found(
            directions=self._with_labels(np.array(directions)),
            numbers=np.array(accuracies),
            number_name="accuracy",
            outputs=outputs,
            facts=facts,
        )


class Score(Source):
    """The one direction along which an assessor rises most for all latents (Goetschalckx et al. 2019, GANalyze)."""

    rounds = SCORE_ROUNDS

    def chunks(self, number: int, previous: Partial | None) -> list[Chunk]:
        """Return the draws of a round; after the first they are moved along the direction found so far."""
        plain = super().chunks(number, previous)
        so_far = None if previous is None or number == 0 else self._theta(previous, number - 1)
        return [
            Chunk(round=number, index=c.index, explanation=c.index, part=1 + number, work={**c.work, "theta": so_far})
            for c in plain
        ]

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return the sum of the assessor's gradients over a chunk's draws, float64 [A, D]."""
        assess, rng = self._assessor(), chunk.rng(self.seed)
        z = rng.standard_normal((chunk.work["rows"], self.latent))
        places = rng.uniform(-self.reach, self.reach, len(z))
        theta = chunk.work["theta"]
        outputs = None if theta is None else len(theta)
        sums: list[np.ndarray] = []
        a = 0
        while outputs is None or a < outputs:
            moved = z if theta is None else z + places[:, None] * theta[a]
            total = np.zeros(self.latent)
            for part in np.array_split(moved, -(-len(moved) // GRADIENTS_A_CHUNK)):
                leaf = self._device(part).requires_grad_()
                assessed = assess(self.subject.generator(leaf))
                outputs = min(assessed.shape[1], self.count)
                (slope,) = torch.autograd.grad(assessed[:, a].sum(), leaf)
                total += slope.double().sum(dim=0).cpu().numpy()
            sums.append(total)
            a += 1
        meter.rows_forward += 2 * len(z) * len(sums)
        meter.rows_backward += 2 * len(z) * len(sums)
        return {"gradient": np.array(sums), "n": len(z)}

    def find(self, partial: Partial) -> Found:
        """Return the unit mean gradient of each output; the numbers are its length: the mean rise per unit."""
        mean = self._mean(partial, SCORE_ROUNDS - 1)
        lengths = np.linalg.norm(mean, axis=1)
        theta = mean / np.where(lengths > 0, lengths, 1)[:, None]
        facts = {"draws": self.draws, "rounds": SCORE_ROUNDS}
        return Found(
            directions=theta, numbers=lengths, number_name="rise per σ", outputs=tuple(range(len(theta))), facts=facts
        )

    def _mean(self, partial: Partial, number: int) -> np.ndarray:
        parts = [data for _, _, data in partial.of_round(number)]
        return sum(part["gradient"] for part in parts) / sum(part["n"] for part in parts)

    def _theta(self, partial: Partial, number: int) -> np.ndarray:
        mean = self._mean(partial, number)
        return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-300)


SOURCES: dict[str, type[Source]] = {"sefa": Sefa, "pca": Pca, "boundary": Boundary, "score": Score}


def fit_boundary(z_nD: np.ndarray, label_n: np.ndarray) -> tuple[np.ndarray, float]:
    """Return normal [D] and offset of the logistic boundary between labels 0 and 1, ridge ``RIDGE`` a sample.

    Newton's method in float64 with a halving line search; the problem is strictly convex, so the answer is one.
    """
    rows = np.column_stack([z_nD, np.ones(len(z_nD))])
    ridge = np.append(np.full(z_nD.shape[1], RIDGE * len(z_nD)), 1e-9)
    weight = np.zeros(rows.shape[1])

    def loss(candidate: np.ndarray) -> float:
        margin = rows @ candidate
        return float(np.logaddexp(0, margin).sum() - margin @ label_n + 0.5 * (ridge * candidate**2).sum())

    for _ in range(NEWTON_STEPS):
        share = 1 / (1 + np.exp(-rows @ weight))
        slope = rows.T @ (share - label_n) + ridge * weight
        step = np.linalg.solve((rows * (share * (1 - share))[:, None]).T @ rows + np.diag(ridge), slope)
        size, now = 1.0, loss(weight)
        while loss(weight - size * step) > now and size > 1e-6:
            size /= 2
        weight = weight - size * step
        if np.abs(step).max() < 1e-10:
            break
    return weight[:-1], float(weight[-1])


def project_out(direction_D: np.ndarray, others_KD: np.ndarray) -> np.ndarray:
    """Return the unit direction nearest to the given one that changes none of the others (conditional manipulation).

    Shen et al. 2020, arXiv:1907.10786, section 3.2, for any number of conditions; zero where they span it.
    """
    if not len(others_KD):
        return direction_D / np.linalg.norm(direction_D)
    basis, scale, _ = np.linalg.svd(others_KD.T, full_matrices=False)
    basis = basis[:, scale > 1e-9 * scale.max()]
    left = direction_D - basis @ (basis.T @ direction_D)
    left = left - basis @ (basis.T @ left)  # once more, for the rounding of nearly spanned directions
    length = np.linalg.norm(left)
    return left / length if length > 1e-6 * np.linalg.norm(direction_D) else np.zeros_like(direction_D)


def class_odds(subject: Subject) -> Callable[[Tensor], Tensor] | None:
    """Return images to the log-odds of every class [n, K], or None without a classifier."""
    classifier = subject.classifier
    return None if classifier is None else lambda images: one_against_rest(classifier(images).double())


def _signed(vectors_KD: np.ndarray) -> np.ndarray:
    """Make each vector's largest entry positive: an eigenvector's sign depends on the library otherwise."""
    largest = np.abs(vectors_KD).argmax(axis=1)
    return vectors_KD * np.sign(vectors_KD[np.arange(len(vectors_KD)), largest])[:, None]
