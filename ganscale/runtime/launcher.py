"""``launch``: check everything, write ``config.json``, train here or under Ray, and say how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import platform
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ganscale.config import RunConfig, override
from ganscale.errors import GanscaleError, Interrupted, RunFailed, UserError
from ganscale.files import name_for_users, replace_text
from ganscale.runtime.beside import EVENTS
from ganscale.runtime.beside_start import Finish, beside_training, refuse_far_away
from ganscale.runtime.failures import reason_to_stop
from ganscale.runtime.follow import Follower, LineFollower, OnTick
from ganscale.runtime.place import Place, find_place, held
from ganscale.runtime.placement import Count, Plan, place
from ganscale.runtime.planner import check_disk, find_resources
from ganscale.runtime.resume import Resumption, prepare_resume
from ganscale.runtime.run_samples import with_drawn_samples
from ganscale.runtime.stopping import SCRATCH, Stop, stop_signals

if TYPE_CHECKING:
    from ganscale.runtime.run import Run

log = logging.getLogger(__name__)

CONFIG = "config.json"


def launch(
    config: RunConfig,
    *,
    name: str | None = None,
    runs_dir: str | Path = "runs",
    workers: Count = 1,
    gpus: Count | None = None,
    cpus: int | None = None,
    address: str | None = None,
    resume: str | Path | None = None,
    on_start: Callable[[Plan], None] | None = None,
    on_tick: OnTick | None = None,
    on_event: OnTick | None = None,
    verbose: bool = False,
    command: Sequence[str] = (),
    may_change: Collection[str] = (),
) -> Run:
    """Train ``config`` and return the finished run.

    ``workers`` 0 trains in this process without Ray; otherwise the workers run under the Ray cluster at ``address``,
    or a local one that is started and stopped here; with ``(1, 4)`` or ``"1:4"`` their number may change on the way.
    ``gpus`` asks for one worker on each of so many GPUs, ``cpus`` limits the cores. ``resume`` is a run directory (or
    one of its checkpoints) to go on in. ``on_start`` gets the plan just before training, ``on_tick`` each line of
    ``metrics.jsonl``, ``on_event`` each of ``beside.jsonl`` (default: what failed is logged). ``may_change`` names keys
    that a resumed run may change besides the usual ones. Raises the UserError family before anything is started or
    written; RunFailed or NonFiniteError where training could not go on; Interrupted after Ctrl-C, with all saved.
    """
    from ganscale.runtime.run import Run

    address = address or config.runtime.address
    config = with_absolute_data(with_drawn_samples(config))
    where = find_place(config, runs_dir, name, resume)
    run_dir, resumption = where.run_dir, None
    if where.resume is not None and where.address is None:
        prepare_resume(where.resume, config, may_change)  # refuse before anything is touched
    placed = place(config, find_resources(address), workers=workers, gpus=gpus, cpus=cpus, address=address)
    placed = dataclasses.replace(placed, run_dir=str(where.address or run_dir))
    refuse_far_away(placed, where.address)
    dataset = _preflight(config, run_dir)
    fresh = where.resume is None and not run_dir.exists()
    with (
        stop_signals(run_dir, lambda: _stopped_words(run_dir)) as stop,
        held(where, stop),
        _nothing_left_behind(where, fresh=fresh),
    ):
        if where.resume is not None:  # who held the lock until now may have gone on
            resumption = prepare_resume(where.resume, config, may_change)
        _write_start(config, where, placed, dataset, resumption, command)
        stop.begin()
        if on_start is not None:
            on_start(placed)
        with _followed(run_dir, resumption, on_tick, on_event):
            result = _train(config, where, placed, resumption, stop, verbose)
    if result["stopped"]:
        raise Interrupted(_stopped_words(run_dir))
    return Run(run_dir)


@contextlib.contextmanager
def _followed(
    run_dir: Path, resumption: Resumption | None, on_tick: OnTick | None, on_event: OnTick | None
) -> Iterator[None]:
    """Hand over what the run writes, from where it goes on; raise what a hand-over raised, after the run."""
    after = resumption.images if resumption else -1
    with (
        Follower(run_dir / "metrics.jsonl", on_tick, after_images=after) as follower,
        LineFollower(run_dir / EVENTS, on_event or _log_failure),
    ):
        yield
    if follower.error is not None:
        raise follower.error


@contextlib.contextmanager
def _nothing_left_behind(where: Place, *, fresh: bool) -> Iterator[None]:
    """Delete what is of use during a launch only, and a whole ``fresh`` run where it was refused before it trained."""
    useless = f"{SCRATCH}/"
    try:
        yield
    except UserError:
        if fresh and not where.has_trained():
            useless = ""
        raise
    finally:
        where.delete(useless)


def with_absolute_data(config: RunConfig) -> RunConfig:
    """Return ``config`` with a data folder or file named absolutely: workers may live elsewhere, runs outlast a cd."""
    from ganscale.data import DATASETS

    path = Path(config.data.path).expanduser()
    if not config.data.path or config.data.path in DATASETS or not path.exists():
        return config
    return override(config, {"data.path": str(path.absolute())})


def _preflight(config: RunConfig, run_dir: Path) -> Any:
    """Refuse what would fail later: data, networks, disk. Writes nothing."""
    from ganscale.data import open_dataset
    from ganscale.runtime.estimate import disk_bytes

    dataset = open_dataset(config.data, split="train")
    check_disk(run_dir, disk_bytes(config))
    return dataset


def _write_start(
    config: RunConfig, where: Place, plan: Plan, dataset: Any, resumption: Resumption | None, command: Sequence[str]
) -> None:
    from ganscale.data import write_quarantine

    run_dir = where.run_dir
    where.delete(f"{SCRATCH}/")  # one that was killed may have left its stop flag
    (run_dir / SCRATCH).mkdir(exist_ok=True)
    if resumption is not None:
        resumption.discard_newer()
    write_quarantine(run_dir, dataset)
    page = {
        "config": config.model_dump(mode="json"),
        "versions": _versions(),
        "command": list(command),
        "created": _now(),
        "placement": plan.as_dict(),
        "resumed": [],
    }
    if resumption is not None:
        page |= {"created": resumption.page["created"], "command": resumption.page["command"]}
        event = {"at": _now(), "images": resumption.images, "command": list(command), "changes": resumption.changes}
        page["resumed"] = [*resumption.page.get("resumed", []), event]
    replace_text(run_dir / CONFIG, json.dumps(page, indent=2) + "\n")


def _train(
    config: RunConfig, where: Place, plan: Plan, resumption: Resumption | None, stop: Stop, verbose: bool
) -> dict[str, Any]:
    if where.address is not None:
        from ganscale.runtime.mirror import Mirror, discard_newer

        discard_newer(where.store, resumption.checkpoint.name if resumption else "")
        Mirror(where.run_dir, where.store).send()  # what the workers start from, wherever they are
    if plan.workers == 0:
        with _mirrored(where, config), beside_training(config, where.run_dir, plan) as finish:
            result = _train_here(config, where.run_dir, plan, resumption, stop)
            _finish_beside(finish, result, stop)
        return result
    from ganscale.runtime.local import ray_session

    cpus = plan.workers * plan.threads + (plan.beside or 0) if plan.address is None else None
    gpus = plan.workers * plan.gpus_per_worker if plan.address is None else None
    with ray_session(address=plan.address, cpus=cpus, gpus=gpus, verbose=verbose, meanwhile="ganscale.runtime.train"):
        stop.check()
        from ganscale.runtime.train import train_with_ray

        with beside_training(config, where.run_dir, plan) as finish:
            result = train_with_ray(config, where.run_dir, plan, check=stop.check, address=where.address)
            # what rank 0 sends ends with it; evaluations beside it are made on this machine
            with _mirrored(where, config) if plan.beside is not None else contextlib.nullcontext():
                _finish_beside(finish, result, stop)
        return result


def _finish_beside(finish: Finish, result: dict[str, Any], stop: Stop) -> None:
    """Let the last checkpoint be evaluated, unless somebody wants to stop."""
    if not result["stopped"]:
        finish(stop.is_wanted)


def _log_failure(event: Mapping[str, Any]) -> None:
    if event["event"] == "failed":
        log.warning("%s", event["words"])


def _train_here(
    config: RunConfig, run_dir: Path, plan: Plan, resumption: Resumption | None, stop: Stop
) -> dict[str, Any]:
    import torch

    from ganscale.dashboards import TensorBoardSink
    from ganscale.training.journal import shown_up_to
    from ganscale.training.process_group import solo_group
    from ganscale.training.trainer import train

    threads = torch.get_num_threads()
    purge = shown_up_to(config, resumption.images) if resumption else None
    torch.set_num_threads(plan.threads)
    try:
        with (
            _no_thread_tracebacks(),
            TensorBoardSink(run_dir / "tensorboard", purge_images=purge) as board,
        ):
            result = train(
                config,
                run_dir,
                group=solo_group(plan.device),
                sink=board,
                should_stop=stop.is_wanted,
                resume_from=resumption.checkpoint if resumption else None,
            )
    except (MemoryError, OSError) as error:
        reason = reason_to_stop({0: error}, 1)
        if reason is None:
            raise
        raise with_way_on(reason, run_dir) from error
    finally:
        torch.set_num_threads(threads)
    return {"images": result.images, "stopped": result.stopped}


def _mirrored(where: Place, config: RunConfig) -> contextlib.AbstractContextManager:
    """Return a context that keeps the store of ``where`` equal to its folder, if it has one."""
    if where.address is None:
        return contextlib.nullcontext()
    from ganscale.runtime import remote_lock, run_lock
    from ganscale.runtime.mirror import Mirror

    store = where.store

    def may_send() -> bool:
        return run_lock.is_ours(where.run_dir) and remote_lock.is_ours(store)

    return Mirror(where.run_dir, store, config.checkpoint, may_send=may_send)


@contextlib.contextmanager
def _no_thread_tracebacks() -> Iterator[None]:
    """Keep TensorBoard's writer thread from printing why it died: the next write raises the same in this thread."""
    before = threading.excepthook
    threading.excepthook = lambda failure: None if issubclass(failure.exc_type, OSError) else before(failure)
    try:
        yield
    finally:
        threading.excepthook = before


def _stopped_words(run_dir: Path) -> str:
    return f"stopped on request; {_saved_words(run_dir)}"


def with_way_on(error: GanscaleError, run_dir: Path) -> GanscaleError:
    """Return ``error``, of a run that failed, with what was saved and how to go on, where it does not say so yet."""
    if type(error) is not RunFailed or "--resume" in str(error):
        return error
    return RunFailed(f"{error}; {_saved_words(run_dir)}")


def _saved_words(run_dir: Path) -> str:
    from ganscale.training.checkpoint import newest_good

    saved = newest_good(run_dir)[0]
    if saved is None:
        return "nothing was saved yet"
    return f"saved {saved.name}; go on with ganscale launch --resume {name_for_users(run_dir)}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("ganscale", "torch", "ray", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
