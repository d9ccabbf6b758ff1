"""``ganscale plan``: what to expect of a number of workers before they are paid for, with every assumption stated."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ganscale.cli.group import Verb
from ganscale.cli.output import note, result, result_json, table
from ganscale.cli.params import Amount, WholeNumber, WorkerCount, json_option
from ganscale.errors import UserError
from ganscale.progress import duration

if TYPE_CHECKING:
    from ganscale.config import RunConfig
    from ganscale.runtime.scaling import Expectation, Link, Machines

ASSUMED_INSIDE, ASSUMED_BETWEEN = "10:160", "30:100"  # microseconds:Gbit/s, of PCIe 4 and of a common network


class LinkType(click.ParamType):
    """Latency in microseconds and bandwidth in Gbit/s, as ``30:100``."""

    name = "link"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        """Return both numbers; raises UserError."""
        latency, colon, bandwidth = str(value).partition(":")
        try:
            numbers = float(latency), float(bandwidth)
        except ValueError:
            numbers = -1.0, 0.0
        if not colon or not (0 <= numbers[0] < float("inf")) or not (0 < numbers[1] < float("inf")):
            rule = "be MICROSECONDS:GBIT, the latency and the bandwidth of a link"
            raise UserError(param.opts[0], rule, str(value), "for example 30:100")
        return numbers


@click.command(cls=Verb)
@click.option("--preset", metavar="NAME", help="The recipe; see `ganscale list presets`.")
@click.option("--gpus", metavar="N|MIN:MAX", type=WorkerCount(1), help="How many GPUs, one worker on each.")
@click.option("--workers", metavar="N|MIN:MAX", type=WorkerCount(1), help="How many workers on CPUs instead.")
@click.option("--per-node", metavar="N", type=WholeNumber(1), default=8, show_default=True, help="Workers of a node.")
@click.option("--step-ms", metavar="X", type=Amount(), help="Time of a step of one worker alone (else measured here).")
@click.option(
    "--inside",
    metavar="US:GBIT",
    type=LinkType(),
    default=ASSUMED_INSIDE,
    show_default=True,
    help="Links within a node.",
)
@click.option(
    "--network",
    metavar="US:GBIT",
    type=LinkType(),
    default=ASSUMED_BETWEEN,
    show_default=True,
    help="Links between nodes.",
)
@click.option("--kimg", metavar="X", type=Amount(), help="Train on X thousand images in all.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Change one setting; may be repeated.")
@json_option
def plan(
    preset: str | None,
    gpus: str | None,
    workers: str | None,
    per_node: int,
    step_ms: float | None,
    inside: tuple[float, float],
    network: tuple[float, float],
    kimg: float | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say what to expect of a number of GPUs.

    Memory of each, what they exchange in a step, and how much of their time is spent computing.
    """
    from ganscale.presets import compose
    from ganscale.runtime.estimate import estimate, norm_channels
    from ganscale.runtime.placement import Resources, place, read_count
    from ganscale.runtime.scaling import Machines, expect, step_sums, steps_up_to

    if (gpus is None) == (workers is None):
        raise UserError("--gpus or --workers", "be given, and not both", "both" if gpus else "neither", "use --gpus 8")
    least, count = read_count(gpus or workers)
    config = compose(preset, kimg=kimg, settings=settings)
    there = Resources(cpus=8 * count, gpus=count if gpus else 0, memory_bytes=None, where="the planned cluster")
    placed = place(config, there, workers=workers or 1, gpus=gpus, cpus=None)
    parameters = estimate(config, placed, measure=False).parameters
    image_s, source = _image_seconds(config, step_ms)
    machines = Machines(per_node=per_node, inside=_link(inside), between=_link(network))
    norms, found = norm_channels(config), []
    for size in steps_up_to(count, config.train.batch, least if least < count else 1):
        sums = step_sums(config, parameters, norms, workers=size)
        expected = expect(config.train.batch, size, image_s=image_s, sums=sums, machines=machines)
        one = dataclasses.replace(placed, workers=size, least=size)
        found.append((expected, estimate(config, one, measure=False).memory_bytes))
    assumptions = _assumptions(config, machines, source, norms)
    if as_json:
        rows = [_facts(config, expected, memory) for expected, memory in found]
        result_json({"parameters": parameters, "sizes": rows, "assumptions": assumptions})
        return
    result(table([_HEAD, *[_row(config, expected, memory) for expected, memory in found]]))
    for line in assumptions:
        note(f"assumed: {line}")


def _image_seconds(config: RunConfig, step_ms: float | None) -> tuple[float, str]:
    """Return one worker's seconds for one image, and where the number is from."""
    batch = config.train.batch
    said = f"one worker takes {{:.4g}} ms for a step on the whole batch of {batch}, {{}}"
    if step_ms is not None:
        return step_ms / 1e3 / batch, said.format(step_ms, "as given")
    import torch

    from ganscale.runtime.estimate import seconds_per_image

    device = "cuda" if torch.cuda.is_available() else "cpu"
    image_s = seconds_per_image(config, batch, device=device, threads=torch.get_num_threads())
    where = torch.cuda.get_device_name() if device == "cuda" else "the CPU: give --step-ms for GPUs"
    return image_s, said.format(1e3 * batch * image_s, f"as measured here on {where}")


def _link(numbers: tuple[float, float]) -> Link:
    from ganscale.runtime.scaling import Link

    return Link(latency_s=numbers[0] / 1e6, bytes_per_s=numbers[1] * 1e9 / 8)


def _assumptions(config: RunConfig, machines: Machines, source: str, norms: Sequence[int]) -> list[str]:
    return [
        source,
        f"links within a node of {machines.per_node} workers: {machines.inside}; between nodes: {machines.between}",
        "gradients are summed in a ring, in float32, while nothing is computed; latencies of their buckets overlap",
        *_of_batch_norms(norms),
        f"the global batch stays {config.train.batch}; compute is proportional to images: kind to small shares",
        "where the batch does not divide, all wait for those with an image more",
        "workers are equally fast, and reading images keeps up",
        "memory is a count of networks, optimisers and saved activations; a GPU's context and allocator add to it",
    ]


def _of_batch_norms(norms: Sequence[int]) -> list[str]:
    if not norms:
        return []
    some = f"each of the {len(norms)} batch norms" if len(norms) > 1 else "the batch norm"
    where = "forward in every phase that generates and backward in its own"
    return [f"{some} of the generator waits for rings of its own, {where}"]


_HEAD = (
    "workers",
    "nodes",
    "images each",
    "memory each",
    "sent each",
    "exchange",
    "step",
    "images/s",
    "efficiency",
    "time",
)


def _row(config: RunConfig, found: Expectation, memory: int) -> tuple[str, ...]:
    return (
        str(found.workers),
        str(found.nodes),
        str(found.share),
        f"{memory / 2**20:,.0f} MiB",
        f"{found.exchange_bytes / 2**20:,.2f} MiB",
        f"{1e3 * found.exchange_s:.3g} ms",
        f"{1e3 * found.step_s:.3g} ms",
        f"{found.images_per_s:,.0f}",
        f"{100 * found.efficiency:.0f} %",
        duration(1000 * config.train.kimg / found.images_per_s),
    )


def _facts(config: RunConfig, found: Expectation, memory: int) -> dict[str, Any]:
    return dataclasses.asdict(found) | {
        "memory_bytes": memory,
        "step_s": found.step_s,
        "images_per_s": found.images_per_s,
        "efficiency": found.efficiency,
        "seconds": 1000 * config.train.kimg / found.images_per_s,
    }
