"""The GPU check goes on after a failure, ends with its status, and writes the page; run here with stages replaced."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_page import resources, stage_row

ROOT = Path(__file__).resolve().parent.parent
STAGES = ["build", "tests", "memcheck", "racecheck", "initcheck", "synccheck", "bench"]


def check(tmp_path: Path, **settings: str) -> tuple[subprocess.CompletedProcess, str]:
    page = tmp_path / "page.md"
    environment = {
        **os.environ, "GPU_PYTHON": sys.executable, "GPU_CHECK_BUILD": str(tmp_path / "build"),
        "GPU_CHECK_PAGE": str(page), **settings,
    }  # fmt: skip
    script = ROOT / "benchmarks" / "gpu_check.sh"
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, env=environment, timeout=120)
    return done, page.read_text() if page.exists() else ""


def test_every_stage_runs_in_its_order_and_the_page_says_so(tmp_path: Path):
    done, page = check(tmp_path, GPU_CHECK_DRY="true")
    assert done.returncode == 0, done.stderr
    assert [line.removeprefix("# ") for line in done.stdout.splitlines() if line[2:] in STAGES] == STAGES
    assert [line.split(" | ")[1] for line in page.splitlines() if line.startswith("| ")][1:] == ["passed"] * len(STAGES)
    assert "- command: make gpu-check" in page


def test_a_failing_stage_is_shown_the_rest_still_runs_and_the_end_is_a_failure(tmp_path: Path):
    done, page = check(tmp_path, GPU_CHECK_DRY="test build !=")  # false for the stage named build alone
    assert done.returncode == 1
    assert "# build FAILED with status 1" in done.stdout
    assert done.stdout.splitlines()[-1] == "# failed: build"
    rows = [line.split(" | ")[1] for line in page.splitlines() if line.startswith("| ")][1:]
    assert rows == ["FAILED (1)"] + ["passed"] * (len(STAGES) - 1)


def test_some_stages_can_be_run_alone_and_unknown_ones_are_refused(tmp_path: Path):
    done, page = check(tmp_path, GPU_CHECK_DRY="true", GPU_CHECK_STAGES="tests bench")
    assert done.returncode == 0
    assert page.count("| not run |") == len(STAGES) - 2
    done, _ = check(tmp_path, GPU_CHECK_DRY="true", GPU_CHECK_STAGES="tests bensh")
    assert done.returncode == 2
    assert "got bensh" in done.stderr


def test_without_a_gpu_it_says_so_and_does_nothing(tmp_path: Path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done, page = check(tmp_path)
    assert done.returncode == 2
    assert "must run where torch sees a GPU" in done.stderr
    assert not (tmp_path / "build").exists()
    assert page == ""


def command(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("option", ["--kernel-name", "--kernel-regex"])
def test_memory_checks_look_at_our_kernels_alone_but_for_what_torch_s_have_written(tmp_path: Path, option: str):
    # a help longer than a pipe holds, so that who reads the first lines and goes leaves its writer with a broken pipe
    usage = f"seq 1 40000; echo '  {option} arg  a filter'; seq 1 40000; exit 0"
    sanitizer = command(tmp_path / "compute-sanitizer", f'if [ "$1" = --help ]; then {usage}; fi', 'echo "called: $*"')
    path = f"{sanitizer.parent}{os.pathsep}{os.environ['PATH']}"
    python = command(tmp_path / "python", "exit 0")  # there is a GPU, it says
    done, _ = check(tmp_path, PATH=path, GPU_PYTHON=str(python), GPU_CHECK_STAGES="memcheck initcheck")
    assert done.returncode == 0, done.stdout + done.stderr
    memory, written = (line for line in done.stdout.splitlines() if line.startswith("called: "))
    assert f"{option} kns=ganscale" in memory
    assert "kernel" not in written


LACKING = ("ray", "captum", "tensorboard", "rich", "pytest_timeout")

ALL_LACKING = (*LACKING, "pydantic", "safetensors", "PIL")


def without(hidden: tuple[str, ...], folder: Path) -> dict[str, str]:
    """Return an environment in which these packages cannot be imported."""
    for name in hidden:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name} is not installed', name='{name}')\n")
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def own_options() -> list[str]:
    """The options that the script itself gives to pytest."""
    line = re.search(r"^pytest=\((.*)\)$", (ROOT / "benchmarks" / "gpu_check.sh").read_text(), re.MULTILINE)
    return shlex.split(line[1])[1:]


@pytest.mark.parametrize(
    ("hidden", "where"),
    [
        (LACKING, ["tests/ops", "tests/training/test_cuda_graphs.py"]),
        (ALL_LACKING, ["tests/ops"]),
    ],
    ids=["what the tests do without", "all but torch, numpy, click and pytest"],
)
def test_what_a_gpu_machine_may_lack_keeps_no_test_from_running(
    tmp_path: Path, hidden: tuple[str, ...], where: list[str]
):
    environment = without(hidden, tmp_path)
    command = [sys.executable, *own_options(), "-q", "--collect-only", *where]
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # pytest itself, without pytest-timeout
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "ERROR" not in done.stdout
    )  # as pytest marks a file that it cannot import; tests have the word in their names
    assert all(f"{file}::" in done.stdout for file in ["tests/ops/test_gpu.py", *where[1:]])


def test_nor_the_measurements(tmp_path: Path):
    environment = without(ALL_LACKING, tmp_path)
    bench = [sys.executable, "-m", "ganscale", "bench", "--quick", "--only", "counts,critic-step", "--rounds", "1"]
    done = subprocess.run(bench, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "convolution backwards" in done.stdout
    assert "real + fake + penalty" in done.stdout


@pytest.mark.parametrize(
    ("last_words", "said"),
    [
        ("===== 57 passed, 3 deselected in 12.34s =====", "57 passed, 3 deselected in 12.34s"),
        ("1 failed, 9 passed in 80.10s (0:01:20)", "1 failed, 9 passed in 80.10s (0:01:20)"),
        ("========= ERROR SUMMARY: 0 errors", "ERROR SUMMARY: 0 errors"),
        (
            "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)",
            "RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)",
        ),
        ("12 of 14 goals met, 40 lines", "12 of 14 goals met, 40 lines"),
    ],
)
def test_the_page_repeats_the_last_words_of_a_stage(tmp_path: Path, last_words: str, said: str):
    (tmp_path / "tests.status").write_text("0 7\n")
    (tmp_path / "tests.log").write_text(f"something else\n{last_words}\n")
    assert stage_row(tmp_path, "tests") == f"| tests | passed | 7 s | {said} |"


def test_the_page_names_kernels_that_spill(tmp_path: Path):
    entry = (
        "ptxas info    : Compiling entry function '{}' for 'sm_90a'\n    0 bytes stack frame, {} bytes spill stores, "
    )
    text = "".join(entry.format(*pair) + "8 bytes spill loads\n" for pair in (("_Zgood", 0), ("_Zbad", 8)))
    (tmp_path / "build.log").write_text(text)
    assert resources(tmp_path) == ["2 kernels compiled, 1 of them spill registers", "_Zbad (sm_90a): 8 bytes spilled"]
