"""Ctrl-C in a real process: a checkpoint first, exit 130, and nothing of Ray left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import SETTINGS, descendants, is_alive

from ganscale.runtime import load

pytestmark = pytest.mark.distributed
PATIENCE_S = 150  # only where all else fails
GRACE_S = 30  # what Kubernetes gives by default


def start(runs: Path, workers: int, *, tick_kimg: float = 0.128) -> subprocess.Popen[str]:
    """Start a launch that would take for ever, in a process group of its own, as a terminal would."""
    settings = SETTINGS | {"train.kimg": 100_000, "train.tick_kimg": tick_kimg, "checkpoint.every_kimg": 90_000}
    flags = [word for key, value in settings.items() if key != "train.kimg" for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "ganscale", "launch", "--json", "--kimg", str(settings["train.kimg"])]
    command += ["--workers", str(workers), "--name", "x", "--runs-dir", str(runs), *flags]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=runs
    )


def wait_for(condition, process: subprocess.Popen[str]) -> None:
    """Wait until ``condition()``; what the process said is shown where it ends before."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.ray)])
def test_ctrl_c_saves_exits_130_and_leaves_no_process(tmp_path, workers):
    process = start(tmp_path, workers)
    run_dir = tmp_path / "x"
    metrics = run_dir / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size > 0, process)
    children = descendants(process.pid)
    assert bool(children) == bool(workers)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert f"go on with ganscale launch --resume {run_dir}" in err.splitlines()[-1]
    last = json.loads(metrics.read_text().splitlines()[-1])["images"]
    assert load(run_dir).checkpoint().images == last  # the very moment of the last tick, not an earlier save
    assert not (run_dir / ".ray").exists()
    assert not [pid for pid in children if is_alive(pid)]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.ray)])
def test_a_machine_that_is_taken_away_saves_within_seconds_however_long_a_tick_is(tmp_path, workers):
    """SIGTERM comes to one process, as from an orchestrator, with a grace period of 30 s."""
    process = start(tmp_path, workers, tick_kimg=90_000)
    run_dir = tmp_path / "x"
    wait_for((run_dir / "samples" / "kimg-000000.png").exists, process)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1.0)  # some steps, so that there is something to save
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    while process.poll() is None and not any((run_dir / "checkpoints").glob("kimg-*")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    saved_s = time.monotonic() - began  # how long it then takes to leave Ray is not ours to promise
    _, err = process.communicate(timeout=PATIENCE_S)
    assert saved_s < GRACE_S, err
    assert process.returncode == 130, err
    assert f"go on with ganscale launch --resume {run_dir}" in err.splitlines()[-1]
    saved = load(run_dir).checkpoint()
    assert saved.images > 0
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [(line["images"], line["partial"]) for line in lines] == [(saved.images, True)]


@pytest.mark.ray
def test_a_machine_that_is_taken_away_while_ray_starts_ends_the_launch_with_130_and_a_word(tmp_path):
    """Ray's own handler would end the process with the number of the signal."""
    process = start(tmp_path, 1)
    wait_for(lambda: any("gcs_server" in title(pid) for pid in descendants(process.pid)), process)
    children = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, err
    assert err.splitlines()[-1].startswith("interrupted: stopped on request; ")
    assert not [pid for pid in children if is_alive(pid)]


def title(pid: int) -> str:
    with contextlib.suppress(OSError):  # it has ended meanwhile
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def test_gpus_that_are_not_there_are_refused_in_one_line_with_nothing_written(tmp_path):
    command = [sys.executable, "-m", "ganscale", "launch", "--gpus", "64", "--runs-dir", "runs"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: --gpus must be at most ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
