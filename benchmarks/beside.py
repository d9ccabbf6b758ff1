"""What an evaluation costs training while it is under way: ``python -m benchmarks.beside [--kimg X] [--threads T]``.

One training run; from tick to tick nothing is beside it, an evaluation at the lowest priority (ours), or the same at
ordinary priority (the peer: a plain process beside training), in turn, by SIGCONT and SIGSTOP. The evaluations follow
each other without a pause, so a ratio is the price of a second of evaluation. A run pays it for the share of its time
in which one is in work: the last column, with one evaluation for each of the preset's checkpoints. Wall seconds and the
trainer's own process time a tick; the turns keep what other programs do out of the ratios. Evaluations are what the
beside process does: generation, features, all metrics, on one thread.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ganscale.config import override
from ganscale.presets import preset
from ganscale.runtime import launch
from ganscale.training import solo_group
from ganscale.training.records import Record, TickRecord
from ganscale.training.trainer import train

CHILD = """
import sys
from ganscale.runtime import load
from ganscale.runtime.beside import lower_priority
from ganscale.runtime.evaluation import build_judge
run = load(sys.argv[1])
judge, networks = build_judge(run.config, run.name), run.networks
if sys.argv[2] == "lowest":
    lower_priority()
print("ready", flush=True)
while True:
    judge(networks)
    print("evaluated", flush=True)
"""
NONE, OURS, PEER = "none", "lowest priority (ours)", "ordinary priority"


class Turns:
    """A sink that notes what a tick took, and lets the next contender work during the next one."""

    def __init__(self, children: dict[str, subprocess.Popen]) -> None:
        self._children, self._ticks = children, 0
        self.spent: dict[str, list[tuple[float, float]]] = {NONE: [], OURS: [], PEER: []}
        self._now = NONE
        self._clocks = self._read()

    def write(self, record: Record) -> None:
        """Take one record."""
        if not isinstance(record, TickRecord):
            return
        wall, cpu = self._read()
        if self._ticks > 2:  # the first ones warm up
            self.spent[self._now].append((wall - self._clocks[0], cpu - self._clocks[1]))
        if self._now in self._children:
            os.kill(self._children[self._now].pid, signal.SIGSTOP)
        self._ticks += 1
        self._now = list(self.spent)[self._ticks % len(self.spent)]
        if self._now in self._children:
            os.kill(self._children[self._now].pid, signal.SIGCONT)
        self._clocks = self._read()

    def _read(self) -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kimg", type=float, default=48.0)
    parser.add_argument("--tick-kimg", type=float, default=0.256)
    parser.add_argument("--threads", type=int, default=1, help="of the trainer")
    parser.add_argument("--preset", default="dcgan-fashion")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    settings = {"train.tick_kimg": asked.tick_kimg, "sample.every_kimg": 1e6, "checkpoint.every_kimg": 1e6}
    config = override(preset(asked.preset), {**settings, "train.kimg": asked.kimg})
    with tempfile.TemporaryDirectory() as folder:
        judged = launch(override(config, {"train.kimg": asked.tick_kimg}), name="x", runs_dir=folder, workers=0)
        children = {name: _start(judged.path, word) for name, word in ((OURS, "lowest"), (PEER, "ordinary"))}
        turns = Turns(children)
        try:
            (Path(folder) / "y").mkdir()
            train(config, Path(folder) / "y", group=solo_group("cpu"), sink=turns)
        finally:
            for child in children.values():
                child.kill()
        done = {name: child.communicate()[0].count("evaluated") for name, child in children.items()}
    print(f"{asked.preset}, ticks of {asked.tick_kimg:g} kimg, {asked.threads} threads\n")
    _print(turns, done, ticks_between=preset(asked.preset).checkpoint.every_kimg / asked.tick_kimg)


def _start(run_dir: Path, word: str) -> subprocess.Popen:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(run_dir), word], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    os.kill(child.pid, signal.SIGSTOP)
    return child


def _print(turns: Turns, done: dict[str, int], ticks_between: float) -> None:
    base = [statistics.median(column) for column in zip(*turns.spent[NONE], strict=True)]
    print("| beside training | ticks | wall, median | / none | its CPU, median | / none | evaluations | of a run |")
    print("|---|---|---|---|---|---|---|---|")
    for name, spent in turns.spent.items():
        wall, cpu = (statistics.median(column) for column in zip(*spent, strict=True))
        price = ""
        if done.get(name):  # of a tick's time, by the ticks that an evaluation is in work out of those between two
            price = f"{(wall / base[0] - 1) * len(spent) / done[name] / ticks_between:.2%}"
        print(
            f"| {name} | {len(spent)} | {1000 * wall:.0f} ms | {wall / base[0]:.3f} "
            f"| {1000 * cpu:.0f} ms | {cpu / base[1]:.3f} | {done.get(name, 0)} | {price} |"
        )


if __name__ == "__main__":
    main()
