"""The trainer: drives ``train_step`` to the wanted number of images, and saves, samples and reports on the way.

It is called alike by every rank, with or without Ray, and owns no process: who starts it decides on ranks and devices.
All cadences are in images, so they mean the same for any batch and any number of ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from ganscale import ops
from ganscale.config import RunConfig
from ganscale.data import ShardedBatches, open_dataset
from ganscale.errors import CheckpointError, NonFiniteError, RunFailed
from ganscale.files import full_disk, is_full_disk, name_for_users
from ganscale.losses import describe_penalty
from ganscale.progress import times_passed, to_images
from ganscale.training import checkpoint as checkpoints
from ganscale.training.autoencoding import phases_of, shown_images
from ganscale.training.checkpoint_writer import CheckpointWriter
from ganscale.training.cuda_graphs import GraphedPhases, refuse_where_impossible
from ganscale.training.journal import Journal
from ganscale.training.process_group import Group, solo_group
from ganscale.training.pulse import Pulse
from ganscale.training.random import Draws
from ganscale.training.records import NullSink, Sink, StartRecord, TickRecord
from ganscale.training.state import TrainState
from ganscale.training.step import Phase, StepContext, leave_gradients, train_step
from ganscale.training.suspects import say_whose
from ganscale.training.whereabouts import Whereabouts


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """How a call of ``train`` ended: images seen, the newest checkpoint, and whether it was asked to stop early.

    ``checkpoint_stall_s`` is how long training has waited for its saves in all, on rank 0.
    """

    images: int
    checkpoint: Path | None
    stopped: bool
    checkpoint_stall_s: float


def train(
    config: RunConfig,
    run_dir: Path,
    *,
    group: Group | None = None,
    sink: Sink | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    resume_from: Path | None = None,
    whereabouts: Whereabouts | None = None,
) -> TrainResult:
    """Train until ``train.kimg`` real images were shown to the critic, in all, over all ranks.

    ``run_dir`` exists. ``should_stop`` is asked about once a second on every rank; one yes saves and stops all.
    ``resume_from`` is a checkpoint directory; it is verified before anything is changed. ``whereabouts`` is told what
    this rank does, for a thread that watches. Raises ConfigError, DataError,
    CheckpointError, NonFiniteError (nothing was updated), RunFailed (disk full; says how to go on).

    One training at a time in a process: the threads of its backward passes take ``ops.impl`` from the process.
    """
    before = ops.use_impl(config.ops.impl)
    try:
        trainer = Trainer(config, run_dir, group or solo_group(), sink or NullSink(), whereabouts or Whereabouts())
        return trainer.run(should_stop, resume_from)
    finally:
        ops.use_impl(before)  # what comes after it in this process is another's


class Trainer:
    """One run in one process of a group; ``train`` is its only caller outside tests."""

    def __init__(
        self, config: RunConfig, run_dir: Path, group: Group, sink: Sink, whereabouts: Whereabouts | None = None
    ) -> None:
        refuse_where_impossible(config, group)
        self.config, self.run_dir, self.group, self.sink = config, run_dir, group, sink
        self.state = TrainState(config, group)
        self.phases = phases_of(config)
        self.gradients = GraphedPhases() if config.train.cuda_graphs else leave_gradients
        self.draws = Draws(config.train.seed, group.device)
        self.journal = Journal(run_dir)
        self.whereabouts = whereabouts or Whereabouts()
        self.resumed_from: Path | None = None
        self._saved_at = self._sampled_at = -1  # images at the last save and grid
        self._started = self._ticked = time.perf_counter()
        self._ticked_images = 0

    def run(self, should_stop: Callable[[], bool], resume_from: Path | None) -> TrainResult:
        """Train from ``resume_from`` or from the beginning to the end."""
        self._enter("opening the data")
        dataset = open_dataset(self.config.data, split="train")
        if resume_from is not None:
            self._resume(resume_from, dataset.fingerprint)
        self._fingerprint = dataset.fingerprint
        self._shown = shown_images(self.config, dataset) if self.group.is_main else None
        self.writer = CheckpointWriter(self.run_dir, self.config.checkpoint, newest=self.resumed_from)
        self._stall_s = self._ticked_stall_s = 0.0  # how long training has waited for saves; up to the last tick
        self._begin(len(dataset))
        batches = ShardedBatches(
            dataset,
            batch=self.config.train.batch,
            rank=self.group.rank,
            world=self.group.size,
            seed=self.config.data.seed,
            start_images=self.state.images,
        )
        with self.writer, closing(batches):
            stopped = self._loop(iter(batches), Pulse(self.group, should_stop))
            self._finish()
        return TrainResult(
            images=self.state.images,
            checkpoint=self.group.broadcast_object(self.writer.newest),  # and no rank ends before it is on the disk
            stopped=stopped,
            checkpoint_stall_s=self._stall_s,
        )

    def _loop(self, batches, pulse: Pulse) -> bool:
        config, state = self.config, self.state
        while state.images < to_images(config.train.kimg):
            before = state.images
            try:
                self._enter("reading images")
                real = self._to_device(next(batches).images)
                train_step(state, self.phases, real, self.draws, self._autocast, self._leave_gradients)
            except NonFiniteError as error:
                whose = say_whose(self.group, *self._turn, self.gradients)
                raise NonFiniteError(f"{error}{whose}; {self._way_on()}") from None
            self.whereabouts.has_stepped()
            if self._crossed(before, config.sample.every_kimg):
                self._sample()
            # the tick comes before the save, so a checkpoint never holds statistics that a written line already has
            if self._crossed(before, config.train.tick_kimg):
                self._tick(partial=False)
            if self._crossed(before, config.checkpoint.every_kimg):
                self._save()
            self._enter("asking all whether to stop")
            if pulse.beat():
                return True
        return False

    def _leave_gradients(self, phase: Phase, step: StepContext) -> None:
        self._turn = phase, step
        self._enter(f"phase {phase.name}")
        self.gradients(phase, step)
        self._enter(f"phase {phase.name}, summing gradients over workers")

    def _enter(self, doing: str) -> None:
        self.whereabouts.enter(doing, self.state.images)

    def _begin(self, images_in_data: int) -> None:
        self.whereabouts.begin(self.state.images)
        self._started = self._ticked = time.perf_counter()
        self._ticked_images = self.state.images
        if self.group.is_main:
            self.writer.tidy(self.state.images)
            self.journal.rewind(self.state.images)
        self.sink.write(StartRecord(images=self.state.images, config=self.config, facts=self._facts(images_in_data)))
        if self.state.images == 0:
            self._sample()

    def _finish(self) -> None:
        if self._saved_at != self.state.images:
            self._save()  # before the partial tick resets the statistics that a resumed run goes on with
        if self._sampled_at != self.state.images:
            self._sample()
        began = time.perf_counter()
        self.writer.settle()
        self._stall_s += time.perf_counter() - began
        if self._ticked_images != self.state.images:
            self._tick(partial=True)

    def _tick(self, *, partial: bool) -> None:
        self._enter("writing a tick")
        self.writer.check()
        try:
            scalars, histograms = self.state.tick()
        except RunFailed as error:
            raise RunFailed(f"{error}; {self._way_on()}") from None
        scalars |= {f"lr/{name}": o.param_groups[0]["lr"] for name, o in self.state.optimisers.items()}
        now = time.perf_counter()
        seconds = now - self._ticked
        timing = {
            "kimg_per_s": (self.state.images - self._ticked_images) / 1000 / seconds,
            "tick_s": seconds,
            "elapsed_s": now - self._started,
            "checkpoint_stall_s": self._stall_s - self._ticked_stall_s,
            "workers": self.group.size,
        }
        tick = TickRecord(
            images=self.state.images,
            scalars=scalars,
            histograms=histograms,
            timing=timing,
            checkpoint=self.writer.newest.name if self.group.is_main and self.writer.newest else None,
            partial=partial,
        )
        self._ticked, self._ticked_images, self._ticked_stall_s = now, self.state.images, self._stall_s
        if self.group.is_main:
            self._on_disk(lambda: self.journal.append(tick))
        self.sink.write(tick)

    def _sample(self) -> None:
        self._enter("drawing samples")
        self._sampled_at = self.state.images
        if self.group.is_main:
            drawn = self.state.nets["ema"], self.config, self.group, self.state.images
            record = self._on_disk(lambda: self.journal.samples(*drawn, shown=self._shown))
            if record is not None:
                self.sink.write(record)

    def _save(self) -> None:
        self._enter("saving a checkpoint")
        began = time.perf_counter()
        self._saved_at = self.state.images
        self.writer.make_room(self.state.images)
        parts = self.state.parts()
        if self.group.is_main:
            meta = {
                "config": self.config.model_dump(mode="json"),
                "data": self._fingerprint,
                "world_size": self.group.size,
                "torch": torch.__version__,
            }
            self.writer.write(self.state.images, parts, meta)
        self._stall_s += time.perf_counter() - began

    def _resume(self, path: Path, fingerprint: str) -> None:
        checkpoint = checkpoints.load(path)
        if checkpoint.meta["data"] != fingerprint:
            raise CheckpointError(
                str(path), "be of the same data", f"fingerprint {fingerprint}", "restore the data or start a new run"
            )
        self.state.load(checkpoint)
        self.resumed_from = path
        self._saved_at = self.state.images

    def _crossed(self, before: int, every_kimg: float) -> bool:
        return times_passed(before, self.state.images, every_kimg) > 0

    def _to_device(self, images: torch.Tensor) -> torch.Tensor:
        layout = torch.channels_last if images.shape[2] > 1 else torch.contiguous_format
        return images.to(self.group.device, memory_format=layout, non_blocking=True)

    def _autocast(self) -> torch.autocast:
        enabled = self.config.train.precision == "bf16"
        return torch.autocast(self.group.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _facts(self, images_in_data: int) -> dict[str, str]:
        counts = {name: sum(p.numel() for p in self.state.nets[name].parameters()) for name in self.state.optimisers}
        data = self.config.data
        height, width = data.resolution
        return {
            "data": f"{data.path}, {images_in_data:,} images of {height}x{width}x{data.channels}",
            "networks": ", ".join(f"{name} {count:,} parameters" for name, count in counts.items()),
            "workers": f"{self.group.size} on {self.group.device.type}, {torch.get_num_threads()} threads each",
            "kernels": ops.describe(),
            "penalty": describe_penalty(self.config, self.state.nets["critic"], self.group.device),
        }

    def _on_disk(self, write: Callable):
        try:
            return write()
        except OSError as error:
            if not is_full_disk(error):
                raise
            raise full_disk(self.run_dir, self._way_on()) from error

    def _way_on(self) -> str:
        self.writer.settle()
        newest = self.writer.newest if self.group.is_main else self._newest_here()
        resume = f"go on with ganscale launch --resume {name_for_users(self.run_dir)}"
        if newest is not None:
            return f"saved up to {newest.name}; {resume}"
        return "nothing was saved yet" if self.group.is_main else f"if anything was saved, {resume}"

    def _newest_here(self) -> Path | None:
        """Return the newest checkpoint of rank 0 that this machine sees."""
        return next(reversed(checkpoints.names(self.run_dir / "checkpoints")), None)
