"""Latent directions by closed-form factorisation (Shen and Zhou 2021, SeFa, arXiv:2007.06600, eq. 4).

The first layer maps z to z @ W. The directions that change its output most are the eigenvectors of W W' in descending
order of eigenvalue (= squared singular value). How far the *image* and the critic's logit follow is measured by
walking each direction from every base latent, and random unit directions walk the same way as the control.

Legend: N base latents, D latent, K directions kept, R random directions, S steps of a walk, C channels, H height, W
width.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ganscale.explain.base import SCORING, Explainer, Meter, Options
from ganscale.explain.errors import CallableError, ExplainInputError, ExplainOptionError, ExplainTargetError
from ganscale.explain.layers import find_layer, first_latent_layer, latent_matrix
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.scores import Z95
from ganscale.explain.subject import Subject, check_callable
from ganscale.explain.types import Better, Explanation, Score

RANDOM_DIRECTIONS = 20
RANDOM_SHOWN = 2


class DirectionsOptions(Options):
    """``num_directions`` K; ``reach`` sigmas to either side in ``steps`` steps (odd); ``layer``: auto, or a dotted
    name.
    """

    num_directions: Annotated[int, Field(ge=1, le=4096)] = 8
    steps: Annotated[int, Field(ge=3, le=101)] = 7
    reach: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = 3.0
    layer: str = "auto"


class Directions(Explainer):
    """What the generator varies along, read off the weights, measured on its images."""

    name = "directions"
    summary = "what the generator varies along: factorisation of its first layer, measured against random directions"
    Options = DirectionsOptions
    options: DirectionsOptions
    input_name = "z"
    primary = ("image_change_per_sigma",)

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        if subject.generator is None:
            raise ExplainTargetError(
                "subject", "have a generator for directions", subject.name, "explain a run, or pass one"
            )
        self.z = request.inputs["z"]
        if self.z.ndim != 2 or self.z.shape[1] < 2:
            raise ExplainInputError(
                "inputs['z']", "be latents [N, D] with D >= 2", tuple(self.z.shape), "draw them anew"
            )
        expected = getattr(subject.generator, "latent", self.z.shape[1])
        if expected != self.z.shape[1]:
            raise ExplainInputError("inputs['z']", f"have {expected} numbers a row", self.z.shape[1], "draw them anew")
        if self.options.steps % 2 == 0:
            raise ExplainOptionError(
                "steps", "be odd, so that the base image is in the middle", self.options.steps, "add one"
            )
        self.sigmas_S = np.linspace(-self.options.reach, self.options.reach, self.options.steps)

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Return one chunk a direction: the K of the factorisation, then the R random ones."""
        if previous is not None:
            return []
        self._check_networks()
        _, vectors_KD, _ = self._factorise()
        everything = np.concatenate([vectors_KD, self._random_directions()])
        return [
            Chunk(round=0, index=row, explanation=row, part=0, work={"direction": everything[row]})
            for row in range(len(everything))
        ]

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Walk one direction from every base latent.

        Returns the L2 distance of each image from its base [N, S], the critic's logits [N, S], and where this walk is
        shown the images of the first base latent [S, C, H, W].
        """
        direction_D = torch.from_numpy(chunk.work["direction"])
        offsets_SD = torch.from_numpy(self.sigmas_S)[:, None] * direction_D
        count, steps = len(self.z), len(self.sigmas_S)
        walks = (self.z.double()[:, None] + offsets_SD).to(self.z.dtype).flatten(0, 1)
        images: list[Tensor] = []

        def look(z: Tensor) -> Tensor:
            image = self.subject.generator(z)
            images.append(image.cpu())
            return image.new_zeros(len(image)) if self.subject.critic is None else self.subject.critic(image)

        logits = meter.evaluate(look, len(walks), lambda part: walks[part]).reshape(count, steps)
        found = torch.cat(images)[: len(walks)]  # the padding of the last micro-batch is at its end
        flat = found.double().reshape(count, steps, -1)
        change = (flat - flat[:, steps // 2 : steps // 2 + 1]).norm(dim=2).numpy()
        shown = chunk.explanation < self._kept() + RANDOM_SHOWN
        return {"change": change, "logits": logits, **({"images": found[:steps]} if shown else {})}

    def finish(self, partial: Partial) -> Explanation:
        """Put the walks together and score the directions against the random ones."""
        found = [data for _, _, data in partial.of_round(0)]
        kept = self._kept()
        eigenvalues_D, vectors_KD, layer = self._factorise()
        slopes = np.array([change_per_sigma(data["change"], self.sigmas_S) for data in found])
        values = {
            "directions": torch.from_numpy(vectors_KD),
            "eigenvalues": torch.from_numpy(eigenvalues_D[:kept].copy()),
            "traversal": torch.stack([data["images"] for data in found[:kept]]),
            "traversal_random": torch.stack([data["images"] for data in found[kept : kept + RANDOM_SHOWN]]),
            "random_directions": torch.from_numpy(self._random_directions()),
            "sigmas": torch.from_numpy(self.sigmas_S),
            "image_change": torch.from_numpy(slopes[:kept]),
            "image_change_random": torch.from_numpy(slopes[kept:]),
        }
        scores = {"image_change_per_sigma": _against_random(slopes, kept, better="higher")}
        if self.subject.critic is not None:
            logits = np.stack([data["logits"] for data in found])  # [K + R, N, S]
            slope, r_squared = linear_effect(logits, self.sigmas_S)
            along = logits.mean(axis=(1, 2))
            scores["critic_slope_per_sigma"] = _against_random(np.abs(slope).mean(axis=1), kept, better="higher")
            scores["critic_linearity_r2"] = _against_random(r_squared.mean(axis=1), kept, better="higher")
            scores["critic_score_on_path"] = _against_random(along, kept, better="higher")
            values |= {
                "critic_path": torch.from_numpy(logits[:kept].mean(axis=1)),
                "critic_path_random": torch.from_numpy(logits[kept:].mean(axis=1)),
                "critic_first_walk": torch.from_numpy(logits[:kept, 0].copy()),
                "critic_first_walk_random": torch.from_numpy(logits[kept : kept + RANDOM_SHOWN, 0].copy()),
                "critic_slope": torch.from_numpy(slope[:kept].mean(axis=1)),
            }
        explained = float(eigenvalues_D[:kept].sum() / max(eigenvalues_D.sum(), np.finfo(float).tiny))
        meta = {"layer": layer, "share_of_eigenvalues": explained, "random_directions": RANDOM_DIRECTIONS}
        return self.explanation(partial, values=values, inputs=dict(self.request.inputs), scores=scores, meta=meta)

    def _kept(self) -> int:
        return min(self.options.num_directions, self.z.shape[1])

    def _factorise(self) -> tuple[np.ndarray, np.ndarray, str]:
        """Return all eigenvalues [D] descending, the K directions [K, D], and the layer's name."""
        generator, name = self.subject.generator, self.options.layer
        if name == "auto":
            with self.subject.quiet():
                name = first_latent_layer(generator, self.z[:2].to(self.subject.device))
        matrix_DO = latent_matrix(find_layer(generator, name), name, self.z.shape[1])
        eigenvalues, vectors = (array.numpy() for array in torch.linalg.eigh(matrix_DO @ matrix_DO.T))
        eigenvalues, directions_KD = eigenvalues[::-1].clip(min=0), vectors.T[::-1][: self._kept()]
        # an eigenvector's sign is arbitrary: make its largest entry positive, so that it does not depend on the library
        largest = np.abs(directions_KD).argmax(axis=1)
        signs = np.sign(directions_KD[np.arange(len(directions_KD)), largest])
        return eigenvalues.copy(), directions_KD * signs[:, None], name

    def _random_directions(self) -> np.ndarray:
        rng = np.random.default_rng(np.random.SeedSequence(self.request.seed, spawn_key=(0, SCORING)))
        drawn = rng.standard_normal((RANDOM_DIRECTIONS, self.z.shape[1]))
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    def _check_networks(self) -> None:
        generator, z = self.subject.generator, self.z[:2].to(self.subject.device)
        with self.subject.quiet(), torch.no_grad():
            images = generator(z)
        if images.ndim != 4 or len(images) != len(z) or not torch.isfinite(images).all():
            shape = tuple(images.shape)
            raise CallableError("the generator", "return finite images [n, C, H, W]", shape, "look at its weights")
        if self.subject.critic is not None:
            look = Subject(
                name="critic on generated images",
                fn=lambda z: self.subject.critic(generator(z)),
                module=self.subject.module,
                generator=generator,
                critic=self.subject.critic,
            )
            check_callable(look, self.z, -self.z[:1], gradient=False)


