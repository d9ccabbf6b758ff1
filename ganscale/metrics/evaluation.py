"""One evaluation: every distance beside its real-v-real floor, stamped with how it was measured.

N samples, C channels, H height, W width, D features. The reference images come in two disjoint halves: ``real_a`` is
what both the fakes and ``real_b`` are measured against, so value and floor differ only in what is judged.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ganscale.errors import UserError, unknown
from ganscale.metrics.distances import kernel_distance
from ganscale.metrics.features import Extractor, features_of
from ganscale.metrics.frechet import frechet_distance
from ganscale.metrics.neighbours import prdc

Better = Literal["lower", "higher"]
NEIGHBOURS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricValue:
    """A number, its floor, and what it takes to compare it with another one."""

    name: str  # with its extractor: "FD (in-domain CNN)"
    value: float
    spread: float | None  # standard deviation between subsets; None where the metric has none
    floor: float  # the same metric of real images against other real images, at the same n
    better: Better
    unit: str
    stamp: dict[str, str]  # how it was measured; only equal stamps compare
    subject: dict[str, str] = field(default_factory=dict)  # what was measured: run, images seen, weights

    def to_json(self) -> dict[str, Any]:
        """Plain data for strict JSON: a number that is not finite becomes None."""
        plain = asdict(self)
        for key in ("value", "spread", "floor"):
            plain[key] = plain[key] if plain[key] is not None and math.isfinite(plain[key]) else None
        return plain

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" +- {self.spread:.3g}"
        n, split = self.stamp["n_fake"], self.stamp["split"]
        return f"{self.name} {self.value:.4g}{spread} (real v real {self.floor:.4g}, n={n}, split={split})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What one metric returns for one pair of feature sets, before it is stamped."""

    label: str
    value: float
    spread: float | None
    better: Better
    unit: str


def frechet(real: Tensor, fake: Tensor, *, seed: int) -> list[Measured]:
    """Frechet distance of the features' Gaussians (FD); biased upwards at small n, lower is better."""
    return [Measured(label="FD", value=frechet_distance(real, fake), spread=None, better="lower", unit="features^2")]


def kernel(real: Tensor, fake: Tensor, *, seed: int) -> list[Measured]:
    """Unbiased kernel distance with its spread over subsets (KD); about 0 for equal sets, lower is better."""
    value, spread = kernel_distance(real, fake, seed=seed)
    return [Measured(label="KD", value=value, spread=spread, better="lower", unit="squared MMD")]


def precision_recall(real: Tensor, fake: Tensor, *, seed: int) -> list[Measured]:
    """Precision, recall, density and coverage by 5 nearest neighbours; higher is better."""
    shares = prdc(real, fake, k=NEIGHBOURS)
    units = {"density": "balls / k"}
    return [
        Measured(label=label, value=value, spread=None, better="higher", unit=units.get(label, "share"))
        for label, value in shares.items()
    ]


SetMetric = Callable[..., list[Measured]]
METRICS: dict[str, SetMetric] = {"fd": frechet, "kd": kernel, "prdc": precision_recall}
_PARAMETERS = {
    "fd": "unbiased covariance",
    "kd": "cubic kernel, 20 subsets of min(1000, n / 2)",
    "prdc": f"k = {NEIGHBOURS}",
}


