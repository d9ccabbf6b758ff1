"""One trial of a sweep, in a process of Ray Tune's: an ordinary run, trained from score to score by resuming it.

The run directory is the truth. A trial that is started again goes on from its newest checkpoint, and repeats the scores
that the sweep has written down without training for them. In population-based training Tune hands over the name of a
better trial, of which a checkpoint is copied, verified, and becomes this run's newest.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ganscale.config import RunConfig, override
from ganscale.errors import CheckpointError, GanscaleError, RunFailed
from ganscale.files import new_directory, remove_directory
from ganscale.progress import images_of as checkpoint_images
from ganscale.runtime.evaluation import Judge, build_judge, evaluate_with
from ganscale.runtime.launcher import launch
from ganscale.runtime.run import Run
from ganscale.runtime.sweep import Sweep, Trial
from ganscale.runtime.sweep_space import WHILE_TRAINING
from ganscale.training import checkpoint as checkpoints
from ganscale.training.retention import discard_evaluations, score_name

Report = Callable[[dict[str, Any]], None]
TRIES = 5  # of a copy from a run that trains, and may delete what is being copied


def run_trial(sweep: Sweep, trial: Trial, settings: dict[str, Any], donor: str | None, report: Report) -> None:
    """Train and score ``trial`` with ``settings`` until its last milestone, or until Tune ends this.

    ``donor`` names the trial to go on from: this one, or a better one. Tune may end a trial that has trained on and not
    told its score yet: it is told then. A failure of the run is reported as the worst score, and why.
    """
    config = sweep.run_config(settings)
    run_dir = sweep.path / trial.name
    if sweep.scheduler == "asha":
        for score in trial.scores:
            report({"images": score["images"], "score": score["value"], "again": True})
        if trial.is_over:
            return
    scored, copied_from = trial.images, None
    if donor is not None and donor != trial.name:
        adopted = adopt(run_dir, sweep.path / donor, before=sweep.milestones[-1])
        if adopted is not None:
            scored, copied_from = adopted, donor
    worst = math.inf if sweep.better == "lower" else -math.inf
    judge = None
    for goal in sweep.milestones:
        if goal <= scored:
            continue
        try:
            run = train_to(config, run_dir, goal, cpus=sweep.cpus, gpus=sweep.gpus)
            judge = judge or build_judge(config, run.name)
            value = _score(run, judge, sweep.objective)
        except GanscaleError as error:
            report({"images": goal, "score": worst, "failed": str(error), "copied_from": copied_from})
            return
        scored = run.networks.images
        report({"images": scored, "score": value, "copied_from": copied_from})
        copied_from = None


def images_of(run_dir: Path) -> int:
    """Return how far the run has been saved."""
    newest = checkpoints.newest_good(run_dir)[0]
    return 0 if newest is None else checkpoint_images(newest.name)


def train_to(config: RunConfig, run_dir: Path, images: int, *, cpus: int, gpus: int) -> Run:
    """Train the run in ``run_dir``, new or not, until it has seen ``images``, and return it."""
    if images_of(run_dir) < images:
        is_new = not (run_dir / "config.json").exists() or images_of(run_dir) == 0
        if is_new:
            shutil.rmtree(run_dir, ignore_errors=True)  # ended before its first checkpoint
        launch(
            override(config, {"train.kimg": images / 1000}),
            name=run_dir.name if is_new else None,
            runs_dir=run_dir.parent,
            workers=0,
            cpus=None if gpus else cpus,
            gpus=1 if gpus else None,
            resume=None if is_new else run_dir,
            may_change=WHILE_TRAINING,
        )
    return Run(run_dir)


def adopt(run_dir: Path, donor_dir: Path, *, before: int) -> int | None:
    """Make a copy of the newest checkpoint of ``donor_dir`` the newest one of ``run_dir``; return its images, or None.

    It is from ``before`` so many images, so that a donor which has come to its end meanwhile leaves something to train
    with the changed settings. Raises CheckpointError where it does not verify.
    """
    for tries_left in reversed(range(TRIES)):
        there = [path for path in checkpoints.names(donor_dir / "checkpoints") if checkpoint_images(path.name) < before]
        if not there:
            return None
        source = there[-1]
        try:
            with new_directory(run_dir / "checkpoints" / source.name) as aside:
                for file in source.iterdir():
                    shutil.copyfile(file, aside / file.name)
                checkpoints.verify(aside)
            break
        except (FileNotFoundError, CheckpointError):
            if not tries_left:
                raise
    for path in checkpoints.names(run_dir / "checkpoints"):
        if path.name > source.name:
            remove_directory(path)
    discard_evaluations(run_dir, source.name)
    (run_dir / "evaluations" / f"{source.name}.json").unlink(missing_ok=True)  # of what was there before
    return checkpoint_images(source.name)


def _score(run: Run, judge: Judge, objective: str) -> float:
    values = evaluate_with(run, judge).values
    value = next(value.value for name, value in values.items() if score_name(name) == objective)
    if not math.isfinite(value):
        raise RunFailed(f"{objective} must be finite, got {value}")
    return value
