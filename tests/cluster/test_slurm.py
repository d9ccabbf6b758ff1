"""The Slurm script, run with stand-ins for Slurm and Ray that note how they were called: what it asks, how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed
SCRIPT = Path(__file__).resolve().parents[2] / "cluster" / "slurm.sh"
SHELLCHECK = Path(sys.executable).parent / "shellcheck"
PATIENCE_S = 30

SCONTROL = '[ "$1 $2" = "show hostnames" ] && printf "node-%s\\n" 7 8 9'
# srun runs its words; ray notes those of symmetric-run and does what comes after --, as the head node would
SRUN = 'shift; exec "$@"'
RAY = """
printf '%s\\n' "$@" >"$NOTES/ray"; cp "$RAY_AUTH_TOKEN_PATH" "$NOTES/token"
printf '%s %s' "$RAY_AUTH_MODE" "$(stat -c '%a %a' "$(dirname "$RAY_AUTH_TOKEN_PATH")")" >"$NOTES/auth"
[ -n "${RAY_FAILS:-}" ] && exit 0
while [ "$1" != -- ]; do shift; done; shift; exec "$@"
"""
GANSCALE = """
printf '%s\\n' "$@" >"$NOTES/launch"
if [ -n "${WAITS:-}" ]; then
    mkdir -p "$WAITS/.ray"; touch "$NOTES/ready"
    while [ ! -e "$WAITS/.ray/stop" ]; do sleep 0.05; done; exit 130
