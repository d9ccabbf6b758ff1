"""The trainer under Ray Train, from the driver: what Ray is asked for, ``fit`` in a side thread, its errors as ours.

Ray Train owns the workers: placement, start, restart. The trainer inside knows nothing of it. Checkpoints are ours, in
the run directory; Ray gets a pointer a tick, and a restarted group asks the directory, not Ray, where to go on.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2.api.config import LoggingConfig

from ganscale.errors import GanscaleError, RunFailed, UserError
from ganscale.files import full_disk, is_full_disk
from ganscale.runtime.attendance import Attendance
from ganscale.runtime.backend import GroupConfig
from ganscale.runtime.common_ground import leave_mark
from ganscale.runtime.controller import Controller, release_places
from ganscale.runtime.elastic import ElasticPolicy
from ganscale.runtime.gate import FailureGate
from ganscale.runtime.heartbeat import Board
from ganscale.runtime.launcher import with_way_on
from ganscale.runtime.placement import Plan
from ganscale.runtime.roll_call import RollCall
from ganscale.runtime.stopping import ROLL, SCRATCH
from ganscale.runtime.storage import ObjectStore, child
from ganscale.runtime.watch import Watch

EXCHANGE_TIMEOUT_S = 300  # and twice runtime.hang_timeout_s at least: the watch, which names who hangs, comes first
# Ray's counters never reset, so these only bound the life of a run
FAILURES_BACKSTOP = 1_000_000  # lost groups: the gate decides, by what was saved between two of them
ABORT_S = 60.0  # for the controller to end, which a busy machine may still be making, or which is starting workers
STARTS_BACKSTOP = 10_000  # starts without a place for all: runtime.max_wait_s decides


def worker_loop(settings: dict[str, Any]) -> dict[str, Any]:
    """Train as one rank; every rank runs this alike, at the start and after each restart of the group."""
    from ganscale.runtime.worker import run_rank  # here, so that only workers load the trainer

    return run_rank(settings)


# A process each, which loads Ray's libraries beside every start of the workers. One hands out Ray datasets, we have
# none. The other tidies up after a dead controller: a local Ray ends with the run, and a cluster takes back what a job
# held once its driver has gone, killed or not.
NEEDLESS = ("DatasetsCallback", "PlacementGroupCleanerCallback")


class _Trainer(TorchTrainer):
    """Without the processes that a run of ours has no use for, and one that can be ended from another thread."""

    _controller: Any = None
    _is_over = False

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in NEEDLESS]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        """As Ray's, which keeps the controller to itself."""
        if self.scaling_config.elasticity_enabled:
            parts["scaling_policy"] = ElasticPolicy(self.scaling_config)
        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        environment = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"} | get_env_vars_to_propagate()
        actor = ray.remote(num_cpus=0, label_selector=here, runtime_env={"env_vars": environment})(Controller)
        self._controller = actor.remote(**parts)
        try:
            if self._is_over:  # said while it was being made
                self._controller.__ray_terminate__.remote()
                raise RunFailed("given up before the controller was there")
            ray.get(self._controller.run.remote())
            return ray.get(self._controller.get_result.remote())
        finally:
            self._controller = None  # it lives as long as somebody holds it, and the error that is told would

    def give_up(self, fit: threading.Thread) -> None:
        """End the run while ``fit`` waits for it: its workers, its places on the cluster, and that thread.

        Left alone they would go on in a Ray that goes on, and in one that ends the thread would be waiting in what is
        torn down, which ends the process by a segmentation fault.
        """
        self._is_over = True
        with suppress(RayError, RuntimeError):  # Ray may have gone, and what ended the run is to be told
            if (controller := self._controller) is not None:
                controller.abort.remote()
                # Ray may forget to kill an actor that it is just making, but not its tasks; and to be aborted means
                # nothing to one whose run has just ended
                controller.__ray_terminate__.remote()
            fit.join(ABORT_S)
            if fit.is_alive() and controller is not None:
                ray.kill(controller)
                fit.join(ABORT_S)
                release_places(controller)


def train_with_ray(
    config: Any, run_dir: Path, plan: Plan, *, check: Callable[[], None], address: str | None = None
) -> dict[str, Any]:
    """Train ``config`` into ``run_dir`` on ``plan``; Ray must be connected. Returns ``{"images", "stopped"}``.

    With ``address``, that of the run in an object store, workers may be on machines that do not see ``run_dir``.

    ``check`` is called a few times a second from this thread, and may raise to give up. Raises the workers' own errors
    where they are ours, else RunFailed in one line.
    """
    if address is None:
        return _train(config, run_dir, plan, check, None)
    from ganscale.runtime.shadow import Shadow  # here: the controller, whose start every launch waits for, needs none

    with Shadow(run_dir, ObjectStore(address)):
        return _train(config, run_dir, plan, check, address)


