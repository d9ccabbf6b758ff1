"""The trainer under Ray Train: a worker loop of a few lines, the failure gate, and ``fit`` in a side thread.

Ray Train owns the workers: placement, start, restart. The trainer inside knows nothing of it. Checkpoints are ours, in
the run directory; Ray gets a pointer a tick, and a restarted group asks the directory, not Ray, where to go on.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import LoggingConfig

from ganscale.config import from_mapping
from ganscale.dashboards import TensorBoardSink
from ganscale.errors import GanscaleError, RunFailed
from ganscale.runtime.failures import reason_to_stop, signature
from ganscale.runtime.launcher import SCRATCH, STOP_FLAG
from ganscale.runtime.placement import Plan
from ganscale.training import checkpoint as checkpoints
from ganscale.training.process_group import torch_group
from ganscale.training.records import Record, TickRecord
from ganscale.training.trainer import train

STARTED_FLAG = "started"
EXCHANGE_TIMEOUT_S = 300
FAILURES_BACKSTOP = 50  # the gate decides; Ray's counters never reset, so they only bound the life of a run


class RaySink:
    """Passes records on to ``inner`` (on rank 0) and reports a pointer to Ray Train, on every rank, once a tick."""

    def __init__(self, inner: TensorBoardSink | None) -> None:
        self._inner = inner

    def write(self, record: Record) -> None:
        """Take one record."""
        if self._inner is not None:
            self._inner.write(record)
        if isinstance(record, TickRecord):
            ray.train.report({"images": record.images, "checkpoint": record.checkpoint or ""})


class FailureGate(ray.train.UserCallback):
    """Judges every failure of the group in Ray's controller; what it raises ends the run at once."""

    def __init__(self) -> None:
        self.failures, self.checkpoint, self.last = 0, "", None

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Forget past failures once there is a newer checkpoint; a tick that is redone is no progress."""
        if metrics[0]["checkpoint"] > self.checkpoint:
            self.failures, self.checkpoint, self.last = 0, metrics[0]["checkpoint"], None

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise where starting the group again would be in vain."""
        self.failures += 1
        if reason := reason_to_stop(worker_exceptions, self.failures, self.last):
            raise reason
        self.last = signature(worker_exceptions)


def worker_loop(settings: dict[str, Any]) -> dict[str, Any]:
    """Train as one rank; every rank runs this alike, at the start and after each restart of the group."""
    config, run_dir = from_mapping(settings["config"]), Path(settings["run_dir"])
    torch.set_num_threads(settings["threads"])
    device = "cpu"
    if settings["device"] == "cuda" and torch.cuda.is_available():
        device = ray.train.torch.get_device()  # all GPUs of the node are visible; this one is ours
        torch.cuda.set_device(device)
    group = torch_group(device)
    # the newest one that verifies is the truth, whatever Ray remembers
    resume_from = group.broadcast_object(checkpoints.newest_good(run_dir)[0] if group.is_main else None)
    scratch = run_dir / SCRATCH
    with ExitStack() as stack:
        board = None
        if group.is_main:
            (scratch / STARTED_FLAG).touch()
            purge = None if resume_from is None else checkpoints.verify(resume_from)["images"]
            board = stack.enter_context(TensorBoardSink(run_dir / "tensorboard", purge_images=purge))
        flag = scratch / STOP_FLAG
        result = train(
            config, run_dir, group=group, sink=RaySink(board), should_stop=flag.exists, resume_from=resume_from
        )
    return {"images": result.images, "stopped": result.stopped}


class _Trainer(TorchTrainer):
    """Without the detached actor that tidies up after a dead controller: one process fewer to start.

    A local Ray ends with the run, and a controller on a cluster takes its placement group with it when its job ends.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ != "PlacementGroupCleanerCallback"]


def train_with_ray(config: Any, run_dir: Path, plan: Plan, *, check: Callable[[], None]) -> dict[str, Any]:
    """Train ``config`` into ``run_dir`` on ``plan``; Ray must be connected. Returns ``{"images", "stopped"}``.

    ``check`` is called a few times a second from this thread, and may raise to give up. Raises the workers' own errors
    where they are ours, else RunFailed in one line.
    """
    scratch = run_dir / SCRATCH
    trainer = _Trainer(
        worker_loop,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "run_dir": str(run_dir),
            "threads": plan.threads,
            "device": plan.device,
        },
        torch_config=TorchConfig(backend=plan.backend, timeout_s=EXCHANGE_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=plan.workers, use_gpu=plan.device == "cuda", resources_per_worker=plan.ray_resources
        ),
        run_config=RunConfig(
            name=f"{run_dir.name}-{uuid.uuid4().hex[:8]}",  # a name used twice would silently resume Ray's state
            storage_path=str(scratch),
            callbacks=[FailureGate()],
            failure_config=FailureConfig(max_failures=FAILURES_BACKSTOP, controller_failure_limit=10),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    deadline = time.monotonic() + config.runtime.max_wait_s
    outcome: list[Any] = []
    thread = threading.Thread(target=_fit, args=(trainer, outcome), name="ray_fit", daemon=True)
    thread.start()  # in the main thread fit() would take over SIGINT
    while thread.is_alive():
        thread.join(0.1)
        check()
        if time.monotonic() > deadline and not (scratch / STARTED_FLAG).exists():
            raise RunFailed(_nobody_came(plan, config.runtime.max_wait_s))
    if isinstance(outcome[0], BaseException):
        raise translate(outcome[0], run_dir) from None
    return outcome[0]


def _fit(trainer: TorchTrainer, outcome: list[Any]) -> None:
    try:
        outcome.append(trainer.fit().return_value)
    except BaseException as error:
        outcome.append(error)


def _nobody_came(plan: Plan, waited_s: float) -> str:
    free = ray.available_resources()
    have = f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs free on {plan.where}"
    needs = " and ".join(f"{count:g} {kind}s" for kind, count in plan.ray_resources.items())
    return (
        f"the {plan.workers} workers did not start within {waited_s:g} s: each needs {needs}, {have}; "
        "use fewer workers or raise runtime.max_wait_s"
    )


def translate(error: BaseException, run_dir: Path) -> BaseException:
    """Return the error to show for what ``fit`` raised: the workers' own where it is one of ours, else RunFailed."""
    inner = getattr(error, "controller_failure", None)
    candidates = [inner, *getattr(error, "worker_failures", {}).values(), error]
    for candidate in candidates:
        while candidate is not None:
            if isinstance(candidate, GanscaleError):
                return candidate
            candidate = candidate.__cause__
    words = str(inner or error).strip().splitlines()
    saved = checkpoints.newest_good(run_dir)[0]
    way_on = (
        f"saved up to {saved.name}; go on with ganscale launch --resume {run_dir}" if saved else "nothing was saved yet"
    )
    return RunFailed(f"Ray gave up: {words[-1] if words else type(error).__name__}; {way_on}; --verbose shows its logs")
