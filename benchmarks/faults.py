"""What faults cost: ``python -m benchmarks.faults [--kills N] [--rounds N] [--only NAMES]``.

One run with two workers on this machine is disturbed at random (seeded) moments and stopped once it has overcome all
faults; its end is compared with that of a run of the same length left alone: weights bit by bit, ``metrics.jsonl`` line
by line but for timing, TensorBoard's steps. A recovery is the wall time from the fault to the first training step after
it. Repeated are the images that were trained twice, as ``restarts.jsonl`` and TensorBoard's files know them. The peer
is the run left alone, made in the same call.

Exits with 1 where a fault did not strike, the end differs, a checkpoint that was on the disk was not gone on from, or
more was repeated than ``MOST``.
"""

from __future__ import annotations

import argparse
import contextlib
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
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ganscale.config import RunConfig, override
from ganscale.errors import Interrupted
from ganscale.presets import preset
from ganscale.progress import images_of
from ganscale.runtime import Run, launch, load
from ganscale.runtime.local import ray_session
from ganscale.runtime.stopping import SCRATCH, STOP_FLAG
from ganscale.runtime.watch import RESTARTS

POLL_S = 0.02
PATIENCE_S = 180.0
BATCH, TICK, SAVE = 16, 64, 128  # images
# A save is on the disk before the next one begins, so a fault costs an interval between two saves, and what was trained
# while the save at its beginning was being written: less than another interval.
MOST = 2 * SAVE
LONGER = 2_000_000  # than any disturbed run, in images
SETTINGS = {
    "train.batch": BATCH,
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
    """What became of disturbed runs: of each fault the seconds of the recovery and the images trained twice; what is
    wrong at the end.
    """

    recovery_s: list[float] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, strike: Strike, recovery_s: float, repeated: int, went_on: int) -> None:
        """Add one fault, after which training went on from ``went_on`` images."""
        self.recovery_s.append(recovery_s)
        self.repeated.append(repeated)
        if went_on < strike.saved:
            self.wrong.append(f"went on from {went_on} images though {strike.saved} were saved")
        if repeated > MOST:
            self.wrong.append(f"{repeated} images were repeated")


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault: wall clock, and the images of the newest checkpoint that was whole by then (0: none)."""

    at: float
    saved: int


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
    """Sends ``signals`` to workers of the run in ``run_dir``, each at a random moment after it has recovered.

    Then, and once it has seen ``least`` images, the run is asked to stop.
    """

    def __init__(self, run_dir: Path, signals: list[int], *, longest_s: float, seed: int, least: int) -> None:
        super().__init__(name="disturber", daemon=True)
        self._run_dir, self._signals, self._longest_s, self._least = run_dir, signals, longest_s, least
        self._random, self.done = random.Random(seed), threading.Event()
        self.sent: list[Strike] = []

    def run(self) -> None:
        """Wait for training, a random while more, and strike; whatever happens, the run is not left without an end."""
        try:
            if all(self._strike(number) for number in self._signals) and self._wait_until(self._has_recovered):
                self._wait_until(lambda: images(self._run_dir) >= self._least)
        finally:
            if not self.done.is_set():
                with contextlib.suppress(FileNotFoundError):  # it has just ended by itself
                    (self._run_dir / SCRATCH / STOP_FLAG).touch()

    def _strike(self, number: int) -> bool:
        if not self._wait_until(self._has_recovered) or self.done.wait(self._random.uniform(0.0, self._longest_s)):
            return False
        workers = train_workers(os.getpid())
        if workers:
            self.sent.append(Strike(time.time(), newest_checkpoint(self._run_dir)))
            os.kill(self._random.choice(workers), number)
        return bool(workers)

    def _has_recovered(self) -> bool:
        if self.sent and overcome(self._run_dir, self.sent[-1]) is None:
            return False
        return images(self._run_dir) > 0

    def _wait_until(self, condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if self.done.wait(POLL_S) or time.monotonic() > deadline:
                return False
        return True


def disturb(
    config: RunConfig, runs: Path, name: str, signals: list[int], *, longest_s: float, seed: int, least: int = 0
) -> tuple[Run, list[Strike]]:
    """Train ``config``, which is ``LONGER``, with two workers until all ``signals`` were sent and overcome.

    Ray is connected. Returns the run, stopped at ``least`` images or more, and the faults. Raises RuntimeError where
    one of them did not strike.
    """
    disturber = Disturber(runs / name, signals, longest_s=longest_s, seed=seed, least=least)
    disturber.start()
    try:
        with contextlib.suppress(Interrupted):
            launch(config, name=name, runs_dir=runs, workers=2)
    finally:
        disturber.done.set()
        disturber.join()
    if len(disturber.sent) < len(signals):
        raise RuntimeError(f"{len(disturber.sent)} of {len(signals)} faults struck before the run ended")
    return load(runs / name), disturber.sent


def kill_driver(config: RunConfig, runs: Path, name: str, *, after: int) -> tuple[float, Strike]:
    """Launch ``config`` as a command, kill it after ``after`` images, resume it at once; return the recovery in s."""
    words = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "ganscale", "launch", "--workers", "2", "--runs-dir", str(runs)]
    fresh = [*command, "--preset", "dcgan-fashion", "--name", name, "--kimg", str(config.train.kimg), *words]
    process = subprocess.Popen(fresh, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while images(runs / name) < after:
        if process.poll() is not None:
            raise RuntimeError(f"the launch ended by itself with {process.returncode}")
        time.sleep(POLL_S)
    strike = Strike(time.time(), newest_checkpoint(runs / name))
    process.kill()
    process.wait()
    starts = len(event_files(runs / name))
    again = subprocess.Popen([*command, "--resume", str(runs / name)], stdout=subprocess.DEVNULL)
    recovery_s = None
    while again.poll() is None:
        if recovery_s is None and len(event_files(runs / name)) > starts:
            recovery_s = time.time() - strike.at  # the event file is made just before the first step
        time.sleep(POLL_S)
    if again.returncode or recovery_s is None:
        raise RuntimeError(f"the resumed launch ended with {again.returncode}")
    return recovery_s, strike


def restarts(run_dir: Path) -> list[dict]:
    """Return the lines of ``restarts.jsonl``."""
    path = run_dir / RESTARTS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def overcome(run_dir: Path, strike: Strike) -> dict | None:
    """Return how the run was started again after ``strike``: the first line of ``restarts.jsonl`` since."""
    return next((line for line in restarts(run_dir) if lost_at(line) > strike.at), None)


def lost_at(restart: dict) -> float:
    """Return the wall clock at which Ray knew of a loss, from a line of ``restarts.jsonl``."""
    return datetime.fromisoformat(restart["at"]).timestamp()


def images(run_dir: Path) -> int:
    """Return the images of the last whole line of metrics, 0 where there is none."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["images"] if lines else 0


