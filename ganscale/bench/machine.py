"""On what the measurements were made, and what is set before them."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from ganscale import __version__, ops
from ganscale.memory import keep_freed_memory


def prepare(device: str) -> int:
    """Set one thread on the CPU and malloc as in our own processes, all contenders alike; return what it keeps."""
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
