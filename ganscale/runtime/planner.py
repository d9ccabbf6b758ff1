"""``plan``: what a launch would do, without doing it. Asks the machine or the cluster, estimates, touches nothing."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from ganscale.config import RunConfig
from ganscale.errors import ResourceError, UserError
from ganscale.runtime.placement import Count, Plan, Resources, place
from ganscale.runtime.resume import prepare_resume
from ganscale.runtime.storage import is_uri

LONGEST_NAME = 200  # file systems take 255; Ray adds to it
SPARE_DISK_BYTES = 64 << 20  # left free beside what the run will write


def plan(
    config: RunConfig,
    *,
    workers: Count = 1,
    gpus: Count | None = None,
    cpus: int | None = None,
    address: str | None = None,
    resources: Resources | None = None,
    name: str | None = None,
    runs_dir: str | Path = "runs",
    resume: str | Path | None = None,
    measure: bool = True,
) -> Plan:
    """Return the placement, the run directory and the estimates of a launch with the same arguments; writes nothing.

    ``resources`` defaults to those of this machine or, with ``address``, of the cluster. ``measure`` times a few steps.
    Raises what ``launch`` would raise before it starts anything.
    """
    from ganscale.runtime.estimate import estimate

    address = address or config.runtime.address
    resources = resources or find_resources(address)
    placed = place(config, resources, workers=workers, gpus=gpus, cpus=cpus, address=address)
    run_dir, shown = _run_dir_to_be(config, runs_dir, name, resume)
    placed = dataclasses.replace(placed, run_dir=shown, estimate=estimate(config, placed, measure=measure))
    check_disk(run_dir, placed.estimate.disk_bytes)
    return placed


def _run_dir_to_be(
    config: RunConfig, runs_dir: str | Path, name: str | None, resume: str | Path | None
) -> tuple[Path, str]:
    """Return the directory that a launch would write, and what users call it."""
    from ganscale.runtime.place import find_place
    from ganscale.runtime.remote import open_run

    where = find_place(config, runs_dir, name, resume)
    if where.resume is not None:
        if is_uri(resume):
            open_run(str(resume))
        prepare_resume(where.resume, config)
    return where.run_dir, str(where.address or where.run_dir)


def find_resources(address: str | None) -> Resources:
    """Return what the cluster at ``address`` has; without one, what a connected Ray or this machine has."""
    from ganscale.runtime.local import cluster_resources, is_connected

    return cluster_resources(address) if address is not None or is_connected() else this_machine()


def this_machine() -> Resources:
    """Return the cores that this process may use, the GPUs that torch sees, and the memory."""
    import torch

    limit = os.environ.get("OMP_NUM_THREADS", "")
    return Resources(
        cpus=_usable_cores(),
        gpus=torch.cuda.device_count() if torch.cuda.is_available() else 0,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        where="this machine",
        threads_limit=int(limit) if limit.isdigit() and int(limit) > 0 else None,
    )


def _usable_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")  # containers: "200000 100000" is two cores
    if quota.is_file():
        share, period = quota.read_text().split()
        if share != "max":
            cores = min(cores, max(1, int(share) // int(period)))
    return cores


def new_run_dir(config: RunConfig, runs_dir: str | Path, name: str | None, *, taken: Collection[str] = ()) -> Path:
    """Return the directory of a new run: ``runs_dir/name``, or the first free one named after the preset.

    ``taken`` names runs that are kept elsewhere. Raises UserError where ``name`` is no plain name or the directory
    exists with something in it.
    """
    root = Path(runs_dir).absolute()
    if name is None:
        taken = {*taken, *(path.name for path in root.iterdir())} if root.is_dir() else set(taken)
        names = (config.preset if n == 1 else f"{config.preset}-{n}" for n in range(1, len(taken) + 2))
        return root / next(free for free in names if free not in taken)
    if not name or name.startswith(".") or Path(name).name != name:
        raise UserError("--name", "be a plain directory name", name, "put the place into --runs-dir")
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise UserError("--name", f"be at most {LONGEST_NAME} bytes long", name, "choose a shorter one")
    refuse_existing(root / name)
    return root / name


def refuse_existing(run_dir: Path) -> None:
    """Raise UserError where ``run_dir`` holds something; what only a launch that came to nothing left is none."""
    if run_dir.exists() and (not run_dir.is_dir() or any(not path.name.startswith(".") for path in run_dir.iterdir())):
        raise UserError(
            f"run directory {run_dir}",
            "not exist yet",
            "one that does",
            f"go on with --resume {run_dir} or use another --name",
        )


def check_disk(run_dir: Path, needed_bytes: int) -> None:
    """Raise ResourceError where the disk of ``run_dir`` has less free space than the run may fill."""
    place_ = next(parent for parent in (run_dir, *run_dir.parents) if parent.exists())
    free = shutil.disk_usage(place_).free
    if free < needed_bytes + SPARE_DISK_BYTES:
        raise ResourceError(
            f"the disk of {place_}",
            f"have {(needed_bytes + SPARE_DISK_BYTES) / 2**20:,.0f} MiB free",
            f"{free / 2**20:,.0f} MiB",
            "free some space, use another --runs-dir, or lower checkpoint.keep",
        )
