"""Evaluating a run: which real images, through which features, beside which floor; writes and charts the result."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ganscale.config import DataConfig, override
from ganscale.data import keyed, open_dataset
from ganscale.data.dataset import Dataset
from ganscale.errors import UserError, unknown
from ganscale.files import replace_text
from ganscale.metrics import METRICS, MetricValue, TrainingSet, gaussian_grid_report, in_domain_classifier, measure
from ganscale.runtime.run import Networks, untrained_networks
from ganscale.training.checkpoint import checkpoint_name

if TYPE_CHECKING:
    from ganscale.runtime.run import Run

SEED = 0  # of the fakes, the choice of reals and the subsets; stamped on every value
POINTS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What was measured: name -> value with its spread, floor and stamp; ``untrained``: of the first weights."""

    run: str
    images: int
    path: Path
    values: dict[str, MetricValue]
    untrained: dict[str, MetricValue] | None = None

    def ratio(self, name: str) -> float:
        """Return the value of ``name`` over the untrained generator's; raises UserError where that was not measured."""
        if self.untrained is None:
            raise UserError("the untrained generator", "have been measured", "not", "evaluate with untrained=True")
        return self.values[name].value / self.untrained[name].value


def evaluate_run(
    run: Run, *, num: int | None, metrics: Sequence[str] | None, data: str | None, untrained: bool
) -> Evaluation:
    """Do what ``Run.evaluate`` says."""
    source = override(run.config, {"data.path": data}).data if data else run.config.data
    dataset = open_dataset(source, split="train")
    shape = (run.config.data.channels, *run.config.data.resolution)
    if dataset.kind == "image" and tuple(dataset.shape) != shape:
        got = "x".join(map(str, dataset.shape))
        raise UserError("--data", f"hold images of {'x'.join(map(str, shape))}", got, "evaluate on the run's own data")
    points = dataset.kind == "points"
    networks = run.networks  # first: a damaged checkpoint is refused before a classifier is trained
    judge = _judge_of_points(dataset, num) if points else _judge_of_images(run, source, dataset, num, metrics)
    values = judge(networks)
    first = judge(untrained_networks(run.config)) if untrained else None
    path = run.path / "evaluations" / f"{checkpoint_name(networks.images)}.json"
    found = Evaluation(run=run.name, images=networks.images, path=path, values=values, untrained=first)
    _write(found)
    _chart(run.path, found)
    return found


Judge = Callable[[Networks], dict[str, MetricValue]]


def _judge_of_images(
    run: Run, source: DataConfig, dataset: Dataset, num: int | None, metrics: Sequence[str] | None
) -> Judge:
    names = tuple(metrics or run.config.evaluate.metrics)
    for name in names:
        if name not in METRICS:
            raise unknown("metric", name, METRICS)
    half = len(dataset) // 2
    wanted = num or min(run.config.evaluate.num, half)
    if wanted > half:
        remedy = f"use --num {half}, as value and floor need two halves of the {len(dataset)} real images"
        raise UserError("--num", f"be at most {half}", wanted, remedy)
    chosen = keyed.keyed_permutation(len(dataset), SEED, purpose="evaluate")[: 2 * wanted]
    real_a, real_b = (dataset.read(np.sort(part))[0] for part in (chosen[:wanted], chosen[wanted:]))
    extractor = in_domain_classifier(dataset.fingerprint, lambda: _training_set(source, dataset))
    reference = {"data": dataset.name, "split": dataset.split, "fingerprint": dataset.fingerprint}

    def judge(networks: Networks) -> dict[str, MetricValue]:
        fake = torch.from_numpy(networks.draw(wanted, seed=SEED, purpose="evaluate"))
        subject = {"run": run.name, "images": str(networks.images)}
        return measure(extractor, real_a, real_b, fake, metrics=names, seed=SEED, reference=reference, subject=subject)

    return judge


def _training_set(source: DataConfig, dataset: Dataset) -> TrainingSet:
    held = open_dataset(source, split="held-out")
    return TrainingSet(*dataset.read(np.arange(len(dataset))), *held.read(np.arange(len(held))))


def _judge_of_points(dataset: Any, num: int | None) -> Judge:
    wanted = num or POINTS
    centers = torch.from_numpy(dataset.centers)
    reals = torch.from_numpy(dataset.to_units(dataset.read(np.arange(min(wanted, len(dataset))))[0].numpy()))
    real = gaussian_grid_report(reals, centers, dataset.sigma)
    stamp = {
        "extractor": "none (points of the plane)",
        "data": dataset.name,
        "split": dataset.split,
        "sigma": str(dataset.sigma),
        "n_fake": str(wanted),
        "n_real": str(len(reals)),
        "seed": str(SEED),
    }

    def judge(networks: Networks) -> dict[str, MetricValue]:
        points = dataset.to_units(networks.draw(wanted, seed=SEED, purpose="evaluate"))
        fake = gaussian_grid_report(torch.from_numpy(points), centers, dataset.sigma)
        rows = {
            "modes hit": (fake.modes_hit, real.modes_hit, "higher", f"of {fake.modes}"),
            "within 4 sigma": (fake.high_quality, real.high_quality, "higher", "share"),
            "spread": (fake.spread, real.spread, "lower", "sigma; 1 is perfect"),
            "worst spread": (fake.worst_spread, real.worst_spread, "lower", "sigma; 1 is perfect"),
        }
        return {
            name: MetricValue(
                name=name, value=float(value), spread=None, floor=float(floor), better=better, unit=unit, stamp=stamp
            )
            for name, (value, floor, better, unit) in rows.items()
        }

    return judge


def _write(found: Evaluation) -> None:
    page = {
        "run": found.run,
        "images": found.images,
        "values": _plain(found.values),
        "untrained": None if found.untrained is None else _plain(found.untrained),
    }
    found.path.parent.mkdir(exist_ok=True)
    replace_text(found.path, json.dumps(page, indent=2, allow_nan=False) + "\n")


def _plain(values: Mapping[str, MetricValue]) -> dict[str, Any]:
    return {name: value.to_json() for name, value in values.items()}


def _chart(run_dir: Path, found: Evaluation) -> None:
    from ganscale.dashboards import TensorBoardSink

    with TensorBoardSink(run_dir / "tensorboard") as board:
        board.write_metrics(found.values, found.images)
