"""A sweep under Ray Tune: what Tune is asked for, and what becomes of what it says."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.tune

from ganscale.runtime.stopping import SCRATCH, STOP_FLAG
from ganscale.runtime.sweep import DONE, FAILED, STOPPED, WAITING, Sweep, Trial, read_sweep
from ganscale.runtime.sweep_space import Param, parse_param
from ganscale.runtime.tune import FACTOR, restart

SETTINGS = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}  # no loggers of Tune's own
POINTER = "trial"
RETRIES = 1  # of a trial whose process is lost; what fails by itself is not tried again


class Left(Exception):
    """Somebody wants to stop."""


def fit(
    sweep: Sweep,
    on_score: Callable[[Sweep, Trial], None] | None,
    failure: list[BaseException],
) -> None:
    """Run the trials of ``sweep`` that are not over, until all are or its stop flag is there.

    What goes wrong with Tune itself is put into ``failure``.
    """
    before = {name: os.environ.get(name) for name in SETTINGS}
    os.environ.update(SETTINGS)
    try:
        _tuner(sweep, _Record(sweep, on_score)).fit()
    except BaseException as error:
        failure.append(error)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _tuner(sweep: Sweep, record: _Record) -> ray.tune.Tuner:
    params = [parse_param(f"{key}={text}") for key, text in sweep.params.items()]
    settings = [trial.settings for trial in sweep.trials]
    draw = {p.key: ray.tune.sample_from(lambda spec, key=p.key: settings[spec.config.trial][key]) for p in params}
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(_trial, path=sweep.path), {"cpu": sweep.cpus, "gpu": sweep.gpus}
    )
    return ray.tune.Tuner(
        trainable,
        param_space={"trial": ray.tune.grid_search(restart(sweep)), **draw},
        tune_config=ray.tune.TuneConfig(
            metric="score",
            mode="min" if sweep.better == "lower" else "max",
            scheduler=_scheduler(sweep, params),
            # trials of a population take turns, for which Tune has to know them all; a Ray of ours has so many places
            max_concurrent_trials=sweep.at_once if sweep.scheduler == "asha" else None,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=ray.tune.RunConfig(
            name="tune",
            storage_path=str(sweep.path / SCRATCH),
            verbose=0,
            callbacks=[record],
            failure_config=ray.tune.FailureConfig(max_failures=RETRIES),
        ),
    )


def _name(trial: Any) -> str:
    return f"trial-{trial.config['trial']:03d}"


def _scheduler(sweep: Sweep, params: list[Param]) -> Any:
    if sweep.scheduler == "asha":
        from ray.tune.schedulers import AsyncHyperBandScheduler

        return AsyncHyperBandScheduler(
            time_attr="images",
            max_t=sweep.milestones[-1],
            grace_period=sweep.milestones[0],
            reduction_factor=FACTOR,
        )
    from ray.tune.schedulers import PopulationBasedTraining

    def clamped(config: dict[str, Any]) -> dict[str, Any]:
        return config | {param.key: param.clamp(config[param.key]) for param in params}

    return PopulationBasedTraining(
        time_attr="images",
        perturbation_interval=sweep.milestones[0],
        hyperparam_mutations={param.key: _mutation(param) for param in params},
        custom_explore_fn=clamped,
        log_config=False,
    )


def _mutation(param: Param) -> Any:
    if param.kind == "choice":
        return list(param.choices)
    if param.kind == "int":
        return ray.tune.randint(int(param.low), int(param.high) + 1)
    return (ray.tune.loguniform if param.kind == "log" else ray.tune.uniform)(param.low, param.high)


def _trial(config: dict[str, Any], path: Path) -> None:
    """Run one trial, in a process of Tune's. What it is called tells who it is: a copied config is its donor's.

    Tune's checkpoint of a trial is its name and no more. The real one is in its run directory.
    """
    from ganscale.runtime.sweep_trial import run_trial

    name = ray.tune.get_context().get_trial_name()
    sweep = read_sweep(path)  # as it stands: this may be a new process in place of one that was lost
    trial = next(trial for trial in sweep.trials if trial.name == name)
    # Tune knows what is varied; a seed that a trial has beside that stays its own
    settings = trial.settings | {key: value for key, value in config.items() if key != "trial"}
    pointer = ray.tune.get_checkpoint()
    donor = None
    if pointer is not None:
        with pointer.as_directory() as folder:
            donor = (Path(folder) / POINTER).read_text()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / POINTER).write_text(name)

        def report(found: dict[str, Any]) -> None:
            checkpoint = ray.tune.Checkpoint.from_directory(folder) if sweep.scheduler == "pbt" else None
            ray.tune.report({**found, "settings": settings}, checkpoint=checkpoint)

        run_trial(sweep, trial, settings, donor, report)


class _Record(ray.tune.Callback):
    """Writes what Tune says of trials into ``sweep.json``."""

    def __init__(self, sweep: Sweep, on_score: Callable[[Sweep, Trial], None] | None) -> None:
        self._sweep, self._on_score = sweep, on_score
        self._flag = sweep.path / SCRATCH / STOP_FLAG  # a file, as Tune makes copies of its callbacks

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        """End Tune where somebody wants to: left alone without its Ray, it would connect to any other."""
        if self._flag.exists():
            raise Left

    def _find(self, trial: Any) -> Trial:
        return next(mine for mine in self._sweep.trials if mine.name == str(trial))

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Write down a score, unless it is one that was repeated."""
        mine = self._find(trial)
        if result.get("again"):
            return
        mine.settings = dict(result["settings"])
        if result.get("failed"):
            mine.state, mine.words = FAILED, result["failed"]
        else:
            assert math.isfinite(result["score"])
            mine.state, mine.words = WAITING, ""  # one that failed may have copied another
            score = {"images": result["images"], "value": result["score"], "settings": mine.settings}
            mine.scores.append(score | {"copied_from": result.get("copied_from")})
        self._sweep.write()
        if self._on_score is not None:
            self._on_score(self._sweep, mine)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Write down that a trial has come to its end, or was stopped before it."""
        mine = self._find(trial)
        if not mine.is_over:
            mine.state = DONE if mine.images >= self._sweep.milestones[-1] else STOPPED
            self._sweep.write()

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Write down why a trial has failed for good."""
        mine = self._find(trial)
        lines = str(trial.get_error() or "its process was lost").strip().splitlines()
        mine.state, mine.words = FAILED, lines[-1]
        self._sweep.write()
