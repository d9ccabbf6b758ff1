"""Explaining a run: the same chunks in this process or on a pool of Ray actors, to the same bytes.

The actors get the weights and the inputs once, through Ray's object store. Ray restarts a lost actor and gives it its
chunks again; partials are folded in chunk order, so neither arrival nor loss shows in the result.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ganscale.data import keyed, open_dataset
from ganscale.data.pixels import to_float
from ganscale.errors import GanscaleError, ResourceError, RunFailed, UserError
from ganscale.explain import (
    EXPLAINERS,
    Chunk,
    Explainer,
    Explanation,
    Partial,
    Request,
    Subject,
    Target,
    build_explainer,
    drive,
    find_explainer,
    make_request,
    next_directory,
    subject_of_run,
)
from ganscale.runtime.evaluation import evaluation_board
from ganscale.runtime.run import Networks, latents
from ganscale.runtime.threads import THREADS, one_thread

if TYPE_CHECKING:
    from pathlib import Path

    from ganscale.dashboards import TensorBoardSink
    from ganscale.runtime.run import Run

CHUNKS_IN_FLIGHT = 2  # a worker: one in work, one waiting for it
RESTARTS = 3  # of one actor, and tries of one chunk
POINTS_RANGE = None  # points of the plane have no bounds

Execute = Callable[[list[Chunk]], Iterator[tuple[int, Partial]]]


def explain_run(
    run: Run,
    method: str,
    *,
    target: str | Target,
    num_samples: int,
    workers: int,
    seed: int,
    options: Mapping[str, Any],
    address: str | None,
    between: Callable[[], None] | None = None,
    board: TensorBoardSink | None = None,
) -> Explanation:
    """Do what ``Run.explain`` says; ``between`` is called before each chunk, and may raise to give up."""
    explainer_class = find_explainer(method, EXPLAINERS)
    if num_samples < 1:
        raise UserError("--num-samples", "be at least 1", num_samples, "use --num-samples 8")
    if workers < 0:
        raise UserError("--workers", "be 0 (in this process, without Ray) or more", workers, "use --workers 1")
    networks = run.networks
    inputs = _inputs(run, explainer_class.input_name, num_samples, seed)
    request = make_request(explainer_class, inputs, seed=seed, options=options)
    explanation = explain_networks(
        networks, request, target=str(target), workers=workers, address=address, between=between
    )
    explanation.meta["run"] = {"name": run.name, "images": networks.images}
    _write(run.path, explanation, networks.images, board)
    return explanation


def explain_networks(
    networks: Networks,
    request: Request,
    *,
    target: str,
    workers: int,
    address: str | None = None,
    between: Callable[[], None] | None = None,
) -> Explanation:
    """Run ``request`` on ``networks`` with ``workers`` Ray actors (0: in this process) and return the explanation."""
    began = time.perf_counter()
    with one_thread():
        explainer = build_explainer(subject_of(networks, target), request)
        here = None if between is None else lambda chunks: _run_here(explainer, chunks, between)
        with actor_pool(networks, request, target, workers, address) if workers else nullcontext(here) as execute:
            explanation = drive(explainer, execute=execute)
    cost = {"workers": workers, "threads": THREADS, "seconds": time.perf_counter() - began}
    explanation.meta["cost"] |= cost
    return explanation


def _run_here(explainer: Explainer, chunks: list[Chunk], between: Callable[[], None]) -> Iterator[tuple[int, Partial]]:
    for chunk in chunks:
        between()
        yield chunk.index, explainer.run(chunk)


def subject_of(networks: Networks, target: str) -> Subject:
    """Return what is explained: the critic's logit, with the generator beside it."""
    bounds = {"value_range": POINTS_RANGE} if networks.config.data.channels == 2 else {}
    return subject_of_run(target=target, critic=networks.critic, generator=networks.generator, **bounds)


@contextmanager
def actor_pool(
    networks: Networks, request: Request, target: str, workers: int, address: str | None
) -> Iterator[Execute]:
    """Hold ``workers`` actors that know the networks and the request; yields what ``drive`` takes as ``execute``.

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
        job = [ray.put((networks.to_arrays(), request, target))]  # in a list, so that it travels as a reference
        actor = ray.remote(num_cpus=1, max_restarts=RESTARTS, max_task_retries=RESTARTS)(ChunkWorker)
        actors = [actor.remote() for _ in range(workers)]
        try:
            yield lambda chunks: run_chunks(actors, job, chunks)
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

            arrays, request, target = ray.get(job[0])
            self._explainer = build_explainer(subject_of(Networks(**arrays), target), request)
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


def _inputs(run: Run, input_name: str, num: int, seed: int) -> dict[str, torch.Tensor]:
    """Return what the method looks at: latents, or real and generated images by turns."""
    networks = run.networks
    if input_name == "z":
        return {"z": latents(num, networks.generator.latent, seed=seed, purpose="explain")}
    dataset = open_dataset(run.config.data, split="train")
    num_fake = num // 2
    chosen = keyed.keyed_permutation(len(dataset), seed, purpose="explain")[: num - num_fake]
    pixels, labels = dataset.read(np.sort(chosen))
    real = to_float(pixels) if dataset.kind == "image" else pixels
    fake = (
        networks.draw_float(latents(num_fake, networks.generator.latent, seed=seed, purpose="explain"))
        if num_fake
        else real[:0]
    )
    order = torch.tensor([i // 2 if i % 2 == 0 else len(real) + i // 2 for i in range(num)])
    return {
        "x": torch.cat([real, fake])[order],
        "generated": torch.cat([torch.zeros(len(real)), torch.ones(num_fake)]).bool()[order],
        "labels": torch.cat([labels, torch.full((num_fake,), -1)])[order],
    }


def _write(run_dir: Path, explanation: Explanation, images: int, board: TensorBoardSink | None) -> None:
    from ganscale.dashboards import write_panels

    directory = next_directory(run_dir / "explanations", explanation.method)
    directory.parent.mkdir(exist_ok=True)
    explanation.save(directory, also_write=lambda aside: write_panels(explanation, aside))
    with evaluation_board(run_dir) if board is None else nullcontext(board) as shown:
        shown.write_explanation(explanation, images)


def _check_cpus(workers: int, cpus: int, where: str) -> None:
    if workers > cpus:
        raise ResourceError(
            "--workers", f"be at most {cpus}, the CPU cores of {where}", workers, f"use --workers {cpus}"
        )
