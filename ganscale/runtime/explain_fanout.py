"""Explaining on workers: the same chunks in this process or on a pool of Ray actors, to the same bytes.

The actors get the weights and the inputs once, through Ray's object store. Ray restarts a lost actor and gives it its
chunks again; partials are folded in chunk order, so neither arrival nor loss shows in the result.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ganscale.errors import GanscaleError, ResourceError, RunFailed
from ganscale.explain import (
    Chunk,
    ClassifierSource,
    Explainer,
    Explanation,
    Partial,
    Request,
    Subject,
    build_explainer,
    drive,
    subject_of_run,
)
from ganscale.explain.errors import CallableError
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

    def explainer(self) -> Explainer:
        """Build the explainer, in the driver and anew in every worker; raises the errors of target and method."""
        classifier = None if self.classifier is None else self.classifier.open(self._example())
        subject = subject_of(
            self.networks, self.target, classifier=classifier, reference=self.reference, companions=self.companions
        )
        return build_explainer(subject, self.request)

    def packed(self) -> bytes:
        """Return the job as bytes that any worker can open; raises CallableError where it cannot travel."""
        import cloudpickle

        fields = {name: getattr(self, name) for name in self.__slots__ if name != "networks"}
        try:
            return cloudpickle.dumps(fields | {"networks": self.networks.to_arrays()})
        except Exception as error:  # each object that cannot be pickled has its own kind of error
            words = f"{type(error).__name__}: {error}".splitlines()[0][:120]
            remedy = "use workers=0, or give package.module:function"
            raise CallableError("the classifier", "be picklable to travel to workers", words, remedy) from None

    @classmethod
    def unpacked(cls, packed: bytes) -> Job:
        """Return the job that ``packed`` gave."""
        import cloudpickle

        fields = cloudpickle.loads(packed)
        return cls(**fields | {"networks": Networks(**fields["networks"])})

    def _example(self) -> torch.Tensor:
        data = self.networks.config.data
        generator = torch.Generator().manual_seed(0)
        return torch.rand(2, data.channels, *data.resolution, generator=generator) * 2 - 1


def explain_networks(
    job: Job, *, workers: int, address: str | None = None, between: Callable[[], None] | None = None
) -> Explanation:
    """Run ``job`` with ``workers`` Ray actors (0: in this process) and return the explanation."""
    began = time.perf_counter()
    with one_thread():
        explainer = job.explainer()
        here = None if between is None else lambda chunks: _run_here(explainer, chunks, between)
        with actor_pool(job, workers, address) if workers else nullcontext(here) as execute:
            explanation = drive(explainer, execute=execute)
    cost = {"workers": workers, "threads": THREADS, "seconds": time.perf_counter() - began}
    explanation.meta["cost"] |= cost
    return explanation


def _run_here(explainer: Explainer, chunks: list[Chunk], between: Callable[[], None]) -> Iterator[tuple[int, Partial]]:
    for chunk in chunks:
        between()
        yield chunk.index, explainer.run(chunk)


def subject_of(networks: Networks, target: str, **more: Any) -> Subject:
    """Return what is explained of a run; ``more`` as of ``subject_of_run``."""
    bounds = {"value_range": POINTS_RANGE} if networks.config.data.channels == 2 else {}
    return subject_of_run(target=target, critic=networks.critic, generator=networks.generator, **bounds, **more)


@contextmanager
def actor_pool(job: Job, workers: int, address: str | None) -> Iterator[Execute]:
    """Hold ``workers`` actors that know the job; yields what ``drive`` takes as ``execute``.

    Raises ResourceError, before any actor is started, where there are fewer CPUs than workers.
    """
    from ganscale.runtime.local import is_connected, ray_session
    from ganscale.runtime.planner import this_machine

    packed = job.packed()
    local = address is None and not is_connected()
    if local:
        _check_cpus(workers, this_machine().cpus, "this machine")
    with ray_session(address=address, cpus=workers if local else None, gpus=0 if local else None):
        import ray

        if not local:
            _check_cpus(workers, int(ray.cluster_resources().get("CPU", 0)), "the cluster")
        kept = [ray.put(packed)]  # in a list, so that it travels as a reference
        actor = ray.remote(num_cpus=1, max_restarts=RESTARTS, max_task_retries=RESTARTS)(ChunkWorker)
        actors = [actor.remote() for _ in range(workers)]
        try:
            yield lambda chunks: run_chunks(actors, kept, chunks)
        finally:
            for handle in actors:
                ray.kill(handle)


class ChunkWorker:
    """One actor: fetches the job and builds its networks at the first chunk, then runs chunks."""

    def __init__(self) -> None:
        torch.set_num_threads(THREADS)
        self._explainer: Any = None

    def run(self, job: list[Any], chunk: Chunk) -> Partial:
        """Compute one chunk; the same in any process. ``job`` holds one reference to what the driver put."""
        if self._explainer is None:
            import ray

            self._explainer = Job.unpacked(ray.get(job[0])).explainer()
        return self._explainer.run(chunk)


def run_chunks(actors: list[Any], job: list[Any], chunks: list[Chunk]) -> Iterator[tuple[int, Partial]]:
    """Yield (chunk index, partial) as they come, with at most CHUNKS_IN_FLIGHT chunks handed to each actor."""
    import ray

    waiting, free, busy = deque(chunks), deque(list(actors) * CHUNKS_IN_FLIGHT), {}
    try:
        while waiting or busy:
            while waiting and free:
                actor, chunk = free.popleft(), waiting.popleft()
                busy[actor.run.remote(job, chunk)] = actor, chunk.index
            (done,), _ = ray.wait(list(busy), num_returns=1)
            actor, index = busy.pop(done)
            free.append(actor)
            yield index, ray.get(done)
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
