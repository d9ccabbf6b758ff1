"""What the loss and the return of a node cost: ``python -m benchmarks.elastic [--rounds N]``.

Two nodes on this machine, a worker on each; one is killed without a warning, and comes back. Seconds are wall time as a
user sees it: from the kill (or the return) to the first tick that is written by the changed group. Rows: an elastic
run, with the head's health checks sped up and with Ray's own; the peer, the same run under Ray's own policy and
time-outs; a fixed run whose node comes back at once; and how long a fixed run whose node stays away takes to end,
beyond ``runtime.max_wait_s``.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "runtime"))
from ray_nodes import QUICK, Launch, Nodes, ray_nodes  # the simulated cluster of the tests
from tiny_runs import SETTINGS

LONG = SETTINGS | {
    "train.kimg": 100_000,
    "train.tick_kimg": 0.16,
    "checkpoint.every_kimg": 0.32,
    "sample.every_kimg": 100_000,
    "runtime.resize_s": 1,
}
MAX_WAIT_S = 90
# the peer: Ray's own policy, and the times that Ray waits if nobody says otherwise
PEER = """
import ganscale.runtime.train as train
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
train.ElasticPolicy = ElasticScalingPolicy
from ganscale.cli import main
main()
"""
PEER_SETTINGS = {
    "RAY_AUTH_MODE": "token",  # Ray is imported before a launch could say so
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "2",
}


def start(nodes: Nodes, folder: Path, workers: str, *, peer: bool = False, **settings: object) -> Launch:
    """Start a run and wait until two workers have a checkpoint."""
    how = {"program": ("-c", PEER), "ray_settings": PEER_SETTINGS} if peer else {}
    run = Launch(nodes, folder / "run", "--workers", workers, settings=LONG | settings, **how)
    run.until(lambda: run.trains_with(2) and any((run.run_dir / "checkpoints").glob("kimg-*")))
    return run


def seconds_until(run: Launch, condition: Callable[[], bool]) -> float:
    """Return how long ``condition`` takes to hold."""
    began = time.perf_counter()
    run.until(condition)
    return time.perf_counter() - began


def stop(run: Launch) -> None:
    """End ``run`` with a checkpoint."""
    run.process.terminate()
    code, words = run.end()
    if code != 130:
        raise RuntimeError(words)


def elastic(nodes: Nodes, folder: Path, *, peer: bool = False) -> dict[str, float]:
    """Lose a node and take it back."""
    run = start(nodes, folder, "1:2", peer=peer)
    nodes.kill("b")
    shrunk = seconds_until(run, lambda: run.trains_with(1))
    nodes.add("b", cpus=1)
    grown = seconds_until(run, lambda: run.trains_with(2))
    stop(run)
    return {"node lost to a tick by one worker": shrunk, "node back to a tick by two": grown}


def fixed(nodes: Nodes, folder: Path) -> dict[str, float]:
    """Lose a node that is back at once, then lose it for good."""
    run = start(nodes, folder, "2", **{"runtime.max_wait_s": MAX_WAIT_S})
    events = run.run_dir / "tensorboard"
    starts = len(list(events.iterdir()))
    nodes.kill("b")
    began = time.perf_counter()
    nodes.add("b", cpus=1)
    run.until(lambda: len(list(events.iterdir())) > starts)
    ticks = run.run_dir / "metrics.jsonl"
    written = ticks.stat().st_mtime_ns
    run.until(lambda: ticks.stat().st_mtime_ns > written)
    back = time.perf_counter() - began
    nodes.kill("b")
    began = time.perf_counter()
    code, words = run.end()
    if code != 1 or "did not come back" not in words.splitlines()[-1]:
        raise RuntimeError(words)
    beyond = time.perf_counter() - began - MAX_WAIT_S
    nodes.add("b", cpus=1)
    return {
        "node lost and back at once to a tick by two": back,
        "node lost for good to the end, beyond the limit": beyond,
    }


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="the rows whose name contains this")
    arguments = parser.parse_args()
    rounds = arguments.rounds
    found: dict[str, list[float]] = {}
    for case, health, what in (
        ("elastic 1:2, health checks sped up", QUICK, elastic),
        ("elastic 1:2, Ray's own health checks", {}, elastic),
        ("elastic 1:2, Ray's own policy, time-outs and health checks", {}, functools.partial(elastic, peer=True)),
        ("fixed 2, health checks sped up", QUICK, fixed),
    ):
        if arguments.only not in case:
            continue
        with tempfile.TemporaryDirectory(dir="/tmp") as home, ray_nodes(Path(home), health=health) as nodes:
            nodes.add("a", cpus=1)
            nodes.add("b", cpus=1)
            for turn in range(rounds):
                folder = Path(home) / f"turn-{turn}"
                folder.mkdir()
                for name, seconds in what(nodes, folder).items():
                    found.setdefault(f"{case}: {name}", []).append(seconds)
                    print(f"{case}: {name}: {seconds:.1f} s", file=sys.stderr, flush=True)
    print("| what | fastest | median | slowest |\n|---|---|---|---|")
    for name, seconds in found.items():
        print(f"| {name} | {min(seconds):.1f} s | {statistics.median(seconds):.1f} s | {max(seconds):.1f} s |")


if __name__ == "__main__":
    main()
