"""What checkpoints cost training: ``python -m benchmarks.checkpoints [--rounds N] [--kimg X] [--every-kimg E]``.

Share of the training time that waits for checkpoints, with the writer in the background and with the same commit
(copy, hash, write, sync, rename) made in the training thread. Both train the same networks to the same bits; the runs
take turns, and a run without checkpoints on the way stands beside them. Wall seconds, one torch thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from ganscale.config import RunConfig, override
from ganscale.presets import preset
from ganscale.training import checkpoint as checkpoints
from ganscale.training import solo_group, trainer
from ganscale.training.checkpoint_writer import CheckpointWriter


class BlockingWriter(CheckpointWriter):
    """The peer: training waits until the checkpoint is on the disk."""

    def write(self, *arguments: object) -> None:
        """Commit before returning."""
        super().write(*arguments)
        self.settle()


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One run: seconds of training up to its last full tick, those of them that waited for saves, and its weights."""

    seconds: float
    stall_s: float
    saves: int
    mib: float
    weights: str


def measure(config: RunConfig, writer: type[CheckpointWriter]) -> Measured:
    """Train ``config`` with ``writer`` in a temporary directory."""
    trainer.CheckpointWriter = writer
    try:
        with tempfile.TemporaryDirectory() as folder:
            run_dir = Path(folder)
            trainer.train(config, run_dir, group=solo_group("cpu"))
            ticks = [json.loads(line)["timing"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
            newest = checkpoints.newest(run_dir)
            size = sum(file.stat().st_size for file in newest.iterdir())
            return Measured(
                seconds=ticks[-1]["elapsed_s"],
                stall_s=sum(tick["checkpoint_stall_s"] for tick in ticks),
                saves=len(checkpoints.names(run_dir / "checkpoints")) - 1,  # that of the end comes after the last tick
                mib=size / 2**20,
                weights=checkpoints.verify(newest)["weights"],
            )
    finally:
        trainer.CheckpointWriter = CheckpointWriter


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kimg", type=float, default=16.0)
    parser.add_argument("--every-kimg", type=float, default=4.0)
    parser.add_argument("--preset", default="dcgan-fashion")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"train.kimg": asked.kimg, "sample.every_kimg": 1e6, "checkpoint.keep": 99}
    config = override(preset(asked.preset), settings | {"checkpoint.every_kimg": asked.every_kimg})
    contenders = {
        "none on the way": (override(config, {"checkpoint.every_kimg": 1e6}), CheckpointWriter),
        "in the training thread": (config, BlockingWriter),
        "in the background": (config, CheckpointWriter),
    }
    found: dict[str, list[Measured]] = {name: [] for name in contenders}
    for _ in range(asked.rounds):
        for name, contender in contenders.items():
            found[name].append(measure(*contender))
    one = found["in the background"][0]
    assert len({run.weights for runs in found.values() for run in runs}) == 1, "the runs differ"
    print(f"{asked.preset}, {asked.kimg:g} kimg, {one.saves} saves of {one.mib:.1f} MiB, {asked.rounds} rounds\n")
    print("| checkpoints | training (fastest) | waited for a save (median) | share of training that waits |")
    print("|---|---|---|---|")
    for name, runs in found.items():
        share = statistics.median(run.stall_s / run.seconds for run in runs)
        each = statistics.median(run.stall_s / max(1, run.saves) for run in runs)
        print(f"| {name} | {min(run.seconds for run in runs):.1f} s | {1000 * each:.1f} ms | {100 * share:.2f} % |")


if __name__ == "__main__":
    main()
