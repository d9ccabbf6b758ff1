"""What workers buy an explanation, and what handing work to them costs: ``python -m benchmarks.fan_out [--rounds N]``.

KernelSHAP of EfficientNet-Lite0 (images of a small run, enlarged to 224x224), all scores included. The contenders
take turns: in this process on one thread and on two, without Ray, and on one and on two Ray workers of one thread each,
which are there already. Last, both workers do the whole job at once, each by itself: the most that two processes get
out of this machine. Each call packs the job and opens the networks anew, as a command does. All ways must give the same
bytes, but for two threads, whose last bits may differ.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from ganscale.config import override
from ganscale.explain import Explanation, drive, source_of_lite0
from ganscale.presets import preset
from ganscale.runtime import launch
from ganscale.runtime.explain_fanout import Job, actor_pool, explain_networks
from ganscale.runtime.explain_run import make_job

TINY = {"model.width": 8, "train.kimg": 0.064, "train.tick_kimg": 0.064, "train.batch": 32}
HERE, THREADS, ONE, TWO = "in this process, 1 thread", "in this process, 2 threads", "1 worker", "2 workers"
APART = "2 workers, a job each"
JOBS = {
    "long tasks": {"num_coalitions": 256, "curve_points": 5},
    "short tasks": {"num_coalitions": 200, "curve_points": 3, "micro_batch": 4},
}


def main() -> None:
    """Print one Markdown table a job."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, actor_pool(2, None) as actors:
        run = launch(override(preset("dcgan-fashion"), TINY), name="tiny", runs_dir=folder, workers=0)
        for title, options in JOBS.items():
            options = {"shakes": 0, "shuffled_network": False, **options}
            more = {"target": "class:967", "classifier": source_of_lite0(), "num_samples": 2, "seed": 0}
            measure(title, make_job(run, "kernel-shap", options=options, **more), actors, asked.rounds)


def measure(title: str, job: Job, actors: list, rounds: int) -> None:
    """Let the contenders take turns and print what they took."""
    ways: dict[str, Callable[[], Explanation | list[Explanation]]] = {
        HERE: lambda: explain_networks(job, workers=0),
        THREADS: lambda: with_two_threads(job),
        ONE: lambda: explain_networks(job, workers=1, actors=actors[:1]),
        TWO: lambda: explain_networks(job, workers=2, actors=actors),
        APART: lambda: at_once(job, actors),
    }
    loads = [os.getloadavg()[0]]
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first warms up
        for name, call in ways.items():
            began = time.perf_counter()
            found = call()
            if turn:
                spent[name].append(time.perf_counter() - began)
            if name == HERE:
                expected = found
            elif name != THREADS:
                for one in found if name == APART else [found]:
                    assert all(torch.equal(one.values[key], value) for key, value in expected.values.items()), name
    loads.append(os.getloadavg()[0])
    cost, chunks = expected.meta["cost"], expected.meta["plan"]["chunks"]
    print(
        f"\n### {title}: {chunks} chunks, {cost['rows_forward']} rows, {1e3 * cost['seconds'] / chunks:.0f} ms a chunk"
    )
    print(
        f"\n{rounds} rounds in turn, load {loads[0]:.2f} before and {loads[1]:.2f} after, torch {torch.__version__}.\n"
    )
    print("| way | wall, least | median | speed against 1 worker, median of the rounds |")
    print("|---|---|---|---|")
    for name, seconds in spent.items():
        jobs = len(actors) if name == APART else 1
        speed = statistics.median(jobs * one / own for one, own in zip(spent[ONE], seconds, strict=True))
        print(f"| {name} | {min(seconds):.2f} s | {statistics.median(seconds):.2f} s | {speed:.2f} |")
    over = statistics.median(one / here for one, here in zip(spent[ONE], spent[HERE], strict=True)) - 1
    print(f"\nHanding the work to a worker costs {100 * over:.1f} % (median of the rounds).", flush=True)


def at_once(job: Job, actors: list) -> list[Explanation]:
    """Have each worker explain the whole job by itself, all at the same time."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda actor: explain_networks(job, workers=1, actors=[actor]), actors))


def with_two_threads(job: Job) -> Explanation:
    """Explain in this process as one would without workers."""
    torch.set_num_threads(2)
    return drive(job.explainer())


if __name__ == "__main__":
    main()
