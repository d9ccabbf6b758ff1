"""``tune``: a sweep over configuration keys by Ray Tune. Each trial is an ordinary run; ``sweep.json`` keeps the whole.

Ray Tune places the trials and decides which ones go on (ASHA, Li et al. 2020, arXiv:1810.05934) or copy a better one
(population-based training, Jaderberg et al. 2017, arXiv:1711.09846). Nothing of it is needed to go on after the driver
has died: the run directories and ``sweep.json`` are the truth, and Tune's own state is scratch.
"""

from __future__ import annotations

import contextlib
import datetime
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ganscale.config import RunConfig, override
from ganscale.errors import ConfigError, Interrupted, ResourceError, RunFailed, UserError, unknown
from ganscale.progress import to_images
from ganscale.runtime.placement import Resources
from ganscale.runtime.planner import check_disk, find_resources, new_run_dir, refuse_existing
from ganscale.runtime.run_lock import RunLock, is_ours
from ganscale.runtime.stopping import SCRATCH, stop_signals
from ganscale.runtime.storage import is_uri
from ganscale.runtime.sweep import OBJECTIVES, OF_POINTS, WAITING, Sweep, Trial, read_sweep, trial_name
from ganscale.runtime.sweep_space import SEED, Param, check_params, combinations, draw_trials, milestones, parse_param

TRIALS = 8  # by default, where a key is drawn from an interval
FACTOR = 3  # asha: one of three goes on, thrice as far
SCHEDULERS = ("asha", "pbt")
FAMILIES = {"fd": "fd", "kd": "kd"}  # objective -> metric; the others come from prdc
LEAVE_S = 30.0  # for Tune to end where it is asked to
FIRST = {"asha": 9, "pbt": 10}  # the first score after this share of the length

OnScore = Callable[[Sweep, Trial], None]


def tune(
    config: RunConfig,
    params: Sequence[str] = (),
    *,
    trials: int | None = None,
    scheduler: str = "asha",
    every_kimg: float | None = None,
    objective: str | None = None,
    workers: int | None = None,
    name: str | None = None,
    runs_dir: str | Path = "runs",
    address: str | None = None,
    on_start: Callable[[Sweep], None] | None = None,
    on_score: OnScore | None = None,
    verbose: bool = False,
) -> Sweep:
    """Try ``trials`` variants of ``config`` and return the finished sweep.

    By default there are as many trials as combinations where every key has a few values, else 8. A combination that
    comes again is trained with another ``train.seed``.
    ``params`` are written as ``--param`` takes them (``"optim.critic.lr=log:1e-5:1e-3"``). ``scheduler`` is ``asha`` or
    ``pbt``, ``every_kimg`` when a trial is first scored (pbt: each time),
    ``objective`` a score of ``ganscale evaluate``, ``fd:min`` where the direction is to be said. ``workers`` trials
    train at a time, one worker each. Raises the UserError family before anything is started or written, RunFailed where
    no trial could be scored, Interrupted.
    """
    address = address or config.runtime.address
    sweep = plan_sweep(
        override(config, {"runtime.address": address}),
        params,
        trials=trials,
        scheduler=scheduler,
        every_kimg=every_kimg,
        objective=objective,
        workers=workers,
        name=name,
        runs_dir=runs_dir,
        resources=find_resources(address),
    )
    return _carry_out(sweep, on_start, on_score, verbose, is_new=True)


def resume_sweep(
    path: str | Path,
    *,
    on_start: Callable[[Sweep], None] | None = None,
    on_score: OnScore | None = None,
    verbose: bool = False,
) -> Sweep:
    """Go on with the sweep in the folder ``path``: nothing that was scored is trained again."""
    return _carry_out(read_sweep(Path(path)), on_start, on_score, verbose, is_new=False)


