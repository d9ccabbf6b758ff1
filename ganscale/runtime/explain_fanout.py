"""Explaining on workers: the same chunks in this process or on a pool of Ray actors, to the same bytes.

The actors get the weights and the inputs once, through Ray's object store. Ray restarts a lost actor and gives it its
chunks again; partials are folded in chunk order, so neither arrival nor loss shows in the result.
"""

from __future__ import annotations

import copy
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ganscale import ops
from ganscale.errors import GanscaleError, ResourceError, RunFailed
from ganscale.explain import (
    Chunk,
    ClassifierSource,
    Earlier,
    Explainer,
    Explanation,
    Limits,
    Partial,
    Request,
    Subject,
    build_explainer,
    drive,
    subject_of_run,
)
from ganscale.explain.beside import Beside
from ganscale.explain.errors import CallableError
from ganscale.memory import keep_freed_memory
from ganscale.runtime.cost_record import Record
from ganscale.runtime.run import Networks
from ganscale.runtime.threads import THREADS, one_thread

CHUNKS_IN_FLIGHT = 2  # a worker: one in work, one waiting for it
RESTARTS = 3  # of one actor, and tries of one chunk
POINTS_RANGE = None  # points of the plane have no bounds

Execute = Callable[[list[Chunk]], Iterator[tuple[int, Partial]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """An explanation before it is computed: networks, request and target, and what the target is made of besides."""

    networks: Networks
    request: Request
    target: str
    classifier: ClassifierSource | None = None
    reference: torch.Tensor | None = None
    companions: torch.Tensor | None = None
    names: Mapping[str, list[str]] = field(default_factory=dict)  # of the data's classes and factors
    earlier: tuple[Networks, ...] = ()  # of the run's checkpoints before this one

    def explainer(self) -> Explainer:
        """Build the explainer, in the driver and anew in every worker; raises the errors of target and method."""
        return build_explainer(self.subject(), self.request)

    def subject(self) -> Subject:
        """Return what is explained; raises the errors of the target."""
        classifier = None if self.classifier is None else self.classifier.open(self._example())
        subject = subject_of(
            self.networks, self.target, classifier=classifier, reference=self.reference, companions=self.companions
        )
        before = [
            Earlier(images=one.images, generator=one.generator, critic=critic_of(one, companions=self.companions))
            for one in self.earlier
        ]
        return replace(subject, earlier=tuple(before))

    def packed(self) -> bytes:
        """Return the job as bytes that any worker can open; raises CallableError where it cannot travel."""
        import cloudpickle

        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["networks"] = self.networks.to_arrays()
        fields["earlier"] = [one.to_arrays() for one in self.earlier]
        try:
            return cloudpickle.dumps(fields)
        except Exception as error:  # each object that cannot be pickled has its own kind of error
            words = f"{type(error).__name__}: {error}".splitlines()[0][:120]
            remedy = "use workers=0, or give package.module:function"
            raise CallableError("the classifier", "be picklable to travel to workers", words, remedy) from None

    @classmethod
    def unpacked(cls, packed: bytes) -> Job:
        """Return the job that ``packed`` gave."""
        import cloudpickle

        fields = cloudpickle.loads(packed)
        earlier = tuple(Networks(**one) for one in fields["earlier"])
        return cls(**fields | {"networks": Networks(**fields["networks"]), "earlier": earlier})

    def _example(self) -> torch.Tensor:
        data = self.networks.config.data
        generator = torch.Generator().manual_seed(0)
        return torch.rand(2, data.channels, *data.resolution, generator=generator) * 2 - 1


def explain_networks(
    job: Job,
    *,
    workers: int,
    address: str | None = None,
    between: Callable[[], None] | None = None,
    limits: Limits | None = None,
    actors: Sequence[Any] | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Explanation:
    """Run ``job`` with ``workers`` Ray actors (0: in this process) within ``limits`` and return the explanation.

    ``actors`` are those of an ``actor_pool`` that is held already.
    """
    began, record = time.perf_counter(), Record()
    with one_thread(), ops.using(job.networks.config.ops.impl):
        explainer = job.explainer()
        here = None if between is None else lambda chunks: _run_here(explainer, chunks, between)
        packed = job.packed() if workers else b""
        with actor_pool(workers, address) if workers and actors is None else nullcontext(actors) as pool:
            execute = on_actors(pool, packed, record) if workers else here
            explanation = drive(
                explainer, execute=execute, limits=limits, at_once=max(1, workers), on_progress=on_progress
            )
    cost = {"workers": workers, "threads": THREADS, "seconds": time.perf_counter() - began}
    explanation.meta["names"] = dict(job.names)
    explanation.meta["cost"] |= cost | record.facts(workers) | {"peak_memory_mib": record.peak(peak_memory_mib())}
    return explanation


def peak_memory_mib() -> int:
    """Return the most memory that this process ever held, in MiB."""
    import resource

    bytes_a_unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * bytes_a_unit // 2**20


def _run_here(explainer: Explainer, chunks: list[Chunk], between: Callable[[], None]) -> Iterator[tuple[int, Partial]]:
    for chunk in chunks:
        between()
        yield chunk.index, explainer.run(chunk)


def subject_of(networks: Networks, target: str, **more: Any) -> Subject:
    """Return what is explained of a run; ``more`` as of ``subject_of_run``."""
    bounds = {"value_range": POINTS_RANGE} if networks.config.data.channels == 2 else {}
    return subject_of_run(target=target, critic=critic_of(networks), generator=networks.generator, **bounds, **more)


def critic_of(networks: Networks, *, companions: torch.Tensor | None = None) -> torch.nn.Module:
    """Return the critic, or what stands in for it where there is none; beside ``companions`` where they are given."""
    from ganscale.models import NoCritic, ReconstructionCritic

    critic = networks.critic
    if isinstance(critic, NoCritic):
        critic = ReconstructionCritic(networks.generator)
    return critic if companions is None else Beside(critic, companions)


@contextmanager
def actor_pool(workers: int, address: str | None) -> Iterator[list[Any]]:
    """Hold ``workers`` actors, which any number of jobs may use one after the other.

    Raises ResourceError, before any actor is started, where there are fewer CPUs than workers.
    """
    from ganscale.runtime.local import is_connected, ray_session
    from ganscale.runtime.planner import this_machine

    local = address is None and not is_connected()
    if local:
        _check_cpus(workers, this_machine().cpus, "this machine")
    with ray_session(address=address, cpus=workers if local else None, gpus=0 if local else None):
        import ray

        if not local:
            _check_cpus(workers, int(ray.cluster_resources().get("CPU", 0)), "the cluster")
        actor = ray.remote(num_cpus=1, max_restarts=RESTARTS, max_task_retries=RESTARTS)(ChunkWorker)
        actors = [actor.remote() for _ in range(workers)]
        try:
            yield actors
        finally:
            for handle in actors:
                ray.kill(handle)


def on_actors(actors: Sequence[Any], packed: bytes, record: Record) -> Execute:
    """Return what runs chunks of the job ``packed`` on ``actors``; the job is put into the object store once."""
    import ray

    job = [ray.put(packed)]  # in a list, so that it travels as a reference
    return lambda chunks: run_chunks(list(actors), job, chunks, record)


class ChunkWorker:
    """One actor: fetches the job and builds its networks at the first chunk, then runs chunks."""

    def __init__(self) -> None:
        torch.set_num_threads(THREADS)
        keep_freed_memory()
        self._job, self._explainer, self._impl = None, None, "auto"
        self._process = f"{platform.node()}:{os.getpid()}"

    def run(self, job: list[Any], chunk: Chunk) -> tuple[Partial, dict[str, Any]]:
        """Compute one chunk, the same in any process, and say where. ``job`` holds a reference to what the driver
        put.
        """
        if self._job != job[0]:
            import ray

            self._job, self._explainer = job[0], None  # frees the job before
            unpacked = Job.unpacked(ray.get(job[0]))
            self._impl = unpacked.networks.config.ops.impl
            with ops.using(self._impl):
                self._explainer = unpacked.explainer()
        with ops.using(self._impl):
            return self._explainer.run(chunk), {"process": self._process, "memory_mib": peak_memory_mib()}


def run_chunks(actors: list[Any], job: list[Any], chunks: list[Chunk], record: Record) -> Iterator[tuple[int, Partial]]:
    """Yield (chunk index, partial) as they come, with at most CHUNKS_IN_FLIGHT chunks handed to each actor."""
    import ray

    waiting, free, busy = deque(chunks), deque(list(actors) * CHUNKS_IN_FLIGHT), {}
    try:
        while waiting or busy:
            while waiting and free:
                actor, chunk = free.popleft(), waiting.popleft()
                busy[actor.run.remote(job, chunk)] = actor, chunk.index, time.perf_counter()
            (done,), _ = ray.wait(list(busy), num_returns=1)
            actor, index, handed_over = busy.pop(done)
            free.append(actor)
            partial, where = copy.deepcopy(ray.get(done))  # Ray's arrays cannot be written; those of one process can
            record.add(partial, handed_over=handed_over, **where)
            yield index, partial
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, GanscaleError):
            raise error.cause from None
        raise RunFailed(f"a chunk of the explanation failed: {str(error.cause).splitlines()[0]}") from error
    except ray.exceptions.RayActorError as error:
        words = str(error).splitlines()[0]
        raise RunFailed(f"the workers of the explanation died more than {RESTARTS} times ({words})") from error


def _check_cpus(workers: int, cpus: int, where: str) -> None:
    if workers > cpus:
        raise ResourceError(
            "--workers", f"be at most {cpus}, the CPU cores of {where}", workers, f"use --workers {cpus}"
        )
