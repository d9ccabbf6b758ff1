"""What faults cost: ``python -m benchmarks.faults [--kills N] [--rounds N] [--only NAMES]``.

One run with two workers on this machine is disturbed at random (seeded) moments, and its end is compared with that of
the same run left alone: weights bit by bit, ``metrics.jsonl`` line by line but for timing, TensorBoard's steps. A
recovery is the wall time from the fault to the first training step after it. Repeated are the images whose ticks
TensorBoard's files hold more than once. The peer is the run left alone, made in the same call.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ganscale.config import RunConfig, override
from ganscale.presets import preset
from ganscale.runtime import Run, launch, load
from ganscale.runtime.local import ray_session
from ganscale.runtime.watch import RESTARTS

POLL_S = 0.02
PATIENCE_S = 180.0
TICK, SAVE = 64, 128  # images
SETTINGS = {
    "train.batch": 16,
    "train.tick_kimg": TICK / 1000,
    "model.width": 8,
    "model.latent": 8,
    "checkpoint.every_kimg": SAVE / 1000,
    "checkpoint.keep": 3,
    "sample.every_kimg": 1.0,
    "sample.num": 4,
    "runtime.hang_timeout_s": 10.0,
}
SIGNALS = {
    "a worker is killed (SIGKILL)": signal.SIGKILL,
    "a worker stands still (SIGSTOP), found after 10 s": signal.SIGSTOP,
    "a worker is asked to end (SIGTERM)": signal.SIGTERM,
}
DRIVER = "the launch is killed (SIGKILL) and resumed"


@dataclass(kw_only=True)
class Outcome:
    """What became of a disturbed run: seconds of each recovery, images trained twice, and what differs at the end."""

    recovery_s: list[float] = field(default_factory=list)
    repeated: int = 0
    differs: list[str] = field(default_factory=list)


def settings(images: int) -> RunConfig:
    """Return the run that is disturbed, ``images`` long."""
    return override(preset("dcgan-fashion"), SETTINGS | {"train.kimg": images / 1000})


def train_workers(root: int) -> list[int]:
    """Return the pids of the Ray Train workers below process ``root``, as their titles say."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            titles[int(process.name)] = (process / "cmdline").read_text()
        except OSError:
            continue
        if fields[0] not in "ZX":
            parents[int(process.name)] = int(fields[1])
    found = set()
    for pid in parents:
        above = pid
        while above in parents and above != root:
            above = parents[above]
        if above == root and "RayTrainWorker" in titles[pid]:
            found.add(pid)
    return sorted(found)


class Disturber(threading.Thread):
    """Sends ``signals`` to workers of the run in ``run_dir``, each at a random moment after it has recovered."""

    def __init__(self, run_dir: Path, signals: list[int], *, longest_s: float, seed: int) -> None:
        super().__init__(name="disturber", daemon=True)
        self._run_dir, self._signals, self._longest_s = run_dir, signals, longest_s
        self._random, self.done = random.Random(seed), threading.Event()
        self.sent: list[tuple[float, int]] = []  # wall clock, and images seen by then

    def run(self) -> None:
        """Wait for training, a random while more, and strike."""
        for number in self._signals:
            if not self._wait_until(lambda: len(restarts(self._run_dir)) == len(self.sent) and images(self._run_dir)):
                return
            if self.done.wait(self._random.uniform(0.0, self._longest_s)):
                return
            workers = train_workers(os.getpid())
            if not workers:
                return
            self.sent.append((time.time(), images(self._run_dir)))
            os.kill(self._random.choice(workers), number)

    def _wait_until(self, condition: Callable[[], object]) -> bool:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if self.done.wait(POLL_S) or time.monotonic() > deadline:
                return False
        return True


def disturb(config: RunConfig, runs: Path, name: str, signals: list[int], *, longest_s: float, seed: int) -> Disturber:
    """Train ``config`` with two workers while ``signals`` are sent; Ray is connected."""
    disturber = Disturber(runs / name, signals, longest_s=longest_s, seed=seed)
    disturber.start()
    try:
        launch(config, name=name, runs_dir=runs, workers=2)
    finally:
        disturber.done.set()
        disturber.join()
    return disturber


