"""Placement: from a config and what there is to who runs where. Pure: no device is touched, nothing is imported.

What cannot be placed is refused here, before anything is started or written, with what would work.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ganscale.config import RunConfig
from ganscale.errors import ConfigError, ResourceError

CPUS_PER_GPU = 8  # reading and preparing images for one GPU takes no more


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What there is: CPU cores and GPUs that a run may use, and memory in bytes (None: unknown)."""

    cpus: int
    gpus: int
    memory_bytes: int | None
    where: str  # "this machine", "the cluster at ADDRESS"
    threads_limit: int | None = None  # what OMP_NUM_THREADS allows
    nodes: tuple[tuple[int, int], ...] = ()  # cores and GPUs of each node, where there are several

    def seats(self, threads: int, *, on_gpu: bool) -> int:
        """Return how many workers with so many threads (and a GPU) find a place: none is spread over nodes."""
        nodes = self.nodes or ((self.cpus, self.gpus),)
        return sum(min(cpus // threads, gpus) if on_gpu else cpus // threads for cpus, gpus in nodes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a run will need. ``seconds`` is None where it could not be measured here."""

    parameters: dict[str, int]
    memory_bytes: int  # one worker
    disk_bytes: int  # the run directory at its largest
    seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Who runs where. ``workers`` 0 means: in this process, without Ray."""

    workers: int
    device: Literal["cpu", "cuda"]
    backend: Literal["none", "gloo", "nccl"]
    gpus_per_worker: int
    threads: int  # CPU cores reserved for a worker, and its threads
    batch_per_worker: int
    where: str
    address: str | None = None
    run_dir: str | None = None
    estimate: Estimate | None = None

    @property
    def ray_resources(self) -> dict[str, float]:
        """Return what one worker reserves, in Ray's terms."""
        return {"CPU": self.threads} | ({"GPU": self.gpus_per_worker} if self.gpus_per_worker else {})

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    def lines(self) -> dict[str, str]:
        """Return the plan in words, a fact a line."""
        devices = f"{self.threads} CPU thread{'s' if self.threads > 1 else ''}"
        devices = f"1 GPU and {devices}" if self.gpus_per_worker else devices
        who = "this process, without Ray" if self.workers == 0 else f"{self.workers} under Ray on {self.where}"
        facts = {
            "workers": f"{who}; {devices} each; exchange by {self.backend}",
            "batch": f"{self.batch_per_worker} images a worker, {self.batch_per_worker * max(1, self.workers)} in all",
        }
        if self.run_dir:
            facts["run directory"] = self.run_dir
        if self.estimate:
            e = self.estimate
            facts["parameters"] = ", ".join(f"{name} {count:,}" for name, count in e.parameters.items())
            facts["memory"] = f"about {e.memory_bytes / 2**20:,.0f} MiB a worker"
            facts["disk"] = f"up to about {e.disk_bytes / 2**20:,.0f} MiB"
            facts["time"] = "unknown before the first tick" if e.seconds is None else f"about {duration(e.seconds)}"
        return facts


def place(
    config: RunConfig,
    resources: Resources,
    *,
    workers: int = 1,
    gpus: int | None = None,
    cpus: int | None = None,
    address: str | None = None,
) -> Plan:
    """Place ``workers`` on ``resources``; ``gpus`` asks for as many workers with one GPU each, ``cpus`` limits the
    cores.

    Without either, GPUs are used where there is one for every worker. Raises ResourceError where there is less than
    asked for, ConfigError where the global batch does not divide.
    """
    count, on_gpu = _workers_and_device(resources, workers, gpus, cpus)
    cores = _cores(resources, cpus)
    ranks = max(1, count)
    if ranks > cores:
        raise ResourceError(
            "--workers",
            f"be at most {cores}, the CPU cores of {resources.where}" if cpus is None else f"be at most --cpus {cpus}",
            ranks,
            f"use --workers {cores}" + ("" if address else " or join a larger cluster with --address"),
        )
    _check_batch(config.train.batch, ranks)
    if config.train.cuda_graphs and not (on_gpu and ranks == 1):
        got = f"true with {_count(ranks, 'worker')} on {'GPUs' if on_gpu else 'the CPU'}"
        raise ConfigError("train.cuda_graphs", "be false but for one worker on a GPU", got, "leave it out")
    threads = _threads(resources, cores, ranks, on_gpu)
    return Plan(
        workers=count,
        device="cuda" if on_gpu else "cpu",
        backend="none" if count == 0 else "nccl" if on_gpu else "gloo",
        gpus_per_worker=int(on_gpu),
        threads=min(threads, resources.threads_limit or threads),
        batch_per_worker=config.train.batch // ranks,
        where=resources.where,
        address=address,
    )


def _workers_and_device(resources: Resources, workers: int, gpus: int | None, cpus: int | None) -> tuple[int, bool]:
    if workers < 0:
        raise ResourceError("--workers", "be 0 (in this process, without Ray) or more", workers, "use --workers 1")
    if gpus is None:
        return workers, cpus is None and 0 < max(1, workers) <= resources.gpus
    if gpus < 0:
        raise ResourceError("--gpus", "be 0 or more", gpus, "leave it out to use what there is")
    if gpus > resources.gpus:
        raise ResourceError("--gpus", f"be at most {resources.gpus}", gpus, _what_would_work(resources))
    if gpus and cpus is not None:
        raise ResourceError("--cpus", "be left out beside --gpus", cpus, f"use --gpus {gpus} alone")
    if gpus and workers not in (1, gpus) and not (workers == 0 and gpus == 1):
        raise ResourceError("--workers", f"be {gpus}, one for each GPU", workers, "leave --workers out beside --gpus")
    return (workers if workers == 0 or gpus == 0 else gpus), gpus > 0


def _cores(resources: Resources, cpus: int | None) -> int:
    if cpus is None:
        return resources.cpus
    if not 1 <= cpus <= resources.cpus:
        rule = f"be 1 to {resources.cpus}, the CPU cores of {resources.where}"
        raise ResourceError("--cpus", rule, cpus, f"use --cpus {resources.cpus}")
    return cpus


def _threads(resources: Resources, cores: int, ranks: int, on_gpu: bool) -> int:
    """Return the cores of each worker: an equal share, but not so many that a node could not hold its workers."""
    seats = resources.seats(1, on_gpu=on_gpu)
    if ranks > seats:
        needs = "a GPU and a core" if on_gpu else "a core"
        rule = f"be at most {seats}, as each needs {needs} of one node of {resources.where}"
        raise ResourceError("the number of workers", rule, ranks, f"use --{'gpus' if on_gpu else 'workers'} {seats}")
    share = min(cores // ranks, CPUS_PER_GPU) if on_gpu else cores // ranks
    return next(threads for threads in range(share, 0, -1) if resources.seats(threads, on_gpu=on_gpu) >= ranks)


def _what_would_work(resources: Resources) -> str:
    has = f"{resources.where} has {_count(resources.gpus, 'GPU')} and {_count(resources.cpus, 'CPU core')}"
    best = f"--gpus {resources.gpus}" if resources.gpus else f"--workers {resources.cpus} to train on the CPU"
    return f"{has}: use {best}" + (" or join a cluster with --address" if "machine" in resources.where else "")


def _check_batch(batch: int, ranks: int) -> None:
    if batch % ranks == 0:
        return
    below, above = batch // ranks * ranks, -(-batch // ranks) * ranks
    near = " or ".join(str(size) for size in (below, above) if size > 0)
    raise ConfigError("train.batch", f"be divisible by the {ranks} workers", batch, f"use --set train.batch={near}")


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return ``seconds`` in words with two units at most: ``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
