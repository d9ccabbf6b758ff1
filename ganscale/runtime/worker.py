"""One rank under Ray Train: finds its device, group and checkpoint, and calls the trainer, which knows no Ray."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray.train
import torch

from ganscale.config import from_mapping
from ganscale.dashboards import TensorBoardSink
from ganscale.runtime.stopping import SCRATCH, STARTED_FLAG, STOP_FLAG
from ganscale.training import checkpoint as checkpoints
from ganscale.training.process_group import torch_group
from ganscale.training.records import Record, TickRecord
from ganscale.training.trainer import train


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