def _train(
    config: Any,
    run_dir: Path,
    plan: Plan,
    check: Callable[[], None],
    address: str | None,
) -> dict[str, Any]:
    # Ray Train wants its own files where all its workers see them
    scratch = run_dir / SCRATCH if address is None or plan.address is None else child(address, SCRATCH)
    roll = run_dir / SCRATCH / ROLL
    name = f"{run_dir.name}-{uuid.uuid4().hex[:8]}"  # a name used twice would silently resume Ray's state
    hang_timeout_s = config.runtime.hang_timeout_s
    exchange_timeout_s = max(EXCHANGE_TIMEOUT_S, int(2 * hang_timeout_s))
    trainer = _Trainer(
        worker_loop,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "run_dir": str(run_dir),
            "address": address,
            "mark": leave_mark(run_dir),
            "board": name,
            "threads": plan.threads,
            "device": plan.device,
            "exchange_timeout_s": exchange_timeout_s,
        },
        torch_config=GroupConfig(backend=plan.backend, timeout_s=exchange_timeout_s),
        scaling_config=ScalingConfig(
            num_workers=(plan.least, plan.workers) if plan.is_elastic else plan.workers,
            use_gpu=plan.device == "cuda",
            resources_per_worker=plan.ray_resources,
            placement_strategy="PACK",  # on few nodes: what a ring sends between them is what it waits for
            elastic_resize_monitor_interval_s=config.runtime.resize_s,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(scratch),
            callbacks=[FailureGate(name), RollCall(roll)],
            failure_config=FailureConfig(max_failures=FAILURES_BACKSTOP, controller_failure_limit=STARTS_BACKSTOP),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    attendance = Attendance(roll, plan, config.runtime.max_wait_s)
    outcome: list[Any] = []
    thread = threading.Thread(target=_fit, args=(trainer, outcome), name="ray_fit", daemon=True)
    thread.start()  # in the main thread fit() would take over SIGINT
    with Watch(Board(name), run_dir, hang_timeout_s=hang_timeout_s) as watch:
        try:
            _wait(thread, check, attendance, run_dir)
        except BaseException:
            trainer.give_up(thread)
            raise
    if isinstance(outcome[0], BaseException):
        raise translate(outcome[0], run_dir, has_trained=watch.has_trained) from None
    return outcome[0]


def _wait(fit: threading.Thread, check: Callable[[], None], attendance: Attendance, run_dir: Path) -> None:
    while fit.is_alive():
        fit.join(0.1)
        check()
        try:
            attendance.check()
        except RunFailed as failure:
            raise with_way_on(failure, run_dir) from None


def _fit(trainer: TorchTrainer, outcome: list[Any]) -> None:
    try:
        outcome.append(trainer.fit().return_value)
    except BaseException as error:
        outcome.append(error)


def translate(error: BaseException, run_dir: Path, *, has_trained: bool = False) -> BaseException:
    """Return the error to show for what ``fit`` raised: the workers' own where it is one of ours, else RunFailed.

    A mistake of the user's that shows once the launch ``has_trained``, as on a node that replaces another, has cost
    something: it is told as RunFailed too.
    """
    inner = getattr(error, "controller_failure", None)
    for candidate in [inner, *getattr(error, "worker_failures", {}).values(), error]:
        while candidate is not None:
            if isinstance(candidate, UserError) and has_trained:
                candidate = RunFailed(str(candidate))
            if isinstance(candidate, GanscaleError):
                return with_way_on(candidate, run_dir)
            candidate = candidate.__cause__
    words = str(inner or error).strip()
    if "low on memory" in words or "address the out of memory issue" in words:  # and then advice about Ray's settings
        remedy = "lower train.batch or model.width, or put fewer workers on a machine"
        return with_way_on(RunFailed(f"Ray ended a process because a machine's memory was full; {remedy}"), run_dir)
    if is_full_disk(inner or error):  # what Ray's controller itself writes met it before a worker did
        return with_way_on(full_disk(run_dir), run_dir)
    last = words.splitlines()[-1] if words else type(error).__name__
    return with_way_on(RunFailed(f"Ray gave up: {last}; --verbose shows its logs"), run_dir)
