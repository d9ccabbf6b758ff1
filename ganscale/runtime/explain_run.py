"""Explaining a run: which samples, which classifier, which networks beside; then the files, panels and TensorBoard."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ganscale import ops
from ganscale.data import keyed, open_dataset
from ganscale.data.pixels import to_float
from ganscale.errors import RunFailed, UserError, nearest
from ganscale.explain import (
    EXPLAINERS,
    Explainer,
    Explanation,
    Limits,
    Target,
    find_explainer,
    make_request,
    next_directory,
)
from ganscale.explain.subject import looks_across_its_batch
from ganscale.files import is_full_disk
from ganscale.progress import images_of
from ganscale.runtime.classifiers import IN_DOMAIN, find_classifier
from ganscale.runtime.evaluation import evaluation_board
from ganscale.runtime.explain_fanout import Job, explain_networks
from ganscale.runtime.run import latents

if TYPE_CHECKING:
    from pathlib import Path

    from ganscale.dashboards import TensorBoardSink
    from ganscale.data.dataset import Dataset
    from ganscale.runtime.run import Networks, Run

SAMPLES = ("both", "real", "generated")
_INNER = {"run", "actors", "between", "keeping", "board"}  # arguments that Run.explain does not have
COMPANIONS = 3  # a group of four, the usual one of minibatch standard deviation


def all_options(method: str, options: Mapping[str, Any] | None, named: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``options`` and those ``named`` in a call of ``Run.explain`` together.

    Raises UserError for a name that is neither an argument nor an option of ``method``, and for one given twice.
    """
    known = find_explainer(method, EXPLAINERS).Options.model_fields
    for name in named:
        if name not in known:
            arguments = inspect.signature(explain_run).parameters.keys() - _INNER
            raise UserError("argument of explain", "be a known one", name, nearest(name, [*arguments, *known]))
        if name in (options or {}):
            raise UserError(f"option {name}", "be given once", "two values", "leave it out of options")
    return {**(options or {}), **named}


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
    classifier: Any = None,
    samples: str = "both",
    limits: Limits | None = None,
    actors: Sequence[Any] | None = None,
    between: Callable[[], None] | None = None,
    keeping: AbstractContextManager[object] | None = None,
    board: TensorBoardSink | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Explanation:
    """Do what ``Run.explain`` says; ``between`` is called before each chunk, and may raise to give up.

    ``keeping`` is entered around what is written, and may raise to the same end.
    """
    if workers < 0:
        raise UserError("--workers", "be 0 (in this process, without Ray) or more", workers, "use --workers 1")
    with ops.using(run.config.ops.impl):
        job = make_job(
            run,
            method,
            target=str(target),
            num_samples=num_samples,
            seed=seed,
            options=options,
            classifier=classifier,
            samples=samples,
        )
    explanation = explain_networks(
        job,
        workers=workers,
        address=address,
        between=between,
        limits=limits,
        actors=actors,
        on_progress=on_progress,
    )
    with keeping or nullcontext():
        keep(run, explanation, board)
    return explanation


def make_job(
    run: Run,
    method: str,
    *,
    target: str,
    num_samples: int,
    seed: int,
    options: Mapping[str, Any],
    classifier: Any = None,
    samples: str = "both",
) -> Job:
    """Read what an explanation of ``run`` needs; raises the UserError family before anything is computed."""
    explainer = find_explainer(method, EXPLAINERS)
    asked = Target.parse(target)
    if num_samples < 1:
        raise UserError("--num-samples", "be at least 1", num_samples, "use --num-samples 8")
    if samples not in SAMPLES:
        raise UserError("--samples", f"be one of {', '.join(SAMPLES)}", samples, "leave it out")
    make_request(explainer, torch.zeros(1, 1, 1, 1), options=options)  # a wrong option is refused before work
    networks = run.networks
    dataset = open_dataset(run.config.data, split="train")
    latent = asked.of_generator or (asked.kind == "unit" and _is_of_generator(asked, networks.generator))
    inputs = _inputs(run, dataset, explainer, num_samples, seed, latent=latent, samples=samples)
    wanted = explainer.wants if dataset.kind == "image" else ()  # points of the plane have no classifier
    served = "classifier" in (*explainer.needs, *wanted)
    wants = classifier is None and (served or asked.kind == "class" or _of_classifier(asked))
    source = find_classifier(IN_DOMAIN if wants else classifier, run.config.data) if wants or classifier else None
    request = make_request(explainer, inputs, seed=seed, options=options)
    others = _real(dataset, 1 + COMPANIONS, seed, purpose="explain beside")[0]
    return Job(
        networks=networks,
        request=request,
        target=target,
        classifier=source,
        reference=others[:1],
        companions=others[1:] if looks_across_its_batch(networks.critic, others) else None,
        earlier=_earlier(run, request.options.get("checkpoints", 1) - 1),
        names={"classes": list(dataset.class_names), "factors": list(getattr(dataset, "factor_names", ()))},
    )


def _earlier(run: Run, count: int) -> tuple[Networks, ...]:
    """Return the networks of up to ``count`` checkpoints before the one explained, evenly spread, the oldest first."""
    if count < 1:
        return ()
    from ganscale.runtime.run import load
    from ganscale.training import checkpoint as checkpoints

    now, kept = run.networks.images, checkpoints.names(run.path / "checkpoints")
    before = [path for path in kept if images_of(path.name) < now]
    places = np.unique(np.linspace(0, len(before) - 1, min(count, len(before))).round().astype(int))
    return tuple(load(before[place]).networks for place in places)


