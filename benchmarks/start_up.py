"""From the command to the first training step: ``python -m benchmarks.start_up [--rounds N]``.

Wall seconds from starting ``ganscale launch`` until the first batch has been trained on and its line of
``metrics.jsonl`` is written. The rows take turns; the peer is the same command without Ray, so the difference is what
the start of Ray costs.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH = 16
POLL_S = 0.02
ROWS = {"without Ray": 0, "one worker": 1, "two workers": 2}
SETTINGS = (f"train.batch={BATCH}", "train.tick_kimg=0.016", "model.width=8")


def first_step_s(workers: int, folder: Path) -> float:
    """Launch a run of one batch and return the seconds until its first tick; raises RuntimeError where it fails."""
    command = [sys.executable, "-m", "ganscale", "launch", "--kimg", str(BATCH / 1000), "--name", "run"]
    command += ["--runs-dir", str(folder), "--workers", str(workers), "--preset", "dcgan-fashion"]
    command += [part for setting in SETTINGS for part in ("--set", setting)]
    ticks = folder / "run" / "metrics.jsonl"
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seconds = None
    while process.poll() is None:
        if seconds is None and ticks.exists() and ticks.stat().st_size:
            seconds = time.perf_counter() - began
        time.sleep(POLL_S)
    if process.returncode or seconds is None:
        raise RuntimeError(f"launch ended with {process.returncode}: {process.stderr.read()}")
    return seconds


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    found: dict[str, list[float]] = {name: [] for name in ROWS}
    for _ in range(rounds):
        for name, workers in ROWS.items():
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(first_step_s(workers, Path(folder)))
    print("| launch | fastest | median | slowest | median / without Ray |\n|---|---|---|---|---|")
    peer = statistics.median(found["without Ray"])
    for name, seconds in found.items():
        median = statistics.median(seconds)
        print(f"| {name} | {min(seconds):.1f} s | {median:.1f} s | {max(seconds):.1f} s | {median / peer:.1f} |")


if __name__ == "__main__":
    main()
