"""Evaluating a run: which real images, through which features, beside which floor; writes and charts the result."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ganscale.config import DataConfig, RunConfig, override
from ganscale.data import keyed, open_dataset
from ganscale.data.dataset import Dataset
from ganscale.errors import UserError, unknown
from ganscale.files import replace_text
from ganscale.metrics import EXTRACTORS, METRICS, MetricValue, Reference, TrainingSet, gaussian_grid_report
from ganscale.progress import checkpoint_name
from ganscale.runtime.run import Networks, untrained_networks
from ganscale.runtime.threads import one_thread

if TYPE_CHECKING:
    from ganscale.dashboards import TensorBoardSink
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
    run.networks  # noqa: B018  a damaged checkpoint is refused before a classifier is trained
    judge = build_judge(run.config, run.name, num=num, metrics=metrics, data=data)
    return evaluate_with(run, judge, untrained=untrained)


def evaluate_with(run: Run, judge: Judge, *, untrained: bool = False) -> Evaluation:
    """Measure the checkpoint of ``run`` with its ``judge``; writes evaluations/ and TensorBoard."""
    first = judge(untrained_networks(run.config)) if untrained else None
    found = keep(run, run.networks, judge(run.networks), untrained=first)
    with evaluation_board(run.path) as board:
        board.write_metrics(found.values, found.images)
    return found


def build_judge(
    config: RunConfig,
    name: str,
    *,
    num: int | None = None,
    metrics: Sequence[str] | None = None,
    data: str | None = None,
) -> Judge:
    """Return the function that measures networks of the run ``name``; the reals are read and looked at here, once.

    Its numbers are the same bits wherever it is called. Raises UserError for what cannot be measured.
    """
    source = override(config, {"data.path": data}).data if data else config.data
    dataset = open_dataset(source, split="train")
    shape = (config.data.channels, *config.data.resolution)
    if dataset.kind == "image" and tuple(dataset.shape) != shape:
        got = "x".join(map(str, dataset.shape))
        raise UserError("--data", f"hold images of {'x'.join(map(str, shape))}", got, "evaluate on the run's own data")
    with one_thread():
        if dataset.kind == "points":
            judge = _judge_of_points(dataset, num)
        else:
            judge = _judge_of_images(config, name, source, dataset, num, metrics)

    def measure(networks: Networks) -> dict[str, MetricValue]:
        with one_thread():
            return judge(networks)

    return measure


Judge = Callable[[Networks], dict[str, MetricValue]]


def _judge_of_images(
    config: RunConfig, run: str, source: DataConfig, dataset: Dataset, num: int | None, metrics: Sequence[str] | None
) -> Judge:
    names = tuple(metrics or config.evaluate.metrics)
    for name in names:
        if name not in METRICS:
            raise unknown("metric", name, METRICS)
    half = len(dataset) // 2
    wanted = num or min(config.evaluate.num, half)
    if wanted > half:
        remedy = f"use --num {half}, as value and floor need two halves of the {len(dataset)} real images"
        raise UserError("--num", f"be at most {half}", wanted, remedy)
    chosen = keyed.keyed_permutation(len(dataset), SEED, purpose="evaluate")[: 2 * wanted]
    real_a, real_b = (dataset.read(np.sort(part))[0] for part in (chosen[:wanted], chosen[wanted:]))
    extractor = EXTRACTORS[config.evaluate.extractor](dataset.fingerprint, lambda: _training_set(source, dataset))
    named = {"data": dataset.name, "split": dataset.split, "fingerprint": dataset.fingerprint}
    reference = Reference(extractor, real_a, real_b, reference=named)

    def judge(networks: Networks) -> dict[str, MetricValue]:
        fake = torch.from_numpy(networks.draw(wanted, seed=SEED, purpose="evaluate"))
        subject = {"run": run, "images": str(networks.images)}
        return reference.measure(fake, metrics=names, seed=SEED, subject=subject)

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


def keep(
    run: Run, networks: Networks, values: dict[str, MetricValue], *, untrained: dict[str, MetricValue] | None = None
) -> Evaluation:
    """Write ``evaluations/kimg-*.json``, whole or not at all, and return what it says.

    What was measured of the first weights before stays, where it was measured in the same way.
    """
    path = evaluation_path(run.path, networks.images)
    untrained = untrained or _untrained_before(path, values)
    page = {
        "run": run.name,
        "images": networks.images,
        "values": _plain(values),
        "untrained": None if untrained is None else _plain(untrained),
    }
    path.parent.mkdir(exist_ok=True)
    replace_text(path, json.dumps(page, indent=2, allow_nan=False) + "\n")
    return Evaluation(run=run.name, images=networks.images, path=path, values=values, untrained=untrained)


def _untrained_before(path: Path, values: dict[str, MetricValue]) -> dict[str, MetricValue] | None:
    """Return what ``path`` says of the first weights, if it holds all of ``values``, stamped alike.

    None as well where the page cannot be read: it is about to be replaced.
    """
    try:
        before = json.loads(path.read_text())["untrained"] or {}
        found = {name: MetricValue(**(before[name] | _numbers(before[name]))) for name in values}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if all(found[name].stamp == value.stamp for name, value in values.items()) else None


def _numbers(plain: dict[str, Any]) -> dict[str, float]:
    """Return what JSON cannot hold: a number that was not finite."""
    return {key: math.nan for key in ("value", "floor") if plain[key] is None}


def evaluation_path(run_dir: Path, images: int) -> Path:
    """Return where the evaluation of the checkpoint at ``images`` is kept."""
    return run_dir / "evaluations" / f"{checkpoint_name(images)}.json"


def evaluation_board(run_dir: Path) -> TensorBoardSink:
    """Return the board of what is found out about a run, in a folder of its own beside the trainer's events.

    A plain TensorBoard follows one file a folder, and would leave the trainer's for a newer one.
    """
    from ganscale.dashboards import TensorBoardSink

    return TensorBoardSink(run_dir / "tensorboard" / "evaluation")


def _plain(values: Mapping[str, MetricValue]) -> dict[str, Any]:
    return {name: value.to_json() for name, value in values.items()}