fi
exit "${CODE:-0}"
"""


@dataclass
class Slurm:
    """A node on which the script can be run."""

    home: Path
    environment: dict[str, str]

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment | variables
        return subprocess.run(
            ["bash", str(SCRIPT), *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def noted(self, name: str) -> list[str]:
        return (self.home / "notes" / name).read_text().splitlines()


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    for folder in ("bin", "notes", "home", "runs"):
        (tmp_path / folder).mkdir()
    for name, body in {"scontrol": SCONTROL, "srun": SRUN, "ray": RAY, "ganscale": GANSCALE}.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "NOTES": str(tmp_path / "notes"),
        "RUNS_DIR": str(tmp_path / "runs"),
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NODELIST": "node-[7-9]",
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_ON_NODE": "64",
    }
    return Slurm(tmp_path, environment)


def test_bash_can_read_it():
    assert subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True, text=True, check=False).stderr == ""


@pytest.mark.skipif(not SHELLCHECK.exists(), reason="shellcheck is not installed (the test extra has it)")
def test_shellcheck_has_nothing_to_say(tmp_path):
    assert subprocess.run([SHELLCHECK, str(SCRIPT)], capture_output=True, text=True, check=False).stdout == ""
    broken = tmp_path / "broken.sh"
    broken.write_text(SCRIPT.read_text().replace('touch "$run_dir/.ray/stop"', "touch $run_dir/.ray/stop"))
    assert "SC2086" in subprocess.run([SHELLCHECK, broken], capture_output=True, text=True, check=False).stdout


def test_ray_is_started_on_every_node_and_the_launch_on_the_first(slurm):
    done = slurm.run("--preset", "dcgan-64", "--set", "data.path=/a b")
    assert done.returncode == 0, done.stderr
    ray = slurm.noted("ray")
    assert ray[: ray.index("--")] == [
        *("symmetric-run", "--address", "node-7:6379", "--min-nodes", "3", "--num-cpus", "64", "--disable-usage-stats")
    ]
    assert slurm.noted("launch") == [
        *("launch", "--address", "auto", "--runs-dir", slurm.environment["RUNS_DIR"]),
        *("--name", "ganscale-42", "--gpus", "24", "--preset", "dcgan-64", "--set", "data.path=/a b"),
    ]


def test_the_real_launch_would_understand_what_it_is_told(slurm):
    from ganscale.cli import main

    slurm.run("--preset", "dcgan-64", "--kimg", "5")
    asked = main.commands["launch"].make_context("launch", slurm.noted("launch")[1:]).params
    assert (int(asked["gpus"]), asked["name"], asked["kimg"]) == (24, "ganscale-42", 5)


@pytest.mark.parametrize("words", [("--workers", "6"), ("--cpus=12",), ("--gpus", "4")])
def test_what_the_user_asks_for_is_not_overruled(slurm, words):
    slurm.run(*words)
    launched = slurm.noted("launch")
    assert launched[-len(words) :] == list(words)
    assert "24" not in launched


@pytest.mark.parametrize("words", [("--resume", "/r/x"), ("--resume=/r/x",), ("--name", "mine")])
def test_a_run_that_has_a_name_gets_no_other(slurm, words):
    slurm.run(*words)
    assert "ganscale-42" not in slurm.noted("launch")


def test_the_token_is_new_private_and_gone_afterwards(slurm):
    slurm.run()
    first = slurm.noted("token")
    assert len(first[0]) == 64
    assert slurm.noted("auth") == ["token 700 700"]
    assert list((slurm.home / "home" / ".ray").iterdir()) == []
    slurm.run()
    assert slurm.noted("token") != first


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_its_exit_code_is_that_of_the_launch(slurm, code):
    assert slurm.run(CODE=str(code)).returncode == code


def test_a_ray_that_did_not_start_is_a_failure_although_ray_says_0(slurm):
    done = slurm.run(RAY_FAILS="1")
    assert done.returncode == 1
    assert "error: Ray must start on all 3 nodes" in done.stderr


def test_without_a_folder_for_runs_nothing_is_started(slurm):
    del slurm.environment["RUNS_DIR"]
    done = slurm.run()
    assert done.returncode != 0
    assert "RUNS_DIR" in done.stderr
    assert list((slurm.home / "notes").iterdir()) == []


@pytest.mark.parametrize("words", [("--runs-dir", "x"), ("--address=auto",)])
def test_what_the_script_decides_itself_is_refused(slurm, words):
    done = slurm.run(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert list((slurm.home / "notes").iterdir()) == []


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--name", "ganscale-42"),
        ("--resume", "ganscale-42"),
        ("--resume=ganscale-42",),
        ("--resume", "{runs}/ganscale-42/"),
        ("--resume={runs}/ganscale-42/checkpoints/kimg-000064",),
        ("--resume", "ganscale-42/checkpoints/kimg-000064"),
    ],
)
def test_slurms_notice_before_the_end_sets_the_flag_that_makes_a_run_save_and_stop(slurm, words):
    run_dir = slurm.home / "runs" / "ganscale-42"
    run_dir.mkdir()
    (run_dir / "config.json").touch()
    command = ["bash", str(SCRIPT), *(word.format(runs=run_dir.parent) for word in words)]
    process = subprocess.Popen(
        command, env=slurm.environment | {"WAITS": str(run_dir)}, stderr=subprocess.PIPE, text=True
    )
    wait_for((slurm.home / "notes" / "ready").exists, process)
    process.send_signal(signal.SIGTERM)  # to the batch shell alone, as --signal=B:TERM does
    assert process.wait(PATIENCE_S) == 130
    process.stderr.close()
    assert (run_dir / ".ray" / "stop").exists()


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("s3://bucket/run", "the notice cannot reach s3://bucket/run, in an object store"),
        ("s3://bucket/run/checkpoints/kimg-000064", "the notice cannot reach s3://bucket/run, in an object store"),
        ("nowhere", "{runs}/nowhere must be the run, and under way"),
    ],
)
def test_a_notice_that_finds_no_run_is_said(slurm, place, why):
    why = why.format(runs=slurm.home / "runs")
    elsewhere = slurm.home / "elsewhere"
    command = ["bash", str(SCRIPT), "--resume", place]
    process = subprocess.Popen(
        command, env=slurm.environment | {"WAITS": str(elsewhere)}, stderr=subprocess.PIPE, text=True
    )
    wait_for((slurm.home / "notes" / "ready").exists, process)
    process.send_signal(signal.SIGTERM)
    said = process.stderr.readline()
    (elsewhere / ".ray" / "stop").touch()
    process.communicate(timeout=PATIENCE_S)
    assert said.startswith(f"warning: nobody could be asked to save and stop: {why}")


def test_the_flag_is_the_one_that_the_trainer_looks_for():
    from ganscale.runtime.stopping import SCRATCH, STOP_FLAG

    assert f'touch "$run_dir/{SCRATCH}/{STOP_FLAG}"' in SCRIPT.read_text()


def test_the_directives_ask_for_whole_nodes_and_a_notice():
    directives = [line.split(None, 1)[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--exclusive", "--ntasks-per-node=1", "--signal=B:TERM@120"} <= set(directives)