def keep(run: Run, explanation: Explanation, board: TensorBoardSink | None = None) -> tuple[Path, float]:
    """Write ``explanation`` as the next one of ``run``, with panels, page and the index of all, and to TensorBoard.

    Return its directory and how many seconds its page took, which is what it takes in the report too. Raises RunFailed
    where a picture cannot be drawn; what was computed is kept then.
    """
    from ganscale.dashboards import draw_panels, write_explanation_page, write_index, write_panels

    images = run.networks.images
    explanation.meta["run"] = {"name": run.name, "images": images}
    directory = next_directory(run.path / "explanations", explanation.method)
    directory.parent.mkdir(exist_ok=True)
    drawing, panels, failure = 0.0, {}, None

    def draw(aside: Path) -> None:
        nonlocal drawing, panels, failure
        try:
            panels = draw_panels(explanation)
            write_panels(explanation, aside, panels)
            began = time.perf_counter()
            write_explanation_page(explanation, aside, directory.name, panels)
            drawing = time.perf_counter() - began
        except Exception as error:  # minutes of work are not given up for a picture
            if is_full_disk(error):
                raise
            failure = error

    explanation.save(directory, also_write=draw)
    try:
        write_index(directory.parent)
    except Exception as error:  # nor for the page that lists it
        if is_full_disk(error):
            raise
        failure = failure or error
    if failure is not None:
        why = f"{type(failure).__name__}: {failure}"
        raise RunFailed(f"{directory} is kept, but not all of its pictures: {why}") from failure
    with evaluation_board(run.path) if board is None else nullcontext(board) as shown:
        shown.write_explanation(explanation, images, panels)
    return directory, drawing


def _is_of_generator(target: Target, generator: torch.nn.Module) -> bool:
    from ganscale.explain.layers import layer_names

    layer = str(target.layer).partition("#")[0]
    return layer.startswith("G.") or layer in layer_names(generator)


def _of_classifier(target: Target) -> bool:
    return str(target.layer).startswith("C.")


def _inputs(
    run: Run, dataset: Dataset, explainer: type[Explainer], num: int, seed: int, *, latent: bool, samples: str
) -> dict[str, torch.Tensor]:
    """Return what the method looks at: latents, or real and generated images; and what it wants beside them."""
    networks = run.networks
    z = latents(num, networks.generator.latent, seed=seed, purpose="explain")
    if explainer.input_name == "z":
        found = {"z": z}
    elif latent:
        found = {"x": z, "images": networks.draw_float(z)}
    else:
        found = _images(run, dataset, num, seed, samples)
    for name, count in explainer.beside.items():
        if name == "latents":
            found[name] = latents(count, networks.generator.latent, seed=seed, purpose="explain beside")
            continue
        if name == "known":
            found[name], found[f"{name}_labels"] = _known(dataset, count, seed)
            continue
        source = dataset if name == "real" else open_dataset(run.config.data, split="held-out")
        found[name], found[f"{name}_labels"] = _real(source, count, seed, purpose=f"explain {name}")
    return found


def _images(run: Run, dataset: Dataset, num: int, seed: int, samples: str) -> dict[str, torch.Tensor]:
    """Return images, real and generated by turns unless only one kind was asked for, with labels (-1: generated)."""
    networks = run.networks
    num_fake = {"both": num // 2, "real": 0, "generated": num}[samples]
    num_real = num - num_fake
    if num_real > len(dataset):
        most = len(dataset) * (2 if samples == "both" else 1)
        rule = f"be at most {most}: {dataset.name} has {len(dataset)} samples"
        raise UserError("--num-samples", rule, num, f"use --num-samples {most}, or --samples generated")
    real, labels = _real(dataset, num_real, seed, purpose="explain")
    fake = networks.draw_float(latents(max(num_fake, 1), networks.generator.latent, seed=seed, purpose="explain"))
    order = torch.arange(num)
    if samples == "both":
        order = torch.tensor([i // 2 if i % 2 == 0 else num_real + i // 2 for i in range(num)])
    found = {
        "x": torch.cat([real, fake[:num_fake]])[order],
        "generated": torch.cat([torch.zeros(num_real), torch.ones(num_fake)]).bool()[order],
        "labels": torch.cat([labels, torch.full((num_fake,), -1)])[order],
    }
    if samples == "real" and hasattr(dataset, "masks"):  # drawn figures say which pixels are theirs
        rows = _chosen(dataset, num, seed, purpose="explain")
        found["mask"] = torch.from_numpy(dataset.masks(rows).any(axis=1))
    return found


def _chosen(dataset: Dataset, num: int, seed: int, *, purpose: str) -> np.ndarray:
    return np.sort(keyed.keyed_permutation(len(dataset), seed, purpose=purpose)[:num])


def _known(dataset: Dataset, num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images with the factors that made them, [n, F]: those of drawn figures, the latents of a run's samples."""
    factors = getattr(dataset, "factors", getattr(dataset, "latents", None))
    if factors is None:
        raise UserError("data", "have known factors", dataset.name, "use a run trained on shapes, or on run:RUN")
    rows = _chosen(dataset, num, seed, purpose="explain known")
    return to_float(dataset.read(rows)[0]), torch.as_tensor(factors)[torch.from_numpy(rows)].double()


def _real(dataset: Dataset, num: int, seed: int, *, purpose: str) -> tuple[torch.Tensor, torch.Tensor]:
    pixels, labels = dataset.read(_chosen(dataset, num, seed, purpose=purpose))
    return (to_float(pixels) if dataset.kind == "image" else pixels), labels