def plan_sweep(
    config: RunConfig,
    params: Sequence[str],
    *,
    trials: int | None,
    scheduler: str,
    every_kimg: float | None,
    objective: str | None,
    workers: int | None,
    name: str | None,
    runs_dir: str | Path,
    resources: Resources,
) -> Sweep:
    """Return the sweep to be, checked as far as can be without training; writes nothing."""
    from ganscale.runtime.launcher import with_absolute_data

    if scheduler not in SCHEDULERS:
        raise unknown("--scheduler", scheduler, SCHEDULERS)
    if is_uri(runs_dir):
        raise UserError(
            "--runs-dir", "be a folder, as trials meet there", str(runs_dir), "copy the best run afterwards"
        )
    config = with_absolute_data(config)
    parsed = [parse_param(text) for text in params]
    trials = _number(parsed, trials, scheduler)
    check_params(config, parsed, while_training=scheduler == "pbt")
    chosen, better = _objective(config, objective)
    total = to_images(config.train.kimg)
    first = total // FIRST[scheduler] if every_kimg is None else to_images(every_kimg)
    if every_kimg is None and first < config.train.batch:
        least = FIRST[scheduler] * config.train.batch / 1000
        rule = f"be at least {least:g}: a trial is first scored after a {'ninth' if scheduler == 'asha' else 'tenth'}"
        raise UserError("--kimg", f"{rule} of it, a batch or more", config.train.kimg, "or give --every")
    if not config.train.batch <= first <= total:
        rule = f"be from {config.train.batch / 1000:g} (a batch) to {total / 1000:g} (the length of a trial)"
        raise UserError("--every", rule, first / 1000, "raise --kimg, or give another --every")
    at_once, cpus, gpus = _share(resources, trials, workers)
    drawn = draw_trials(parsed, trials, config.train.seed)
    for settings in drawn:
        override(config, settings)  # combinations, which the ends alone do not show
    shown = config.model_copy(update={"preset": f"sweep-{config.preset}"})
    return Sweep(
        path=new_run_dir(shown, runs_dir, name),
        config=_without_cadences(config, chosen),
        params={param.key: param.text for param in parsed},
        scheduler=scheduler,
        objective=chosen,
        better=better,
        milestones=milestones(total, first, scheduler=scheduler, factor=FACTOR, batch=config.train.batch),
        cpus=cpus,
        gpus=gpus,
        at_once=at_once,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        trials=[Trial(name=trial_name(k), settings=settings) for k, settings in enumerate(drawn)],
    )


def _number(params: Sequence[Param], trials: int | None, scheduler: str) -> int:
    """Return how many trials there are to be."""
    there = combinations(params)
    if trials is None:
        return there or TRIALS
    if trials < (2 if scheduler == "pbt" else 1):
        rule = "be at least 2, as trials copy each other" if scheduler == "pbt" else "be at least 1"
        raise UserError("--trials", rule, trials, f"use --trials {there or TRIALS}")
    if there and trials > there and any(param.key == SEED for param in params):
        rule = f"be at most {there}, the combinations, where {SEED} is varied: more would train the same again"
        raise UserError("--trials", rule, trials, f"use --trials {there}, or give more values")
    return trials


def _objective(config: RunConfig, asked: str | None) -> tuple[str, str]:
    """Return the name of the score and which way is better."""
    points = config.data.channels == 2
    name, colon, direction = (asked or ("within-4-sigma" if points else "fd")).partition(":")
    measured = [other for other in OBJECTIVES if (other in OF_POINTS) == points]
    if name not in measured:
        raise unknown("--objective", name, measured)
    if colon and direction not in ("min", "max"):
        raise UserError("--objective", "end in :min or :max", asked, f"use {name}:min or {name}:max")
    return name, {"min": "lower", "max": "higher"}.get(direction, OBJECTIVES[name])


