"""On what the measurements were made, and what is set before them."""

from __future__ import annotations

import ctypes
import datetime
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from ganscale import __version__, ops

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_THRESHOLDS = (1 << 30, 1 << 25)  # older C libraries refuse a mapping threshold above 32 MiB


def keep_freed_memory() -> int:
    """Let glibc keep what is freed for the next allocation; return up to how many bytes, 0 where it cannot be set.

    By default blocks above 32 MiB are mapped and unmapped anew on every call, and the page faults of that cost some
    operators more than their work. All contenders profit alike.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return 0
    mallopt(_M_TRIM_THRESHOLD, _THRESHOLDS[0])
    return next((size for size in _THRESHOLDS if mallopt(_M_MMAP_THRESHOLD, size)), 0)


def prepare(device: str) -> int:
    """Set one thread on the CPU and malloc as ``keep_freed_memory`` does, and return what that returns."""
    torch.manual_seed(0)
    if device == "cpu":
        torch.set_num_threads(1)
    return keep_freed_memory()


def facts(device: str, *, rounds: int, memory_kept: int, command: str) -> dict[str, str]:
    """Return what belongs above every table: date, machine, versions, how was measured."""
    cpu, info = _cpu_name(), ops.build_info()
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        machine = f"{torch.cuda.get_device_name()} (compute capability {major}.{minor}), CUDA {torch.version.cuda}"
        machine += f", cuDNN {torch.backends.cudnn.version()}; host {cpu}"
        clock = f"the device's events, float32 convolutions {'in TF32' if torch.backends.cudnn.allow_tf32 else 'exact'}"
    else:
        machine = f"{cpu}, {os.cpu_count()} cores, 1 thread used; load {os.getloadavg()[0]:.1f} at the start"
        clock = "process time"
    kept = f"malloc's thresholds raised to {memory_kept >> 20} MiB" if memory_kept else "malloc as it is"
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine,
        "versions": f"ganscale {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "kernels": f"{ops.describe()}; built by {info.get('compiler', 'nobody')}, CUDA {_archs(info)}",
        "measured": f"{clock}, minimum of {rounds} interleaved rounds, {kept}",
        "command": command,
    }


def _archs(info: Mapping[str, object]) -> str:
    return ", ".join(info["cuda_archs"]) if info.get("cuda") else "not built"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
