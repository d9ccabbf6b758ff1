"""Placement: from a config and what there is to who runs where. Pure: no device is touched, nothing is imported.

What cannot be placed is refused here, before anything is started or written, with what would work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ganscale.config import RunConfig
from ganscale.dashboards.placement_words import EXCHANGES
from ganscale.errors import ConfigError, ResourceError, UserError
from ganscale.progress import duration

Count = int | str | tuple[int, int]  # of workers: 4, or from 1 to 4 as (1, 4) or "1:4"
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

    @property
    def can_grow(self) -> bool:
        """Whether there may be more later: a cluster gets nodes, this machine stays as it is."""
        return bool(self.nodes)

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
    """Who runs where. ``workers`` 0 means: in this process, without Ray.

    Where ``least`` is below ``workers`` the run is elastic: it goes on with any number between, on the same batch.
    """

    workers: int
    least: int
    device: Literal["cpu", "cuda"]
    backend: Literal["none", "gloo", "nccl"]
    gpus_per_worker: int
    threads: int  # CPU cores reserved for a worker, and its threads
    batch: int  # of all workers
    where: str
    address: str | None = None
    run_dir: str | None = None
    estimate: Estimate | None = None
    beside: int | None = None  # cores kept for evaluating beside training; 0: it uses what training leaves

    @property
    def ray_resources(self) -> dict[str, float]:
        """Return what one worker reserves, in Ray's terms."""
        return {"CPU": self.threads} | ({"GPU": self.gpus_per_worker} if self.gpus_per_worker else {})

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change while it trains."""
        return self.least < self.workers

    @property
    def batch_per_worker(self) -> int:
        """The largest share that a worker gets, which is the one among the fewest workers."""
        return -(-self.batch // max(1, self.least))

    def places(self, nodes: Iterable[Mapping[str, float]]) -> int:
        """Return how many workers fit on ``nodes``, each given by its resources in Ray's terms."""
        needs = self.ray_resources.items()
        return sum(min(int(node.get(kind, 0) // count) for kind, count in needs) for node in nodes)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self) | {"batch_per_worker": self.batch_per_worker}

    def lines(self) -> dict[str, str]:
        """Return the plan in words, a fact a line."""
        devices = f"{self.threads} CPU thread{'s' if self.threads > 1 else ''}"
        devices = f"1 GPU and {devices}" if self.gpus_per_worker else devices
        count = f"{self.least} to {self.workers}" if self.is_elastic else self.workers
        who = "this process, without Ray" if self.workers == 0 else f"{count} under Ray on {self.where}"
        fewest = self.batch // max(1, self.workers)
        share = self.batch_per_worker if fewest == self.batch_per_worker else f"{fewest} to {self.batch_per_worker}"
        exchange = EXCHANGES[self.backend if self.workers > 1 else "none"]
        facts = {
            "workers": f"{who}; {devices} each; {exchange}",
            "batch": f"{share} images a worker, {self.batch} in all",
        }
        if self.beside is not None:
            shared = "at the lowest priority on the cores of training; evaluate.cpus=1 would keep one for it"
            facts["evaluation"] = f"beside training, {'on a core of its own' if self.beside else shared}"
        if self.run_dir:
            facts["run directory"] = self.run_dir
        if self.estimate:
            e = self.estimate
            facts["parameters"] = ", ".join(f"{name} {count:,}" for name, count in e.parameters.items())
            among = f" where there are {self.least}" if self.is_elastic else ""
            facts["memory"] = f"about {e.memory_bytes / 2**20:,.0f} MiB a worker{among}"
            facts["disk"] = f"up to about {e.disk_bytes / 2**20:,.0f} MiB"
            facts["time"] = "unknown before the first tick" if e.seconds is None else f"about {duration(e.seconds)}"
        return facts


def read_count(value: Count, what: str = "--workers", *, least: int = 0) -> tuple[int, int]:
    """Return the fewest and the most that ``value`` allows: ``4``, ``"4"``, ``"1:4"`` or ``(1, 4)``.

    Raises UserError, in the name of ``what``, where a single number is below ``least`` or a range begins below 1.
    """
    parts = value.split(":") if isinstance(value, str) else value if isinstance(value, (tuple, list)) else [value]
    try:
        numbers = [int(part) for part in parts]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) == 1 and numbers[0] >= least:
        return numbers[0], numbers[0]
    if len(numbers) == 2 and 1 <= numbers[0] <= numbers[1]:
        return numbers[0], numbers[1]
    rule = f"be a whole number of at least {least}, or MIN:MAX with 1 <= MIN <= MAX"
    raise UserError(what, rule, value, f"for example {max(least, 2)} or 1:4")


def place(
    config: RunConfig,
    resources: Resources,
    *,
    workers: Count = 1,
    gpus: Count | None = None,
    cpus: int | None = None,
    address: str | None = None,
) -> Plan:
    """Place ``workers`` on ``resources``; ``gpus`` asks for as many workers with one GPU each, ``cpus`` limits the
    cores. Both may be a range, which makes the run elastic: the fewest have to fit now, and on a cluster the most may
    come later.

    Without either, GPUs are used where there is one for every worker. Raises ResourceError where there is less than
    asked for, ConfigError where the global batch does not divide.
    """
    beside = cores_beside(config)
    resources, where = _without(resources, beside or 0), resources.where
    cpus = cpus if cpus is None or not beside else max(1, cpus - beside)
    least, most, on_gpu = _workers_and_device(resources, workers, gpus, cpus)
    cores = _cores(resources, cpus)
    needed = max(1, least if resources.can_grow and cpus is None else most)
    if needed > cores:
        raise ResourceError(
            "--workers",
            f"be at most {cores}, the CPU cores of {resources.where}" if cpus is None else f"be at most --cpus {cpus}",
            _range(least, most) if most else 1,
            f"use --workers {_range(min(least, cores), cores)}"
            + ("" if address else " or join a larger cluster with --address"),
        )
    _check_batch(config.train.batch, max(1, least), max(1, most))
    if config.train.cuda_graphs and not (on_gpu and most <= 1):
        got = f"true with {_count(max(1, most), 'worker')} on {'GPUs' if on_gpu else 'the CPU'}"
        raise ConfigError("train.cuda_graphs", "be false but for one worker on a GPU", got, "leave it out")
    seats = resources.seats(1, on_gpu=on_gpu)
    threads = _threads(resources, cores, max(1, least, min(most, seats, cores)), on_gpu)
    return Plan(
        workers=most,
        least=least,
        device="cuda" if on_gpu else "cpu",
        backend="none" if most == 0 else "nccl" if on_gpu else "gloo",
        gpus_per_worker=int(on_gpu),
        threads=min(threads, resources.threads_limit or threads),
        batch=config.train.batch,
        where=where,
        address=address,
        beside=beside,
    )


def cores_beside(config: RunConfig) -> int | None:
    """Return how many cores are kept for evaluating and explaining beside training; None where nothing is asked for."""
    asked = (config.evaluate.every_kimg, config.explain.every_kimg)
    return None if asked == (None, None) else config.evaluate.cpus


def _without(resources: Resources, kept: int) -> Resources:
    """Return what is left for training where a node keeps so many cores for something else."""
    if not kept:
        return resources
    if resources.cpus <= kept:
        rule = f"leave a core for training, of the {resources.cpus} of {resources.where}"
        raise ResourceError("evaluate.cpus", rule, kept, "use --set evaluate.cpus=0, which shares them")
    roomy = max(range(len(resources.nodes)), key=lambda i: resources.nodes[i][0], default=None)
    nodes = tuple((cpus - kept * (i == roomy), gpus) for i, (cpus, gpus) in enumerate(resources.nodes))
    where = f"{resources.where} but the one of evaluate.cpus"
    return replace(resources, cpus=resources.cpus - kept, nodes=nodes, where=where)


def _workers_and_device(
    resources: Resources, workers: Count, gpus: Count | None, cpus: int | None
) -> tuple[int, int, bool]:
    """Return the fewest and the most workers, and whether each has a GPU."""
    least, most = read_count(workers)
    if gpus is None:
        needed = least if resources.can_grow else most
        return least, most, cpus is None and 0 < max(1, needed) <= resources.gpus
    fewest, all_ = read_count(gpus, "--gpus")
    if all_ == 0:
        return least, most, False
    needed = fewest if resources.can_grow else all_
    if needed > resources.gpus:
        raise ResourceError("--gpus", f"be at most {resources.gpus}", _range(fewest, all_), _what_would_work(resources))
    if cpus is not None:
        raise ResourceError("--cpus", "be left out beside --gpus", cpus, f"use --gpus {_range(fewest, all_)} alone")
    if most == 0 and all_ == 1:
        return 0, 0, True
    if (least, most) not in ((1, 1), (fewest, all_)):
        rule = f"be {_range(fewest, all_)}, one worker for each GPU"
        raise ResourceError("--workers", rule, _range(least, most), "leave --workers out beside --gpus")
    return fewest, all_, True


def _range(least: int, most: int) -> int | str:
    return most if least == most else f"{least}:{most}"


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


def _check_batch(batch: int, least: int, ranks: int) -> None:
    """An elastic run divides its batch as evenly as it can; a fixed one would let the same workers wait every time."""
    if least < ranks <= batch or batch % ranks == 0:
        return
    if least < ranks:
        remedy = f"use --workers {least}:{batch}" if least <= batch else f"use --set train.batch={ranks}"
        raise ConfigError("train.batch", f"hold an image for each of the {ranks} workers", batch, remedy)
    below, above = batch // ranks * ranks, -(-batch // ranks) * ranks
    near = " or ".join(str(size) for size in (below, above) if size > 0)
    raise ConfigError("train.batch", f"be divisible by the {ranks} workers", batch, f"use --set train.batch={near}")


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
