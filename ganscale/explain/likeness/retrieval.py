"""Which images a network holds for alike: exact nearest neighbours in its features, beside those in pixels.

The gallery is searched in parts, each of which returns its own best k; parts merge by (distance, place), so the result
is that of one whole sort, ties too. What a generator holds for alike are images whose latents are near each other: an
encoder says them, or a search does. Queries may stand in the gallery, and whoever ranks finds them there first: scores
leave a query's own copies out.

Legend: N queries, M gallery images, k neighbours, F features.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from scipy.stats import hypergeom
from torch import Tensor, nn

from ganscale.explain.base import SCORING, Explainer, Meter, Options
from ganscale.explain.beside import Beside, own_rows
from ganscale.explain.codes.autoencoder import small_pictures
from ganscale.explain.errors import CallableError, ExplainInputError, ExplainTargetError
from ganscale.explain.likeness.inversion import TOGETHER, search
from ganscale.explain.likeness.ranking import DEPTH, average_precision, random_rankings, recall_at, without
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.scores import RANDOM_ORDERS, against_control, against_random
from ganscale.explain.subject import Subject
from ganscale.explain.types import Explanation, Score

GALLERY = 2000
A_CHUNK = 250
SPACES = ("features", "pixels")
SHOWN = 8
ONE_SIDE = 0.025  # of a 95 % interval
MAPPED, NUMBERS = 500, 32  # images of the gallery whose features are kept, and numbers of each

Found = tuple[np.ndarray, np.ndarray]  # distances [N, k] ascending, places [N, k]


class RetrievalOptions(Options):
    """``k`` neighbours of each query; ``of`` names whose features are compared."""

    k: Annotated[int, Field(ge=1, le=1000)] = Field(5, description="neighbours of each query")
    of: Literal["critic", "classifier", "encoder", "generator"] = Field(
        "critic", description="whose features; generator: latents that a search finds for every image"
    )
    steps: Annotated[int, Field(ge=1, le=10_000)] = Field(100, description="of=generator: steps of the search")
    draws: Annotated[int, Field(ge=1, le=65536)] = Field(256, description="of=generator: pictures it may begin at")


class Retrieval(Explainer):
    """The nearest real images of each sample, in features and in pixels."""

    name = "retrieval"
    summary = "the nearest real images of each sample in a network's features, beside those in pixels and random ones"
    Options = RetrievalOptions
    options: RetrievalOptions
    primary = ("shared_with_pixels",)
    wants = ("classifier",)
    domains = ("x",)
    beside = MappingProxyType({"real": GALLERY})

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        self.x = request.inputs["x"]
        if "real" not in request.inputs:
            raise ExplainInputError(
                "inputs", "hold a gallery of 'real' images", ", ".join(request.inputs), "pass {'x': ..., 'real': ...}"
            )
        self.gallery = request.inputs["real"]
        if self.options.k > len(self.gallery):
            raise ExplainInputError("k", f"be at most {len(self.gallery)}, the gallery", self.options.k, "take fewer")
        if getattr(subject, self.options.of) is None:
            raise ExplainTargetError("of", "be a network that is there", self.options.of, "name another")
        if self.options.of == "generator" and not isinstance(getattr(subject.generator, "latent", None), int):
            rule, remedy = "say its number of latents for of=generator", "give it the attribute 'latent'"
            raise CallableError("the generator", rule, None, remedy)

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Return one chunk for each part of the gallery."""
        if previous is not None:
            return []
        starts = range(0, len(self.gallery), A_CHUNK)
        return [
            Chunk(round=0, index=index, explanation=index, part=0, work={"start": s}) for index, s in enumerate(starts)
        ]

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return the best k of one part of the gallery for every query, in both spaces."""
        start = chunk.work["start"]
        part = self.gallery[start : start + A_CHUNK]
        queries, away = self._of_queries
        pairs = {"pixels": (self.x.flatten(1), part.flatten(1)), "features": (queries, self._features(part)[0])}
        passes = self.options.steps if self.options.of == "generator" else 1
        rows = passes * (len(part) + (len(self.x) if start == 0 else 0))
        meter.rows_forward += rows
        meter.rows_backward += rows if self.options.of == "generator" else 0
        found: dict[str, Any] = {
            space: best_of(distances(queries, gallery), start, self._depth)
            for space, (queries, gallery) in pairs.items()
        }
        if away is not None and start == 0:
            found["away"] = away
        if start == 0:
            found["query_codes"] = few_numbers(pairs["features"][0])
        if start < MAPPED:
            found["codes"] = few_numbers(pairs["features"][1][: MAPPED - start])
        return found

    def finish(self, partial: Partial) -> Explanation:
        """Merge the parts and score the neighbours by what they share: with pixels, and in class."""
        found = [data for _, _, data in partial.of_round(0)]
        ranked = {space: merge_best([data[space] for data in found], self._depth) for space in SPACES}
        merged = {space: (far[:, : self.options.k], at[:, : self.options.k]) for space, (far, at) in ranked.items()}
        values: dict[str, Tensor] = {}
        for space, (distance, place) in merged.items():
            distance, place = distance.copy(), place.copy()
            values |= {f"{space}_distance": torch.from_numpy(distance), f"{space}_neighbours": torch.from_numpy(place)}
        shown = merged["features"][1][:SHOWN]
        values["neighbour_images"] = torch.stack([self.gallery[torch.from_numpy(row)] for row in shown])
        values |= self._map(found)
        copies = [near[far == 0] for far, near in zip(*ranked["pixels"], strict=True)]
        inputs = {key: value for key, value in self.request.inputs.items() if not key.startswith("real")}
        return self.explanation(
            partial,
            values=values,
            inputs=inputs,
            scores=self._scores(ranked, copies) | self._by_label(ranked, copies) | self._of_search(found),
            meta={"of": self.options.of, "gallery": len(self.gallery), "copies": sum(len(own) > 0 for own in copies)},
        )

    def _map(self, found: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return features of the queries and of the gallery's first images, to be looked at with their pictures."""
        inputs, gallery = self.request.inputs, self.gallery[:MAPPED]
        rows = [found[0]["query_codes"], *(data["codes"] for data in found if "codes" in data)]
        seen = {"codes": torch.from_numpy(np.concatenate(rows))}
        if self.x.ndim == 4:
            seen["code_images"] = torch.cat([small_pictures(self.x), small_pictures(gallery)])
        if "labels" in inputs and "real_labels" in inputs:
            seen["code_labels"] = torch.cat([inputs["labels"], inputs["real_labels"][:MAPPED]])
        return seen

    def _scores(self, ranked: dict[str, Found], copies: list[np.ndarray]) -> dict[str, Score]:
        """Score the k nearest but a query's own copies: by what two rankings share, and by class."""
        places_N = [min(self.options.k, self._depth - len(own)) for own in copies]
        near = {
            space: [without(*row) for row in zip(ranked[space][1], copies, places_N, strict=True)] for space in SPACES
        }
        others_N = [len(self.gallery) - len(own) for own in copies]
        scores = {"shared_with_pixels": shared(near["features"], near["pixels"], others_N)}
        labels, real = self.request.inputs.get("labels"), self.request.inputs.get("real_labels")
        if labels is None or real is None:
            return scores
        gallery, right = real.numpy(), []
        for row, label in enumerate(labels.tolist()):
            if label >= 0 and places_N[row] > 0:
                drawn = (*(near[space][row] for space in SPACES), np.delete(np.arange(len(gallery)), copies[row]))
                right.append([(gallery[places] == label).mean() for places in drawn])
        if right:
            features_N, pixels_N, random_N = np.array(right).T
            scores["same_class"] = against_control(features_N, random_N, better="higher")
            scores["same_class_against_pixels"] = against_control(features_N, pixels_N, better="higher")
        return scores

    def _by_label(self, ranked: dict[str, Found], copies_N: list[np.ndarray]) -> dict[str, Score]:
        """Score the rankings by labels, beside those in pixels and random ones; a query's own copies are left out."""
        labels, real = self.request.inputs.get("labels"), self.request.inputs.get("real_labels")
        if labels is None or real is None:
            return {}
        k, rng = (
            self.options.k,
            np.random.default_rng(np.random.SeedSequence(self.request.seed, spawn_key=(0, SCORING))),
        )
        right: dict[str, list[np.ndarray]] = {"recall": [], "precision": []}
        chance: dict[str, list[np.ndarray]] = {"recall": [], "precision": []}
        gallery = real.numpy()
        for row, (label, copies) in enumerate(zip(labels.tolist(), copies_N, strict=True)):
            relevant = np.setdiff1d(np.flatnonzero(gallery == label), copies)
            places = self._depth - len(copies)
            if label < 0 or not len(relevant) or places < 1:
                continue
            rankings = [without(ranked[space][1][row], copies, places) for space in SPACES]
            of_spaces = np.stack([np.isin(places_T, relevant) for places_T in rankings])
            random = random_rankings(len(relevant), len(gallery) - len(copies), places, RANDOM_ORDERS, rng)
            for kept, which in ((right, of_spaces), (chance, random)):
                kept["recall"].append(recall_at(which, k))
                kept["precision"].append(average_precision(which, np.full(len(which), len(relevant))))
        if not right["recall"]:
            return {}
        scores = {}
        for key, name in (("recall", "recall_at_k"), ("precision", "mean_average_precision")):
            own_N, pixels_N = np.stack(right[key], axis=1)
            scores[name] = against_random(own_N, np.stack(chance[key]), better="higher")
            scores[f"{name}_against_pixels"] = against_control(own_N, pixels_N, better="higher")
        return scores

    def _of_search(self, found: list[dict[str, Any]]) -> dict[str, Score]:
        """Score how near the search for latents came, beside the nearest of the pictures it began at."""
        if "away" not in found[0]:
            return {}
        reached_N, began_N = found[0]["away"]
        return {"inversion_distance": against_control(reached_N, began_N, better="lower")}

    @property
    def _depth(self) -> int:
        """How many places of each ranking are known."""
        return min(max(self.options.k, DEPTH), len(self.gallery))

    @cached_property
    def _of_queries(self) -> tuple[Tensor, np.ndarray | None]:
        return self._features(self.x)  # once in each process

    def _features(self, x: Tensor) -> tuple[Tensor, np.ndarray | None]:
        """Return the features of images [n, F]; of a search also how far it stayed away and from where [2, n]."""
        if self.options.of == "generator":
            return self._latents(x)
        network = getattr(self.subject, self.options.of)
        with torch.no_grad():
            rows = [self._of(network, part.to(self.subject.device)).cpu() for part in x.split(self.micro_batch)]
        return torch.cat(rows), None

    def _latents(self, x: Tensor) -> tuple[Tensor, np.ndarray]:
        """Search for the latent of each image, from the nearest of the drawn ones."""
        z, drawn = self._bank
        away = distances(x.flatten(1), drawn.flatten(1))
        start, steps, device = z[torch.from_numpy(away.argmin(axis=1))], self.options.steps, self.subject.device
        parts = zip(x.split(TOGETHER), start.split(TOGETHER), strict=True)
        found = [search(self.subject.generator, part.to(device), at.to(device), steps) for part, at in parts]
        reached, latents = (torch.cat(part) for part in zip(*found, strict=True))
        return latents.cpu(), np.stack([reached.numpy(), away.min(axis=1)])

    @cached_property
    def _bank(self) -> tuple[Tensor, Tensor]:
        """Drawn latents and their pictures."""
        generator = self.subject.generator
        rng = np.random.default_rng(np.random.SeedSequence(self.request.seed, spawn_key=(0, SCORING + 1)))
        z = torch.from_numpy(rng.standard_normal((self.options.draws, generator.latent))).to(self.x.dtype)
        with torch.no_grad():
            return z, torch.cat([generator(part.to(self.subject.device)).cpu() for part in z.split(self.micro_batch)])

    def _of(self, network: Any, x: Tensor) -> Tensor:
        if self.options.of == "encoder":
            return network.encode(x)
        if self.options.of == "classifier":
            return network.features(x)
        return before_last(network, x)


