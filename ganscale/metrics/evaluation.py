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


def measure(
    extractor: Extractor,
    real_a: Tensor,
    real_b: Tensor,
    fake: Tensor,
    *,
    metrics: Sequence[str] = tuple(METRICS),
    seed: int = 0,
    reference: Mapping[str, str] | None = None,
    subject: Mapping[str, str] | None = None,
    batch: int = 256,
) -> dict[str, MetricValue]:
    """Measure fakes against reals through ``extractor``; returns ``{"FD (in-domain CNN)": MetricValue, ...}``.

    ``real_a`` ``[Na, C, H, W]``, ``real_b`` and ``fake`` (both ``[N, C, H, W]``) are uint8; the reals must be
    disjoint images. Values compare ``fake`` with ``real_a``, floors compare ``real_b`` with ``real_a``.
    ``reference`` names the real images in the stamp (``"data"``, ``"split"``, ``"fingerprint"``), ``subject`` what is
    judged (``"run"``, ``"images"``, ``"weights"``). Raises ``UserError`` for unknown metrics, sets of unequal or too
    small size, or other shapes and dtypes.
    """
    _check_request(metrics, real_a, real_b, fake)
    features = [features_of(extractor, images, batch=batch) for images in (real_a, real_b, fake)]
    stamp = {
        "split": "unstated",
        **(reference or {}),
        "reals_sha256": _images_hash(real_a, real_b),
        "image_shape": "x".join(map(str, fake.shape[1:])),
        **extractor.describe(),
    }
    return evaluate_features(*features, metrics=metrics, seed=seed, stamp=stamp, subject=subject)


def evaluate_features(
    real_a: Tensor,
    real_b: Tensor,
    fake: Tensor,
    *,
    stamp: Mapping[str, str],
    metrics: Sequence[str] = tuple(METRICS),
    seed: int = 0,
    subject: Mapping[str, str] | None = None,
) -> dict[str, MetricValue]:
    """As ``measure``, for feature rows ``[N, D]``; ``stamp`` must name the ``extractor`` and the ``split``."""
    _check_request(metrics, real_a, real_b, fake)
    for key in ("extractor", "split"):
        if key not in stamp:
            raise UserError("the stamp", f"name the {key}", str(sorted(stamp)), f"add stamp['{key}']")
    values = {}
    for metric in metrics:
        measured = METRICS[metric](real_a, fake, seed=seed)
        floors = METRICS[metric](real_a, real_b, seed=seed)
        full_stamp = {
            **stamp,
            "metric": metric,
            "parameters": _PARAMETERS[metric],
            "n_real": str(len(real_a)),
            "n_fake": str(len(fake)),
            "seed": str(seed),
            "torch": torch.__version__,
        }
        for found, floor in zip(measured, floors, strict=True):
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


def compare(new: MetricValue, old: MetricValue) -> float:
    """By how much ``new`` is better than ``old``, in the metric's unit (negative: worse).

    Raises ``UserError`` that names what differs where the two were not measured in the same way.
    """
    ours, theirs = {"name": new.name, **new.stamp}, {"name": old.name, **old.stamp}
    different = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if different:
        got = "; ".join(f"{key}: {ours.get(key)} v {theirs.get(key)}" for key in different)
        raise UserError("two compared values", "be measured in the same way", got, "measure both again with one stamp")
    return old.value - new.value if new.better == "lower" else new.value - old.value


def _check_request(metrics: Sequence[str], real_a: Tensor, real_b: Tensor, fake: Tensor) -> None:
    if isinstance(metrics, str) or len(metrics) == 0:
        raise UserError("metrics", "be a list of names", repr(metrics), f"choose from {', '.join(METRICS)}")
    for metric in metrics:
        if metric not in METRICS:
            raise unknown("metric", metric, METRICS)
    shapes = {tuple(tensor.shape[1:]) for tensor in (real_a, real_b, fake)}
    if len(shapes) > 1:
        got = ", ".join("x".join(map(str, shape)) for shape in sorted(shapes))
        raise UserError("real and fake samples", "have one shape", got, "read the reals at the run's resolution")
    if len(real_b) != len(fake):
        got = f"{len(real_b)} and {len(fake)}"
        raise UserError(
            "the second real half and the fakes", "hold equally many samples", got, "cut both to one number"
        )
    smallest = max(2 * NEIGHBOURS, 4)
    if min(len(real_a), len(fake)) < smallest:
        got = f"{len(real_a)} and {len(fake)}"
        raise UserError("real and fake samples", f"number at least {smallest} each", got, "measure more images")


def _images_hash(*parts: Tensor) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
