"""Workers that see no disk of the driver's: the run reaches them, and comes back, by the object store alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_head import RayHead, ray_head
from stores import BUCKET, REGION, S3Server
from tiny_runs import SETTINGS, tiny_config

from ganscale.runtime import launch, load
from ganscale.runtime.processes import processes_below
from ganscale.training.checkpoint import names, newest, verify

pytestmark = pytest.mark.ray
PATIENCE_S = 240  # only where all else fails


@pytest.fixture(scope="module")
def home(short_dir: Path) -> Path:
    return short_dir


@pytest.fixture(scope="module")
def head(home: Path, server: S3Server) -> Iterator[RayHead]:
    """A cluster whose machines have a cache of their own, and nothing of the driver's."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in as_on("cluster", home, server).items():
            patch.setenv(name, value)
        (home / "h").mkdir()
        with ray_head(home / "h") as running:
            yield running
    assert processes_below(home) == set()


def as_on(machine: str, home: Path, server: S3Server) -> dict[str, str]:
    """Return the environment of a machine: its cache, and the way to the store."""
    return {
        "GANSCALE_CACHE": str(home / machine),
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture
def driver(home: Path, head: RayHead, server: S3Server, monkeypatch: pytest.MonkeyPatch):
    """Return a function that starts `ganscale launch` as on a machine of its own, joined to the cluster."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    environment = as_on("driver", home, server) | {"RAY_AUTH_TOKEN_PATH": str(head.token_path)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "ganscale", "launch", "--address", head.address, *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=home)

    return start


def settings(**changes: object) -> list[str]:
    chosen = SETTINGS | {name.replace("__", "."): value for name, value in changes.items()}
    return [word for name, value in chosen.items() for word in ("--set", f"{name}={value}")]


def test_a_resumed_run_goes_there_and_comes_back_whole(driver, home: Path, server: S3Server, tmp_path: Path):
    runs = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    straight = launch(tiny_config(), name="x", runs_dir=tmp_path, workers=0)
    launch(tiny_config(train__kimg=0.256), name="x", runs_dir=runs, workers=0)
    process = driver("--resume", f"{runs}/x", "--kimg", "0.512", "--cpus", "1")  # one thread, as here
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert len([line for line in err.splitlines() if "kimg/s" in line]) == 2, err  # the driver saw both ticks
    run = load(f"{runs}/x")  # what the driver has: it pulls nothing that it has already
    assert verify(newest(run.path))["weights"] == verify(newest(straight.path))["weights"]
    ticks = [json.loads(line)["images"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert ticks == [128, 256, 384, 512]
    there = home / "cluster" / run.path.relative_to(home / "driver")
    assert [path.name for path in names(there / "checkpoints")] == ["kimg-000000.256", "kimg-000000.512"]
    assert server.objects(f"{runs.removeprefix(f's3://{BUCKET}/')}/x/.") == {}  # no flag, no lock, nothing of Ray's


def test_a_stop_reaches_the_workers_and_their_checkpoint_comes_back(driver, home: Path, server: S3Server):
    runs = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    endless = settings(train__kimg=100_000, checkpoint__every_kimg=90_000)
    process = driver("--preset", "dcgan-fashion", *endless, "--runs-dir", runs, "--name", "x", "--workers", "2")
    deadline = time.monotonic() + PATIENCE_S
    prefix = f"{runs.removeprefix(f's3://{BUCKET}/')}/x/"
    while f"{prefix}metrics.jsonl" not in server.objects(prefix):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, err
    assert err.splitlines()[-1].endswith(f"go on with ganscale launch --resume {runs}/x")
    assert load(f"{runs}/x").checkpoint().images > 0
