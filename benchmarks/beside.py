"""What evaluation beside training costs: ``python -m benchmarks.beside [--rounds N] [--kimg X] [--every-kimg E]``.

The same run without it, with it on the cores that training uses (lowest priority), and with it at ordinary priority,
which is what a plain process beside training would do; they take turns. Wall seconds of training and its own process's
time; how many evaluations were done (the last one after training) and how many skipped. All runs train to the same
bits. Without Ray: an actor does the same in the same way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ganscale.config import RunConfig, override
from ganscale.presets import preset
from ganscale.training.checkpoint import newest, verify

CHILD = """
import json, sys, time
from ganscale.config import from_mapping
from ganscale.runtime import launch
from ganscale.runtime import beside_start, launcher
page = json.loads(sys.argv[1])
if page["priority"] == "ordinary":
    spawn = beside_start.subprocess.Popen
    words = "import sys; import ganscale.runtime.beside as b; b.lower_priority = lambda: None; b.main(sys.argv[1])"
    beside_start.subprocess.Popen = lambda command, **more: spawn(
        [command[0], "-c", words, command[-1]] if "ganscale.runtime.beside" in command else command, **more
    )
trained = {}
inner = launcher._train_here
def timed(*arguments):
    cpu, wall = time.process_time(), time.perf_counter()
    found = inner(*arguments)
    trained.update(cpu=time.process_time() - cpu, wall=time.perf_counter() - wall)
    return found
launcher._train_here = timed
launch(from_mapping(page["config"]), name="x", runs_dir=page["folder"], workers=0, cpus=page["threads"])
print(json.dumps(trained))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One run: seconds of training, by the clock and of its process; what was found out beside it; its weights."""

    wall_s: float
    cpu_s: float
    evaluated: int
    skipped: int
    weights: str


def measure(config: RunConfig, priority: str, threads: int) -> Measured:
    """Train ``config`` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        page = {"config": config.model_dump(mode="json"), "folder": folder, "priority": priority, "threads": threads}
        command = [sys.executable, "-c", CHILD, json.dumps(page)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        trained, run_dir = json.loads(done.stdout.splitlines()[-1]), Path(folder) / "x"
        events = run_dir / "beside.jsonl"
        lines = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
        return Measured(
            wall_s=trained["wall"],
            cpu_s=trained["cpu"],
            evaluated=sum(line["event"] == "evaluated" for line in lines),
            skipped=sum(line.get("count", 0) for line in lines if line["event"] == "skipped"),
            weights=verify(newest(run_dir))["weights"],
        )


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kimg", type=float, default=24.0)
    parser.add_argument("--every-kimg", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=2, help="of the trainer")
    parser.add_argument("--preset", default="dcgan-fashion")
    asked = parser.parse_args()
    settings = {"train.kimg": asked.kimg, "sample.every_kimg": 1e6, "checkpoint.every_kimg": asked.every_kimg}
    config = override(preset(asked.preset), settings)
    beside = override(config, {"evaluate.every_kimg": asked.every_kimg})
    contenders = {
        "none": (config, "lowest"),
        "lowest priority (ours)": (beside, "lowest"),
        "ordinary priority": (beside, "ordinary"),
    }
    found: dict[str, list[Measured]] = {name: [] for name in contenders}
    for _ in range(asked.rounds):
        for name, contender in contenders.items():
            found[name].append(measure(*contender, asked.threads))
    assert len({run.weights for runs in found.values() for run in runs}) == 1, "the runs differ"
    print(f"{asked.preset}, {asked.kimg:g} kimg, every {asked.every_kimg:g}, {asked.threads} threads, n={asked.rounds}")
    print("\n| evaluation | training: fastest, median | / none | its CPU: least, median | / none | done, skipped |")
    print("|---|---|---|---|---|---|")
    for name, runs in found.items():
        cells = [name]
        for key in ("wall_s", "cpu_s"):
            values = [getattr(run, key) for run in runs]
            cells += [f"{min(values):.1f} s, {statistics.median(values):.1f} s", _ratio(runs, found["none"], key)]
        cells.append(
            ", ".join(f"{statistics.mean(getattr(run, key) for run in runs):.1f}" for key in ("evaluated", "skipped"))
        )
        print(f"| {' | '.join(cells)} |")


def _ratio(runs: list[Measured], none: list[Measured], key: str) -> str:
    """Return the median over the rounds of a run's seconds over those without evaluation, and its range."""
    ratios = [getattr(run, key) / getattr(base, key) for run, base in zip(runs, none, strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


if __name__ == "__main__":
    main()
