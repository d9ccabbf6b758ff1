"""Can an outsider tell training images from others? By the critic's logit, and by the nearest generated image.

Training images are the positives, held-out images of the same data the negatives; held-out against held-out is the
control. A critic that has learned its training images by heart scores them higher (Hayes et al. 2019,
arXiv:1705.07663); a generator that has, draws them, and comes nearer still when its latent is searched for
(Chen et al. 2020, arXiv:1909.03935).

Legend: N members, M others, L generated images.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from ganscale.explain.base import Explainer, Meter, Options
from ganscale.explain.errors import ExplainInputError
from ganscale.explain.likeness.inversion import TOGETHER, search
from ganscale.explain.likeness.retrieval import distances
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.scores import Z95
from ganscale.explain.subject import Subject
from ganscale.explain.types import Explanation, Score

IMAGES, GENERATED = 500, 2000
A_CHUNK = 250
FALSE_ALARMS = 0.01
SHOWN = 8


class MembershipOptions(Options):
    """``searched``: images of either kind whose latents are searched, ``steps`` each; 0 leaves the search out."""

    searched: Annotated[int, Field(ge=0, le=10_000)] = Field(
        64, description="images of either kind whose latents are searched, at least 2; 0: none"
    )
    steps: Annotated[int, Field(ge=1, le=10_000)] = Field(50, description="steps of each search")

    @field_validator("searched")
    @classmethod
    def _has_halves(cls, searched: int) -> int:
        if searched == 1:
            raise ValueError("be 0 or at least 2, as the control tells one half of the images from the other")
        return searched


class Membership(Explainer):
    """What two attacks know of who was trained on."""

    name = "membership"
    summary = "whether training images can be told from held-out ones, by the critic or by the nearest generated image"
    Options = MembershipOptions
    options: MembershipOptions
    primary = ("nearest_auc",)
    banner = "no sign of memorisation: training images cannot be told from held-out ones"
    needs = ("generator",)
    beside = MappingProxyType({"real": IMAGES, "held_out": IMAGES, "latents": GENERATED})

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        missing = [name for name in self.beside if name not in request.inputs]
        if missing:
            raise ExplainInputError(
                "inputs", "hold 'real', 'held_out' and 'latents'", f"no {missing[0]}", "explain a run, or pass all"
            )
        inputs = request.inputs
        self.members, self.others, self.latents = inputs["real"], inputs["held_out"], inputs["latents"]
        if len(self.others) < 20 or len(self.members) < 10:
            got = f"{len(self.members)} and {len(self.others)}"
            raise ExplainInputError("real and held_out", "hold at least 10 and 20 images", got, "use larger data")

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Return one chunk for every part of the generated images, of which the first also asks the critic; then the
        searches, each from the nearest generated image.
        """
        if previous is not None:
            return self._searches(previous) if previous.round == 0 else []
        starts = range(0, len(self.latents), A_CHUNK)
        return [
            Chunk(round=0, index=index, explanation=index, part=0, work={"start": s}) for index, s in enumerate(starts)
        ]

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return how near each image's nearest is among one part of the generated images, and which; or search."""
        if chunk.round == 1:
            return {"rows": chunk.work["rows"], "near": self._search(chunk.work["rows"], chunk.work["places"], meter)}
        start = chunk.work["start"]
        z = self.latents[start : start + A_CHUNK]
        meter.rows_forward += len(z)
        drawn = self._in_parts(self.subject.generator, z)
        both = torch.cat([self.members, self.others])
        distance = distances(both.flatten(1), drawn.flatten(1))
        found = {"near": distance.min(axis=1), "place": distance.argmin(axis=1) + start}
        if chunk.index == 0 and self.subject.critic is not None:
            meter.rows_forward += len(both)
            found["logits"] = self._in_parts(self.subject.critic, both).double().numpy()
        return found

    def finish(self, partial: Partial) -> Explanation:
        """Merge the parts by the smallest distance and draw both curves."""
        found = [data for _, _, data in partial.of_round(0)]
        near, place = _nearest(partial)
        signals = {"nearest": -near}
        if "logits" in found[0]:
            signals["critic"] = found[0]["logits"]
        count = len(self.members)
        scores: dict[str, Score] = {}
        values: dict[str, Tensor] = {
            "nearest_distance": torch.from_numpy(near),
            "is_member": torch.arange(len(near)) < count,
        }
        for name, signal in signals.items():
            mine, other = signal[:count], signal[count:]
            scores |= told_apart(name, mine, other)
            values[f"roc_{name}"] = torch.from_numpy(roc(mine, other))
        searched = [data for _, _, data in partial.of_round(1)]
        if searched:
            rows, reached = (np.concatenate([data[key] for data in searched]) for key in ("rows", "near"))
            mine, other = -reached[rows < count], -reached[rows >= count]
            scores |= told_apart("searched", mine, other)
            values |= {
                "roc_searched": torch.from_numpy(roc(mine, other)),
                "searched_distance": torch.from_numpy(reached),
            }
        closest = np.argsort(near[:count], kind="stable")[:SHOWN]
        drawn = self.latents[torch.from_numpy(place[closest])]
        with self.subject.quiet():
            values["nearest_generated"] = self._in_parts(self.subject.generator, drawn)
        values["nearest_members"] = self.members[torch.from_numpy(closest)]
        kept = {"x", "generated", "labels"}
        return self.explanation(
            partial,
            values=values,
            inputs={key: value for key, value in self.request.inputs.items() if key in kept},
            scores=scores,
            meta={"members": count, "others": len(self.others), "generated": len(self.latents)},
        )

    def _searches(self, previous: Partial) -> list[Chunk]:
        _, place = _nearest(previous)
        each = min(self.options.searched, len(self.members), len(self.others))
        rows = np.concatenate([np.arange(each), len(self.members) + np.arange(each)])
        parts = [rows[start : start + TOGETHER] for start in range(0, len(rows), TOGETHER)]
        works = [{"rows": part, "places": place[part]} for part in parts]
        return [Chunk(round=1, index=index, explanation=index, part=1, work=work) for index, work in enumerate(works)]

    def _search(self, rows: np.ndarray, places: np.ndarray, meter: Meter) -> np.ndarray:
        """Return the least distance from each image that Adam on z meets, beginning at the nearest latent."""
        wanted = torch.cat([self.members, self.others])[torch.from_numpy(rows)].to(self.subject.device)
        start = self.latents[torch.from_numpy(places)].to(self.subject.device)
        meter.rows_forward += self.options.steps * len(rows)
        meter.rows_backward += self.options.steps * len(rows)
        return search(self.subject.generator, wanted, start, self.options.steps)[0].numpy()

    def _in_parts(self, network: Any, rows: Tensor) -> Tensor:
        with torch.no_grad():
            parts = [network(part.to(self.subject.device)).cpu() for part in rows.split(self.micro_batch)]
        return torch.cat(parts)


