"""A sweep on a Ray cluster that is there already: trials train on its nodes, and it goes on when the sweep is over."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from ray_head import ray_head

from ganscale.runtime.processes import processes_below

pytestmark = pytest.mark.ray
PATIENCE_S = 240  # only where all else fails
SETTINGS = ["model.width=16", "train.tick_kimg=1.024", "sample.every_kimg=999", "checkpoint.every_kimg=999"]


def test_a_sweep_joins_a_cluster_and_leaves_it_as_it_was(short_dir):
    home = short_dir
    command = [sys.executable, "-m", "ganscale", "tune", "--preset", "r3gan-gaussians", "--trials", "2", "--json"]
    command += ["--param", "optim.critic.lr=1e-4,1e-3", "--kimg", "2.048", "--every", "1.024", "--name", "s"]
    command += [word for setting in SETTINGS for word in ("--set", setting)]
    with ray_head(home, cpus=1) as head:
        done = subprocess.run(
            [*command, "--address", head.address, "--runs-dir", str(home / "runs")],
            env=head.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr
        assert head.server.resources().cpus == 1  # it still answers
        logs = (home / "ray" / "session_latest" / "logs").glob("worker-*.err")
        jobs = {path.name.split("-")[2] for path in logs} - {"ffffffff"}  # those are of no job, kept in readiness
        assert jobs, "no trial ran on the cluster"
    assert processes_below(home) == set()
    page = json.loads(done.stdout)
    assert (page["at_once"], page["cpus"]) == (1, 1)  # what the cluster has, whatever this machine has
    assert page["best"]["images"] == 2048
    assert [path.name for path in sorted((home / "runs" / "s").glob("trial-*"))] == ["trial-000", "trial-001"]