def before_last(network: nn.Module, x: Tensor) -> Tensor:
    """Return what the last linear layer of a critic is given, [n, F]: all that it knows of an image."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        return network(x)[:, None]
    seen: list[Tensor] = []
    handle = layers[-1].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    try:
        network(x)
    finally:
        handle.remove()
    return (own_rows(network, seen) if isinstance(network, Beside) else seen[-1]).flatten(1)


def few_numbers(features_NF: Tensor) -> np.ndarray:
    """Return features as at most ``NUMBERS`` numbers each, float32: enough to be looked at, never to be measured by.

    More are projected on fixed random directions, which keeps squared distances within a quarter (one standard
    deviation; Johnson and Lindenstrauss 1984).
    """
    features = features_NF.double()
    if features.shape[1] > NUMBERS:
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(features.shape[1], NUMBERS, generator=generator, dtype=torch.float64)
        features = features @ directions / NUMBERS**0.5
    return features.float().numpy()


def distances(queries: Tensor, gallery: Tensor) -> np.ndarray:
    """Return Euclidean distances [N, M], float64, without the shortcut that sets exact copies apart."""
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(queries.double(), gallery.double(), compute_mode=mode).numpy()


def best_of(distance_NM: np.ndarray, start: int, k: int) -> Found:
    """Return the k smallest of each row with their places from ``start`` on; of equal ones, the earlier."""
    order = np.argsort(distance_NM, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distance_NM, order, axis=1), order + start


def merge_best(parts: list[Found], k: int) -> Found:
    """Return the k best of all parts by (distance, place)."""
    distance = np.concatenate([part[0] for part in parts], axis=1)
    place = np.concatenate([part[1] for part in parts], axis=1)
    order = np.stack([np.lexsort((place[row], distance[row]))[:k] for row in range(len(place))])
    return np.take_along_axis(distance, order, axis=1), np.take_along_axis(place, order, axis=1)


def shared(ours: list[np.ndarray], pixels: list[np.ndarray], others_N: list[int]) -> Score:
    """Score the share of neighbours that two rankings have in common against as many drawn from ``others_N`` images.

    The margin is that of such draws, without replacement: the least that is exceeded in at most 2.5 % of cases. A few
    queries share so seldom by chance that a normal curve would call a single shared image a finding.
    """
    sizes_N = [(len(row), others) for row, others in zip(ours, others_N, strict=True) if len(row)]
    total = sum(places for places, _ in sizes_N)
    if not total:
        return Score(value=float("nan"), control=float("nan"), n=0, better="higher")
    value = sum(len(np.intersect1d(*pair)) for pair in zip(ours, pixels, strict=True)) / total
    spectrum = 1.0  # of how many are shared in all: the sum of what each query shares
    for (places, others), queries in Counter(sizes_N).items():
        one = hypergeom.pmf(np.arange(places + 1), others, places, places)
        spectrum = spectrum * np.fft.rfft(one, total + 1) ** queries
    at_least = np.fft.irfft(spectrum, total + 1)[::-1].cumsum()[::-1]
    rare = int(np.argmax(np.append(at_least, 0.0) <= ONE_SIDE))
    control = sum(places**2 / others for places, others in sizes_N) / total
    half = (rare - 0.5) / total - control
    return Score(value=value, low=value - half, high=value + half, control=control, n=len(sizes_N), better="higher")
