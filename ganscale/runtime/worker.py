"""One rank under Ray Train: finds its device, group and checkpoint, and calls the trainer, which knows no Ray."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from socket import gethostname
from typing import Any

import ray.train
import torch

from ganscale.config import RunConfig, from_mapping
from ganscale.dashboards import TensorBoardSink
from ganscale.errors import RunFailed
from ganscale.files import set_address
from ganscale.memory import keep_freed_memory
from ganscale.runtime.common_ground import check_ground
from ganscale.runtime.damage import put_damage
from ganscale.runtime.heartbeat import Board, beating, every_s
from ganscale.runtime.leaving import STAYS, WorkerLeaves, look_at, who_leaves, wish
from ganscale.runtime.mirror import Mirror, complete_checkpoints, discard_newer
from ganscale.runtime.remote import pull_checkpoint, pull_newest_good, working_copy
from ganscale.runtime.run_lock import ourselves
from ganscale.runtime.shadow import say_started
from ganscale.runtime.stopping import SCRATCH, STOP_FLAG
from ganscale.runtime.storage import ObjectStore, child
from ganscale.training import checkpoint as checkpoints
from ganscale.training.journal import shown_up_to
from ganscale.training.process_group import Group, torch_group
from ganscale.training.records import Record, TickRecord
from ganscale.training.trainer import TrainResult, train
from ganscale.training.whereabouts import Whereabouts


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


def run_rank(settings: dict[str, Any]) -> dict[str, Any]:
    """Train as one rank; every rank runs this alike, at the start and after each restart of the group."""
    config, address = from_mapping(settings["config"]), settings["address"]
    if address is None:
        run_dir = Path(settings["run_dir"])
        check_ground(run_dir, settings["mark"], config.data.path, f"{ray.util.get_node_ip_address()} ({gethostname()})")
    else:
        run_dir = working_copy(address)
    torch.set_num_threads(settings["threads"])
    keep_freed_memory()
    device = "cpu"
    if settings["device"] == "cuda" and torch.cuda.is_available():
        device = ray.train.torch.get_device()  # all GPUs of the node are visible; this one is ours
        torch.cuda.set_device(device)
    group = torch_group(device, timeout_s=settings["exchange_timeout_s"])
    if address is not None and not (run_dir / SCRATCH / settings["mark"]).exists():
        shutil.rmtree(run_dir / SCRATCH, ignore_errors=True)  # of a launch that used this machine before
    whereabouts, facts = Whereabouts(), _facts(group)
    every = every_s(config.runtime.hang_timeout_s)
    with beating(Board(settings["board"]), whereabouts, facts, every, also=lambda: look_at(facts["node"])):
        result = _train(config, run_dir, settings, group, whereabouts)
    _leave_where_asked(run_dir, group, result)
    return {"images": result.images, "stopped": result.stopped}


def _train(
    config: RunConfig, run_dir: Path, settings: dict[str, Any], group: Group, whereabouts: Whereabouts
) -> TrainResult:
    address, mark = settings["address"], run_dir / SCRATCH / settings["mark"]
    resume_from = _find_checkpoint(address, run_dir, group, Board(settings["board"]))
    scratch = run_dir / SCRATCH
    scratch.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        board = None
        if group.is_main:
            if address is not None:
                stack.enter_context(_mirror(ObjectStore(address), run_dir, config, resume_from))
            images = None if resume_from is None else checkpoints.verify(resume_from)["images"]
            events = run_dir / "tensorboard"
            purge = shown_up_to(config, images) if events.exists() else None
            board = stack.enter_context(TensorBoardSink(events, purge_images=purge))
        return train(
            config,
            run_dir,
            group=group,
            sink=RaySink(board),
            should_stop=stop_question(scratch / STOP_FLAG, mark),
            resume_from=resume_from,
            whereabouts=whereabouts,
        )


def stop_question(flag: Path, mark: Path) -> Callable[[], bool]:
    """Return what asks whether to stop; it raises RunFailed once ``mark``, where it was seen, has gone."""
    is_ours = mark.exists()

    def should_stop() -> bool:
        if is_ours and not mark.exists():  # nothing may be written any more: another launch may be there already
            raise RunFailed("the launch that this worker belongs to has ended")
        return flag.exists() or wish() != STAYS

    return should_stop


def _leave_where_asked(run_dir: Path, group: Group, result: TrainResult) -> None:
    """Raise WorkerLeaves, on every rank alike, where training has stopped because a worker must go, and only then."""
    wishes = torch.tensor([float((run_dir / SCRATCH / STOP_FLAG).exists())] + group.size * [0.0], device=group.device)
    wishes[1 + group.rank] = float(wish())
    group.sum_([wishes])
    stop, *leaving = wishes.tolist()
    if result.stopped and not stop and any(leaving):
        raise WorkerLeaves(f"{who_leaves(leaving)}; all saved at {result.images} images")


def _facts(group: Group) -> dict[str, Any]:
    """Return what a sign of life says of this process; collective, as all ranks of one start share a name."""
    me = ourselves()
    return {
        "attempt": group.broadcast_object(me.token),
        "rank": group.rank,
        "size": group.size,
        "pid": me.pid,
        "started": me.started,
        "machine": me.machine,
        "host": me.host,
        "node": ray.get_runtime_context().get_node_id(),
    }


def _find_checkpoint(address: str | None, run_dir: Path, group: Group, board: Board) -> Path | None:
    """Return where to go on: the newest checkpoint that verifies is the truth, whatever Ray remembers.

    Those that were passed over are told the driver, whose words the user sees.
    """
    found = None
    if group.is_main:
        found, damaged = checkpoints.newest_good(run_dir) if address is None else pull_newest_good(address, run_dir)
        put_damage(board, damaged)
    if address is None:
        return group.broadcast_object(found)
    name = group.broadcast_object(found.name if found is not None else None)
    if name is None or group.is_main:
        return found
    store = ObjectStore(address)  # a rank on the machine of rank 0 finds it there, another one pulls it
    return pull_checkpoint(store, run_dir, name, {name})


def _mirror(store: ObjectStore, run_dir: Path, config: RunConfig, resume_from: Path | None) -> Mirror:
    """Return what sends the run to ``store``, says there that it has begun, and looks for a wish to stop."""
    if resume_from is None:
        _refuse_to_begin_over(store)
    set_address(run_dir, store.uri)
    discard_newer(store, resume_from.name if resume_from is not None else "")  # they were passed over
    is_newest_start = say_started(run_dir, store)

    def obey() -> bool:
        is_ours = is_newest_start()
        if is_ours and store.entry(f"{SCRATCH}/{STOP_FLAG}") is not None:
            (run_dir / SCRATCH / STOP_FLAG).touch()
        return is_ours

    return Mirror(run_dir, store, config.checkpoint, may_send=obey)


def _refuse_to_begin_over(store: ObjectStore) -> None:
    """Raise RunFailed where ``store`` holds checkpoints: none could be read, which may be this machine's fault."""
    if found := sorted(complete_checkpoints(store)):
        raise RunFailed(
            f"no checkpoint of {store.uri} could be read on {gethostname()} ({', '.join(found)}), and none is deleted: "
            f"look at that machine's disk and use ganscale launch --resume {store.uri}, or the oldest one with "
            f"--resume {child(store.uri, f'checkpoints/{found[0]}')}, or start the run again under another name"
        )