def _share(resources: Resources, trials: int, workers: int | None) -> tuple[int, int, int]:
    """Return how many trials train at a time, and the cores and GPUs of each."""
    seats = resources.gpus or resources.cpus
    at_once = min(trials, seats) if workers is None else workers
    if not 1 <= at_once <= seats:
        kind = "GPUs" if resources.gpus else "CPU cores"
        rule = f"be from 1 to {seats}, the {kind} of {resources.where}: each trial is one worker"
        raise ResourceError("--workers", rule, at_once, f"use --workers {seats}")
    return min(at_once, trials), max(1, resources.cpus // at_once), int(bool(resources.gpus))


def _without_cadences(config: RunConfig, objective: str) -> RunConfig:
    """Return the config of trials: they are scored when the sweep says, by at least its objective."""
    settings: dict[str, Any] = {"evaluate.every_kimg": None, "explain.every_kimg": None}
    if objective not in OF_POINTS:
        family = FAMILIES.get(objective, "prdc")
        settings["evaluate.metrics"] = list(dict.fromkeys([*config.evaluate.metrics, family]))
    return override(config, settings)


def _carry_out(
    sweep: Sweep,
    on_start: Callable[[Sweep], None] | None,
    on_score: OnScore | None,
    verbose: bool,
    *,
    is_new: bool,
) -> Sweep:
    from ganscale.data import open_dataset
    from ganscale.runtime.estimate import disk_bytes
    from ganscale.runtime.evaluation import build_judge

    if sweep.config.train.cuda_graphs and not sweep.gpus:
        raise ConfigError("train.cuda_graphs", "be false without a GPU", True, "leave it out")
    open_dataset(sweep.config.data, split="train")
    check_disk(sweep.path, len(sweep.trials) * disk_bytes(sweep.config))
    words = f"stopped on request; go on with ganscale tune --resume {sweep.path}"
    with stop_signals(sweep.path, lambda: words) as stop, RunLock(sweep.path) as lock:
        if is_new:
            refuse_existing(sweep.path)
        with _nothing_left_behind(sweep.path, fresh=is_new):
            # trains the network that distances look through, if need be, once for all trials
            build_judge(sweep.config, sweep.path.name)
        stop.guard(lock.check)
        with _scratch(sweep.path):
            stop.begin()
            sweep.write()
            if on_start is not None:
                on_start(sweep)
            if not sweep.is_over:
                _run(sweep, on_score, stop, words, verbose)
    if sweep.best is None:
        raise RunFailed(f"no trial of {sweep.path} could be scored; the last one: {sweep.trials[-1].words}")
    return sweep


def _run(sweep: Sweep, on_score: OnScore | None, stop: Any, words: str, verbose: bool) -> None:
    from ganscale.runtime.local import ray_session

    address = sweep.config.runtime.address
    here = address is None
    cpus, gpus = (sweep.at_once * sweep.cpus, sweep.at_once * sweep.gpus) if here else (None, None)
    with ray_session(address=address, cpus=cpus, gpus=gpus, verbose=verbose, meanwhile="ganscale.runtime.tune_ray"):
        from ganscale.runtime.tune_ray import fit

        failure: list[BaseException] = []
        thread = threading.Thread(target=fit, args=(sweep, on_score, failure), name="ray_fit", daemon=True)
        thread.start()  # in the main thread it would take over SIGINT
        while thread.is_alive():
            thread.join(0.1)
            if stop.is_wanted():
                thread.join(LEAVE_S)  # it sees the flag too
                raise Interrupted(words)
        if failure:
            raise RunFailed(f"Ray Tune gave up: {failure[0]}; go on with ganscale tune --resume {sweep.path}")


@contextlib.contextmanager
def _nothing_left_behind(path: Path, *, fresh: bool) -> Iterator[None]:
    """Delete the folder of a ``fresh`` sweep that was refused in the block."""
    try:
        yield
    except UserError:
        if fresh and is_ours(path):
            shutil.rmtree(path, ignore_errors=True)
        raise


@contextlib.contextmanager
def _scratch(path: Path) -> Iterator[None]:
    shutil.rmtree(path / SCRATCH, ignore_errors=True)
    (path / SCRATCH).mkdir(parents=True)
    try:
        yield
    finally:
        if is_ours(path):  # else another one has it by now
            shutil.rmtree(path / SCRATCH, ignore_errors=True)


def restart(sweep: Sweep) -> list[int]:
    """Return the trials that take part when a sweep begins or goes on: those that are over tell ASHA their scores."""
    everybody = range(len(sweep.trials))
    if sweep.scheduler == "asha":
        return [k for k in everybody if sweep.trials[k].scores or sweep.trials[k].state == WAITING]
    return [k for k in everybody if not sweep.trials[k].is_over]