class Reference:
    """The real images of an evaluation, looked at once: their features, their floors, and the stamp that names them.

    ``real_a`` ``[Na, C, H, W]`` and ``real_b`` ``[N, C, H, W]`` are disjoint images, uint8; ``reference`` names them in
    the stamp (``"data"``, ``"split"``, ``"fingerprint"``). Raises ``UserError`` for sets that are too small or of other
    shapes and dtypes.
    """

    def __init__(
        self,
        extractor: Extractor,
        real_a: Tensor,
        real_b: Tensor,
        *,
        reference: Mapping[str, str] | None = None,
        batch: int = 256,
    ) -> None:
        _check_sets(real_a.shape, real_b.shape, real_b.shape)
        self._extractor, self._batch, self._shape = extractor, batch, real_b.shape
        self._real_a, self._real_b = (features_of(extractor, images, batch=batch) for images in (real_a, real_b))
        self._floors: dict[tuple[str, int], list[Measured]] = {}
        self._stamp = {
            "split": "unstated",
            **(reference or {}),
            "reals_sha256": _images_hash(real_a, real_b),
            "image_shape": "x".join(map(str, real_b.shape[1:])),
            **extractor.describe(),
        }

    def measure(
        self,
        fake: Tensor,
        *,
        metrics: Sequence[str] = tuple(METRICS),
        seed: int = 0,
        subject: Mapping[str, str] | None = None,
    ) -> dict[str, MetricValue]:
        """Measure ``fake`` ``[N, C, H, W]`` uint8; all metrics come from one pass through the extractor.

        ``subject`` names what is judged (``"run"``, ``"images"``). Raises ``UserError`` for an unknown metric and a set
        of another size or shape.
        """
        _check_metrics(metrics)
        _check_sets((len(self._real_a), *self._shape[1:]), self._shape, fake.shape)
        features = features_of(self._extractor, fake, batch=self._batch)
        for metric in metrics:
            if (metric, seed) not in self._floors:
                self._floors[metric, seed] = METRICS[metric](self._real_a, self._real_b, seed=seed)
        floors = {metric: self._floors[metric, seed] for metric in metrics}
        return _stamped(self._real_a, features, floors, stamp=self._stamp, seed=seed, subject=subject)


def _stamped(
    real_a: Tensor,
    fake: Tensor,
    floors: Mapping[str, list[Measured]],
    *,
    stamp: Mapping[str, str],
    seed: int,
    subject: Mapping[str, str] | None,
) -> dict[str, MetricValue]:
    """Measure the features ``fake`` by every metric of ``floors``."""
    values = {}
    for metric, metric_floors in floors.items():
        full_stamp = {
            **stamp,
            "metric": metric,
            "parameters": _PARAMETERS[metric],
            "n_real": str(len(real_a)),
            "n_fake": str(len(fake)),
            "seed": str(seed),
            "torch": torch.__version__,
        }
        for found, floor in zip(METRICS[metric](real_a, fake, seed=seed), metric_floors, strict=True):
            name = f"{found.label} ({stamp['extractor']})"
            values[name] = MetricValue(
                name=name,
                value=found.value,
                spread=found.spread,
                floor=floor.value,
                better=found.better,
                unit=found.unit,
                stamp=full_stamp,
                subject=dict(subject or {}),
            )
    return values


def _check_metrics(metrics: Sequence[str]) -> None:
    if isinstance(metrics, str) or len(metrics) == 0:
        raise UserError("metrics", "be a list of names", repr(metrics), f"choose from {', '.join(METRICS)}")
    for metric in metrics:
        if metric not in METRICS:
            raise unknown("metric", metric, METRICS)


def _check_sets(real_a: Sequence[int], real_b: Sequence[int], fake: Sequence[int]) -> None:
    """Refuse sets whose shapes, with the number of samples first, do not go together."""
    shapes = {tuple(shape[1:]) for shape in (real_a, real_b, fake)}
    if len(shapes) > 1:
        got = ", ".join("x".join(map(str, shape)) for shape in sorted(shapes))
        raise UserError("real and fake samples", "have one shape", got, "read the reals at the run's resolution")
    if real_b[0] != fake[0]:
        got = f"{real_b[0]} and {fake[0]}"
        raise UserError(
            "the second real half and the fakes", "hold equally many samples", got, "cut both to one number"
        )
    smallest = max(2 * NEIGHBOURS, 4)
    if min(real_a[0], fake[0]) < smallest:
        got = f"{real_a[0]} and {fake[0]}"
        raise UserError("real and fake samples", f"number at least {smallest} each", got, "measure more images")


def _images_hash(*parts: Tensor) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