def kill_driver(config: RunConfig, runs: Path, name: str, *, after: int) -> float:
    """Launch ``config`` as a command, kill it after ``after`` images, resume it at once; return the recovery in s."""
    words = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "ganscale", "launch", "--workers", "2", "--runs-dir", str(runs)]
    fresh = [*command, "--preset", "dcgan-fashion", "--name", name, "--kimg", str(config.train.kimg), *words]
    process = subprocess.Popen(fresh, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while images(runs / name) < after:
        if process.poll() is not None:
            raise RuntimeError(f"the launch ended by itself with {process.returncode}")
        time.sleep(POLL_S)
    process.kill()
    killed = time.time()
    process.wait()
    starts = len(list((runs / name / "tensorboard").iterdir()))
    again = subprocess.Popen([*command, "--resume", str(runs / name)], stdout=subprocess.DEVNULL)
    recovery_s = None
    while again.poll() is None:
        if recovery_s is None and len(list((runs / name / "tensorboard").iterdir())) > starts:
            recovery_s = time.time() - killed  # the event file is made just before the first step
        time.sleep(POLL_S)
    if again.returncode or recovery_s is None:
        raise RuntimeError(f"the resumed launch ended with {again.returncode}")
    return recovery_s


def restarts(run_dir: Path) -> list[dict]:
    """Return the lines of ``restarts.jsonl``."""
    path = run_dir / RESTARTS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def images(run_dir: Path) -> int:
    """Return the images of the last whole line of metrics, 0 where there is none."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["images"] if lines else 0


def recoveries(run_dir: Path, sent: list[tuple[float, int]]) -> list[float]:
    """Return the seconds from each fault to the first training step after it."""
    found = []
    for (at, _), restart in zip(sent, restarts(run_dir), strict=False):
        found.append(datetime.fromisoformat(restart["at"]).timestamp() + restart["seconds"] - at)
    return found


def repeated_images(run_dir: Path) -> int:
    """Return the images of all ticks that the event files hold more than once, each time but the first."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    written: Counter[int] = Counter()
    for file in (run_dir / "tensorboard").iterdir():
        for event in EventFileLoader(str(file)).Load():
            written[event.step] += any(value.tag == "speed/tick_s" for value in event.summary.value)
    return sum(TICK * (count - 1) for count in written.values() if count > 1)


def shown_steps(run_dir: Path) -> list[int]:
    """Return the steps of one tag as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tag = next(tag for tag in events.Tags()["scalars"] if "critic" in tag.lower() and "loss" in tag.lower())
    return [event.step for event in events.Scalars(tag)]


def differences(run: Run, alone: Run) -> list[str]:
    """Return what of ``run`` is not as in ``alone``: weights, lines of metrics but for timing, TensorBoard's steps."""

    def lines(which: Run) -> list[dict]:
        found = [json.loads(line) for line in (which.path / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "timing"} for line in found]

    def newest(which: Run) -> tuple[int, dict[str, str]]:
        manifest = json.loads((which.checkpoint().path / "manifest.json").read_text())
        return manifest["images"], {name: facts["sha256"] for name, facts in manifest["files"].items()}

    found = []
    if newest(run) != newest(alone):
        found.append("weights")
    if lines(run) != lines(alone):
        found.append("metrics")
    if shown_steps(run.path) != [line["images"] for line in lines(alone)]:
        found.append("TensorBoard")
    return found


def row(name: str, outcome: Outcome) -> str:
    """Return one line of the table."""
    seconds, n = outcome.recovery_s, len(outcome.recovery_s)
    times = f"{statistics.median(seconds):.1f} s | {max(seconds):.1f} s" if seconds else "- | -"
    equal = "yes" if not outcome.differs else f"no: {', '.join(outcome.differs)}"
    return f"| {name} | {times} | {n} | {outcome.repeated / max(n, 1):.0f} | {equal} |"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="workers killed in one run")
    parser.add_argument("--rounds", type=int, default=5, help="of each other fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="words of the wanted rows, with commas")
    chosen = parser.parse_args()
    wanted = [word for word in chosen.only.split(",") if word]
    counts = {name: chosen.kills if number == signal.SIGKILL else chosen.rounds for name, number in SIGNALS.items()}
    print("| fault | recovery: median | worst | n | images repeated a fault | end equal to the run left alone |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        for kind, (name, number) in enumerate(SIGNALS.items()):
            if wanted and not any(word in name for word in wanted):
                continue
            config = settings(2048 + 1024 * counts[name])  # more than it trains between two faults
            with ray_session(cpus=2, gpus=0):
                alone = launch(config, name=f"alone-{kind}", runs_dir=runs, workers=2)
                disturber = disturb(
                    config, runs, f"run-{kind}", counts[name] * [number], longest_s=3.0, seed=chosen.seed
                )
            run = load(runs / f"run-{kind}")
            seconds = recoveries(run.path, disturber.sent)
            found = Outcome(recovery_s=seconds, repeated=repeated_images(run.path), differs=differences(run, alone))
            print(row(name, found), flush=True)
        if not wanted or any(word in DRIVER for word in wanted):
            print(row(DRIVER, _kill_drivers(runs, chosen.rounds, chosen.seed)), flush=True)


def _kill_drivers(runs: Path, rounds: int, seed: int) -> Outcome:
    config, outcome = settings(2048), Outcome()
    with ray_session(cpus=2, gpus=0):
        alone = launch(config, name="alone-driver", runs_dir=runs, workers=2)
    for i in range(rounds):
        after = random.Random(seed + i).randrange(SAVE, 1536, TICK)
        outcome.recovery_s.append(kill_driver(config, runs, f"driver-{i}", after=after))
        run = load(runs / f"driver-{i}")
        outcome.repeated += repeated_images(run.path)
        outcome.differs += differences(run, alone)
    return outcome


if __name__ == "__main__":
    main()
