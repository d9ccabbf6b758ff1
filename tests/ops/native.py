"""Building and running the C++ tests from pytest."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Kept between runs, like the core's own build: only what changed is compiled again. `make clean` removes it.
BUILD = ROOT / "build" / "sanitized"
SANITIZERS = "address,undefined"


def tool(name: str) -> str | None:
    """Path of a build tool: the one beside this Python, else on PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def run(*command: str, **more) -> str:
    """Output of a command, which must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def configure_command(build: Path, *options: str) -> tuple[str, ...]:
    """CMake's call that prepares ``build``."""
    ninja = tool("ninja")
    generator = ("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}") if ninja else ()
    return (tool("cmake"), "-S", str(ROOT), "-B", str(build), *generator, *options)


@contextmanager
def _alone():
    """Two test runs in one checkout take turns at the build."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_sanitized(*targets: str) -> Path:
    """Build targets of the C++ tests with the address and undefined-behaviour sanitizers, CPU only; their folder."""
    with _alone():
        cache = BUILD / "CMakeCache.txt"
        if cache.is_file() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text(encoding="utf-8"):
            shutil.rmtree(BUILD / "CMakeFiles")
            cache.unlink()
        # -O1: what the optimiser makes of the code is compared with the twins elsewhere.
        options = ["-DGANSCALE_CUDA=0", "-DGANSCALE_TESTS=ON", f"-DGANSCALE_SANITIZE={SANITIZERS}"]
        run(*configure_command(BUILD, *options, "-DCMAKE_CXX_FLAGS_RELEASE=-O1"))
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        run(tool("cmake"), "--build", str(BUILD), "--parallel", jobs, "--target", *targets)
    return BUILD