def change_per_sigma(change_NS: np.ndarray, sigmas_S: np.ndarray) -> float:
    """Return the slope through zero of image distance on |sigma|, over all base latents (L2 norm per sigma)."""
    reach_S = np.abs(sigmas_S)
    return float((change_NS @ reach_S).sum() / (len(change_NS) * (reach_S**2).sum()))


def linear_effect(effect: np.ndarray, sigmas_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return slope per sigma and R^2 of the least-squares line through effects [..., S]; R^2 is 0 where nothing
    varies.
    """
    centred = effect - effect.mean(axis=-1, keepdims=True)
    slope = centred @ sigmas_S / (sigmas_S**2).sum()  # sigmas are symmetric about zero
    total = (centred**2).sum(axis=-1)
    explained = slope**2 * (sigmas_S**2).sum()
    return slope, np.divide(explained, total, out=np.zeros_like(total), where=total > 0)


def _against_random(all_directions: np.ndarray, kept: int, *, better: Better) -> Score:
    """Score the mean of the first ``kept`` numbers against the rest; the interval is that of a mean of random ones."""
    values_K, random_R = all_directions[:kept], all_directions[kept:]
    half = Z95 * float(random_R.std(ddof=1)) * float(np.sqrt(1 / kept + 1 / len(random_R)))
    value = float(values_K.mean())
    return Score(
        value=value, low=value - half, high=value + half, control=float(random_R.mean()), n=kept, better=better
    )