def newest_checkpoint(run_dir: Path) -> int:
    """Return the images of the newest checkpoint, which has its name only once it is whole; 0 where there is none."""
    return max((images_of(path.name) for path in (run_dir / "checkpoints").glob("kimg-*")), default=0)


def event_files(run_dir: Path) -> list[Path]:
    """Return TensorBoard's files, one for each start that came to train, in their order."""
    return sorted((run_dir / "tensorboard").iterdir())


def ticks(file: Path) -> list[tuple[float, int]]:
    """Return wall clock and images of all ticks that one of TensorBoard's files holds."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    events = EventFileLoader(str(file)).Load()
    return [(e.wall_time, e.step) for e in events if any(value.tag == "speed/tick_s" for value in e.summary.value)]


def of_workers(run_dir: Path, strikes: list[Strike]) -> Outcome:
    """Return what faults of workers have cost."""
    found, shown = Outcome(), [tick for file in event_files(run_dir) for tick in ticks(file)]
    for strike in strikes:
        restart = overcome(run_dir, strike)
        at, went_on = lost_at(restart), restart["went_on_from"]
        # what workers said last of themselves may be a second old; the last tick is not, but knows no part of the next
        _, ticked = max((tick for tick in shown if tick[0] <= at), default=(0, 0))
        found.add(strike, at + restart["seconds"] - strike.at, max(restart["images_lost"], ticked - went_on), went_on)
    return found


def of_drivers(runs: Path, rounds: int, seed: int) -> Outcome:
    """Kill launches and resume them; what they repeat is known by whole ticks, and counted as if a part came after."""
    config, found = settings(2048), Outcome()
    with ray_session(cpus=2, gpus=0):
        alone = launch(config, name="alone-driver", runs_dir=runs, workers=2)
    for i in range(rounds):
        after = random.Random(seed + i).randrange(SAVE, 1536, TICK)
        recovery_s, strike = kill_driver(config, runs, f"driver-{i}", after=after)
        run = load(runs / f"driver-{i}")
        (*_, (_, last)), ((_, first), *_) = (ticks(file) for file in event_files(run.path))
        found.add(strike, recovery_s, last + TICK - BATCH - (first - TICK), first - TICK)
        found.wrong += differences(run, alone)
    return found


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


def row(name: str, found: Outcome) -> str:
    """Return one line of the table."""
    seconds, again = found.recovery_s, found.repeated
    equal = "yes" if not found.wrong else f"no: {', '.join(found.wrong)}"
    return (
        f"| {name} | {statistics.median(seconds):.1f} s | {max(seconds):.1f} s | {len(seconds)} "
        f"| {statistics.mean(again):.0f} | {max(again)} | {equal} |"
    )


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="workers killed in one run")
    parser.add_argument("--rounds", type=int, default=5, help="of each other fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="words of the wanted rows, with commas")
    chosen = parser.parse_args()
    wanted = [word for word in chosen.only.split(",") if word]
    print("| fault | recovery: median | worst | n | images repeated: mean | most | end equal to the run left alone |")
    print("|---|---|---|---|---|---|---|", flush=True)
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for name in [*SIGNALS, DRIVER]:
            if wanted and not any(word in name for word in wanted):
                continue
            count = chosen.kills if SIGNALS.get(name) == signal.SIGKILL else chosen.rounds
            found = _of(name, Path(folder), count, chosen.seed)
            print(row(name, found), flush=True)
            wrong += found.wrong
    print(f"\na tick is {TICK} images, a checkpoint {SAVE}; at most {MOST} may be repeated")
    sys.exit(1 if wrong else 0)


def _of(name: str, runs: Path, count: int, seed: int) -> Outcome:
    if name == DRIVER:
        return of_drivers(runs, count, seed)
    number = SIGNALS[name]
    with ray_session(cpus=2, gpus=0):
        disturbed = f"disturbed-{number}"
        run, strikes = disturb(settings(LONGER), runs, disturbed, count * [number], longest_s=3.0, seed=seed)
        alone = launch(settings(newest_checkpoint(run.path)), name=f"alone-{number}", runs_dir=runs, workers=2)
    found = of_workers(run.path, strikes)
    found.wrong += differences(run, alone)
    return found


if __name__ == "__main__":
    main()
