"""Which images a network holds for alike: exact nearest neighbours in its features, beside those in pixels.

The gallery is searched in parts, each of which returns its own best k; parts merge by (distance, place), so the result
is that of one whole sort, ties too.

Legend: N queries, M gallery images, k neighbours, F features.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ganscale.explain.base import Explainer, Meter, Options
from ganscale.explain.codes.autoencoder import small_pictures
from ganscale.explain.errors import ExplainInputError, ExplainTargetError
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.scores import Z95, against_control
from ganscale.explain.subject import Subject
from ganscale.explain.types import Explanation, Score

GALLERY = 2000
A_CHUNK = 250
SPACES = ("features", "pixels")
SHOWN = 8
MAPPED, NUMBERS = 500, 32  # images of the gallery whose features are kept, and numbers of each

Found = tuple[np.ndarray, np.ndarray]  # distances [N, k] ascending, places [N, k]


class RetrievalOptions(Options):
    """``k`` neighbours of each query; ``of`` names whose features are compared: critic, classifier or encoder."""

    k: Annotated[int, Field(ge=1, le=1000)] = 5
    of: Literal["critic", "classifier", "encoder"] = "critic"


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
        meter.rows_forward += len(part) + len(self.x)
        pairs = {
            "pixels": (self.x.flatten(1), part.flatten(1)),
            "features": (self._features(self.x), self._features(part)),
        }
        found: dict[str, Any] = {
            space: best_of(distances(queries, gallery), start, self.options.k)
            for space, (queries, gallery) in pairs.items()
        }
        if start == 0:
            found["query_codes"] = few_numbers(pairs["features"][0])
        if start < MAPPED:
            found["codes"] = few_numbers(pairs["features"][1][: MAPPED - start])
        return found

    def finish(self, partial: Partial) -> Explanation:
        """Merge the parts and score the neighbours by what they share: with pixels, and in class."""
        found = [data for _, _, data in partial.of_round(0)]
        merged = {space: merge_best([data[space] for data in found], self.options.k) for space in SPACES}
        values: dict[str, Tensor] = {}
        for space, (distance, place) in merged.items():
            values |= {f"{space}_distance": torch.from_numpy(distance), f"{space}_neighbours": torch.from_numpy(place)}
        shown = merged["features"][1][:SHOWN]
        values["neighbour_images"] = torch.stack([self.gallery[torch.from_numpy(row)] for row in shown])
        values |= self._map(found)
        inputs = {key: value for key, value in self.request.inputs.items() if not key.startswith("real")}
        return self.explanation(
            partial,
            values=values,
            inputs=inputs,
            scores=self._scores(merged),
            meta={"of": self.options.of, "gallery": len(self.gallery), "copies": self._copies(merged["pixels"])},
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

    def _scores(self, merged: dict[str, Found]) -> dict[str, Score]:
        ours, pixels = merged["features"][1], merged["pixels"][1]
        shared_N = np.array(
            [len(set(a) & set(b)) / len(a) for a, b in zip(ours.tolist(), pixels.tolist(), strict=True)]
        )
        scores = {"shared_with_pixels": _shared(shared_N, self.options.k, len(self.gallery))}
        labels, real = self.request.inputs.get("labels"), self.request.inputs.get("real_labels")
        if labels is None or real is None or not (labels >= 0).any():
            return scores
        known = (labels >= 0).numpy()
        wanted, gallery = labels.numpy()[known][:, None], real.numpy()
        right_N = {space: (gallery[merged[space][1][known]] == wanted).mean(axis=1) for space in SPACES}
        random_N = (gallery[None] == wanted).mean(axis=1)
        scores["same_class"] = against_control(right_N["features"], random_N, better="higher")
        scores["same_class_against_pixels"] = against_control(right_N["features"], right_N["pixels"], better="higher")
        return scores

    def _copies(self, pixels: Found) -> int:
        """Return how many queries stand in the gallery pixel for pixel."""
        return int((pixels[0][:, 0] == 0).sum())

    def _features(self, x: Tensor) -> Tensor:
        network = getattr(self.subject, self.options.of)
        with torch.no_grad():
            rows = [self._of(network, part.to(self.subject.device)).cpu() for part in x.split(self.micro_batch)]
        return torch.cat(rows)

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
    return seen[-1].flatten(1)


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


def _shared(shared_N: np.ndarray, k: int, gallery: int) -> Score:
    """Score the mean share of k neighbours that two spaces have in common against k drawn from the gallery.

    The interval is that of such draws, without replacement (hypergeometric).
    """
    chance = k / gallery
    power = chance * (1 - chance) * (gallery - k) / max(gallery - 1, 1) / k
    value, half = float(shared_N.mean()), Z95 * float(np.sqrt(power / len(shared_N)))
    return Score(value=value, low=value - half, high=value + half, control=chance, n=len(shared_N), better="higher")
