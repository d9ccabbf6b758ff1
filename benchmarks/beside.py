"""What evaluating and explaining cost training meanwhile: ``python -m benchmarks.beside [--kimg X] [--threads T]``.

One training run; from tick to tick something else is beside it, in turn, by SIGCONT and SIGSTOP: nothing, an evaluation
at the lowest priority (ours), the same at ordinary priority (the peer: a plain process beside training), an explanation
by the preset's ``explain.methods`` at both, and our evaluation in a Ray actor, as under Ray; Ray itself is up all the
time. All follow each other without a pause, so a ratio is the price of a second of such work. A run pays it for the
share of its time in which one is in work: the last column, with one for each of the preset's checkpoints. Wall seconds
and the trainer's own process time a tick; the turns keep what other programs do out of the ratios. Evaluations are what
the beside process does: generation, features, all metrics, on one thread; explanations with panels, page and all.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ganscale.config import override
from ganscale.presets import preset
from ganscale.runtime import launch, load
from ganscale.runtime.beside import Events, lower_priority
from ganscale.runtime.beside_work import Work
from ganscale.runtime.evaluation import build_judge
from ganscale.runtime.local import ray_session
from ganscale.training import solo_group
from ganscale.training.checkpoint import names
from ganscale.training.records import Record, TickRecord
from ganscale.training.trainer import train

NONE, EVALUATE, EXPLAIN = "none", "evaluation", "explanation"
OURS, PEER = "lowest priority (ours)", "ordinary priority"
ACTOR = "lowest priority, a Ray actor (ours)"
CONTENDERS = [(EVALUATE, OURS), (EVALUATE, PEER), (EVALUATE, ACTOR), (EXPLAIN, OURS), (EXPLAIN, PEER)]
POLL_S = 0.1
PATIENCE_S = 600.0  # a first evaluation may have to train its classifier


def work(run_dir: str, what: str, how: str, log: str) -> None:
    """Evaluate or explain the newest checkpoint of a run without end, with a line in ``log`` each time.

    The first one, which imports much and looks at the real images, is to be waited for.
    """
    torch.set_num_threads(1)
    run, path = load(run_dir), names(Path(run_dir) / "checkpoints")[-1]
    judge = build_judge(run.config, run.name) if what == EVALUATE else None
    if how != PEER:
        lower_priority()
    while True:
        if judge is not None:
            judge(run.networks)
        else:  # anew, as what was explained is not explained again
            Work(Path(run_dir), Events(Path(run_dir))).look(path, evaluate=False, explain=True, give_up=lambda: False)
        with open(log, "a") as stream:
            stream.write("done\n")


class Actor:
    """``work`` in a process of Ray's."""

    def pid(self) -> int:
        """Return the process to stop and to let go on."""
        return os.getpid()

    def work(self, *words: str) -> None:
        """Do ``work``."""
        work(*words)


@dataclass(frozen=True, kw_only=True, slots=True)
class Helper:
    """What works beside training: its process, and the file in which it counts."""

    pid: int
    log: Path
    end: Callable[[], object]

    def done(self) -> int:
        """Return how often it has done its work since the first time; -1: not even that."""
        return len(self.log.read_text().splitlines()) - 1 if self.log.exists() else -1


class Turns:
    """A sink that notes what a tick took, and lets the next contender work during the next one."""

    def __init__(self, helpers: dict[tuple[str, str], Helper]) -> None:
        self._helpers, self._ticks = helpers, 0
        self.spent: dict[tuple[str, str], list[tuple[float, float]]] = {name: [] for name in [(NONE, ""), *helpers]}
        self._now = NONE, ""
        self._clocks = self._read()

    def write(self, record: Record) -> None:
        """Take one record."""
        if not isinstance(record, TickRecord):
            return
        wall, cpu = self._read()
        if self._ticks > 2:  # the first ones warm up
            self.spent[self._now].append((wall - self._clocks[0], cpu - self._clocks[1]))
        if self._now in self._helpers:
            os.kill(self._helpers[self._now].pid, signal.SIGSTOP)
        self._ticks += 1
        self._now = list(self.spent)[self._ticks % len(self.spent)]
        if self._now in self._helpers:
            os.kill(self._helpers[self._now].pid, signal.SIGCONT)
        self._clocks = self._read()

    def _read(self) -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kimg", type=float, default=96.0)
    parser.add_argument("--tick-kimg", type=float, default=0.256)
    parser.add_argument("--threads", type=int, default=1, help="of the trainer")
    parser.add_argument("--preset", default="dcgan-fashion")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    settings = {"train.tick_kimg": asked.tick_kimg, "sample.every_kimg": 1e6, "checkpoint.every_kimg": 1e6}
    config = override(preset(asked.preset), {**settings, "train.kimg": asked.kimg})
    with tempfile.TemporaryDirectory() as folder, ray_session(cpus=2, gpus=0), contextlib.ExitStack() as stack:
        judged = launch(override(config, {"train.kimg": asked.tick_kimg}), name="x", runs_dir=folder, workers=0)
        helpers = {}
        for number, (what, how) in enumerate(CONTENDERS):
            helpers[what, how] = _start(judged.path, what, how, Path(folder) / f"{number}.log")
            stack.callback(helpers[what, how].end)
        turns = Turns(helpers)
        (Path(folder) / "y").mkdir()
        train(config, Path(folder) / "y", group=solo_group("cpu"), sink=turns)
        done = {name: helper.done() for name, helper in helpers.items()}
    print(f"{asked.preset}, ticks of {asked.tick_kimg:g} kimg, {asked.threads} threads\n")
    _print(turns, done, ticks_between=preset(asked.preset).checkpoint.every_kimg / asked.tick_kimg)


def _start(run_dir: Path, what: str, how: str, log: Path) -> Helper:
    words = str(run_dir), what, how, str(log)
    if how == ACTOR:
        import ray

        actor = ray.remote(num_cpus=0)(Actor).remote()
        helper = Helper(pid=ray.get(actor.pid.remote()), log=log, end=partial(ray.kill, actor))
        actor.work.remote(*words)
    else:
        script = "import sys; from benchmarks.beside import work; work(*sys.argv[1:])"
        child = subprocess.Popen([sys.executable, "-c", script, *words])
        helper = Helper(pid=child.pid, log=log, end=child.kill)
    deadline = time.monotonic() + PATIENCE_S
    while helper.done() < 0:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}, {how}: not ready after {PATIENCE_S:g} s")
        time.sleep(POLL_S)
    os.kill(helper.pid, signal.SIGSTOP)
    return helper


def _print(turns: Turns, done: dict[tuple[str, str], int], ticks_between: float) -> None:
    base = [statistics.median(column) for column in zip(*turns.spent[NONE, ""], strict=True)]
    print("| beside training | ticks | wall, median | / none | its CPU, median | / none | done | of a run |")
    print("|---|---|---|---|---|---|---|---|")
    for name, spent in turns.spent.items():
        wall, cpu = (statistics.median(column) for column in zip(*spent, strict=True))
        price = ""
        if done.get(name):  # of a tick's time, by the ticks that one is in work out of those between two
            price = f"{(wall / base[0] - 1) * len(spent) / done[name] / ticks_between:.2%}"
        print(
            f"| {', '.join(filter(None, name))} | {len(spent)} | {1000 * wall:.0f} ms | {wall / base[0]:.3f} "
            f"| {1000 * cpu:.0f} ms | {cpu / base[1]:.3f} | {done.get(name, 0)} | {price} |"
        )


if __name__ == "__main__":
    main()