def _nearest(partial: Partial) -> tuple[np.ndarray, np.ndarray]:
    """Return each image's distance to the nearest generated one, and that one's place; of equal ones, the earlier."""
    found = [data for _, _, data in partial.of_round(0)]
    near, place = (np.stack([data[key] for data in found]) for key in ("near", "place"))
    best, columns = near.argmin(axis=0), np.arange(near.shape[1])
    return near[best, columns], place[best, columns]


def told_apart(name: str, mine: np.ndarray, other: np.ndarray) -> dict[str, Score]:
    """Score how far a signal tells members from others, against one half of the others told from the other half.

    The margins are 1.96 standard errors of value minus control where all are drawn alike: the control, of half as many
    images, errs more than the value does.
    """
    half, found = len(other) // 2, {}
    pairs = ((mine, other), (other[:half], other[half:]))
    sizes = [(len(positive), len(negative)) for positive, negative in pairs]
    for words, count, measure, power in (
        ("auc", sum(sizes[0]), auc, _power_of_auc),
        ("caught_at_1_percent", len(mine), caught_at, _power_of_caught),
    ):
        value, control = (measure(*pair) for pair in pairs)
        margin = Z95 * float(np.sqrt(sum(power(*size) for size in sizes)))
        found[f"{name}_{words}"] = Score(
            value=value, low=value - margin, high=value + margin, control=control, n=count, better="higher"
        )
    return found


def _power_of_auc(n: int, m: int) -> float:
    """Return the variance of the area where n positives and m negatives are drawn alike (Mann and Whitney 1947)."""
    return (n + m + 1) / (12 * n * m)


def _power_of_caught(n: int, m: int) -> float:
    """Return the variance of the share caught where all are drawn alike: the threshold's place is random as well.

    The chance to be above the (a + 1)th of m negatives follows Beta(a + 1, m - a).
    """
    mean = (int(FALSE_ALARMS * m) + 1) / (m + 1)
    return mean * (1 - mean) * (n + m + 1) / (n * (m + 2))


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the chance that a positive scores above a negative, ties counting half (Mann and Whitney 1947)."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left")
    upto = np.searchsorted(ordered, positive, side="right")
    return float((below + upto).sum()) / (2 * len(positive) * len(negative))


def caught_at(positive: np.ndarray, negative: np.ndarray, false_alarms: float = FALSE_ALARMS) -> float:
    """Return the share of positives above the threshold that at most this share of negatives exceeds."""
    allowed = int(false_alarms * len(negative))
    return float((positive > np.sort(negative)[::-1][allowed]).mean())


def roc(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return the curve [P, 2] of (share of negatives, share of positives) above a falling threshold."""
    thresholds = np.unique(np.concatenate([positive, negative]))[::-1]
    points = [((negative >= t).mean(), (positive >= t).mean()) for t in thresholds]
    return np.array([(0.0, 0.0), *points])
