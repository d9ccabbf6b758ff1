"""What a run will need: parameters and memory counted on the networks, time measured on a few real steps."""

from __future__ import annotations

import math
import statistics
import time

import torch
from torch import nn

from ganscale import ops
from ganscale.config import RunConfig, override
from ganscale.data.pixels import to_float
from ganscale.models import build_critic, build_generator
from ganscale.models.layers import BatchNormAct
from ganscale.runtime.placement import Estimate, Plan

FLOAT = 4  # bytes
PROCESS_BYTES = 500 << 20  # interpreter, torch and Ray's client: measured resident size of an idle worker
SECOND_ORDER = 3  # a gradient penalty keeps the forward, the first backward and what connects them
PROBE_BATCH = 32  # images a step of the time probe, where the real share is larger
PROBE_S = 1.0  # of measured steps
LEAST_STEPS = 3  # measured, where they take longer than that
PROBE_STEPS = 16  # at most: more phases than that are averaged incompletely


def estimate(config: RunConfig, plan: Plan, *, measure: bool = True) -> Estimate:
    """Estimate ``plan``; with ``measure`` a few steps are taken to tell the time, unless it is for a cluster."""
    generator, critic = _build(config)
    parameters = {"generator": _size(generator), "critic": _size(critic)}
    return Estimate(
        parameters=parameters,
        memory_bytes=_memory(config, plan, generator, critic),
        disk_bytes=_disk(config, parameters),
        seconds=_seconds(config, plan) if measure and plan.address is None else None,
    )


def disk_bytes(config: RunConfig) -> int:
    """Return the size that the run directory may grow to."""
    generator, critic = _build(config)
    return _disk(config, {"generator": _size(generator), "critic": _size(critic)})


def norm_channels(config: RunConfig) -> list[int]:
    """Return the channels of each batch norm of the generator, whose statistics ranks share."""
    return [part.num_features for part in _build(config)[0].modules() if isinstance(part, BatchNormAct)]


def _build(config: RunConfig) -> tuple[nn.Module, nn.Module]:
    # for real: the meta device and fake tensors take seconds to import, which every launch would wait for
    with torch.random.fork_rng(devices=[]):
        return build_generator(config), build_critic(config)


def _size(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _disk(config: RunConfig, parameters: dict[str, int]) -> int:
    g, c = parameters["generator"], parameters["critic"]
    checkpoint = FLOAT * (2 * g + c + 2 * (g + c))  # generator, its average, critic, two Adam moments of each
    pixels = config.sample.num * config.data.channels * math.prod(config.data.resolution)
    grids = config.train.kimg / config.sample.every_kimg + 2
    ticks = config.train.kimg / config.train.tick_kimg + 2
    # the newest, the best, one that is being evaluated, and one more, as a new one is whole before the oldest goes;
    # a grid lies in samples/ and TensorBoard
    beside = config.evaluate.every_kimg is not None or config.explain.every_kimg is not None
    kept = config.checkpoint.keep + 1 + (config.checkpoint.keep_best is not None) + beside
    return int(checkpoint * kept + 2 * pixels * grids + 16_384 * ticks)


def _memory(config: RunConfig, plan: Plan, generator: nn.Module, critic: nn.Module) -> int:
    g, c = _size(generator), _size(critic)
    batch = min(plan.batch_per_worker, config.train.micro_batch or plan.batch_per_worker)  # of one pass
    state = FLOAT * (2 * g + c + 4 * (g + c))  # nets and average; gradients, their flat buffer, two Adam moments
    through_g = _saved_bytes(generator, (generator.latent,), batch)
    through_c = _saved_bytes(critic, (config.data.channels, *config.data.resolution), batch)
    factor = 2 if config.penalty.name == "none" else 2 + SECOND_ORDER
    activations = max(through_g + through_c, through_c * factor)  # generator phase; critic phase on real and fake
    return PROCESS_BYTES + state + activations


def _saved_bytes(net: nn.Module, shape: tuple[int, ...], batch: int) -> int:
    """Return the bytes that autograd keeps for one backward at ``batch``, on a line through those of 2 and 4 rows."""
    with ops.plain_torch():  # a first compiled operator costs a second of imports, and none keeps more
        two, four = (_saved_at(net, torch.zeros(rows, *shape)) for rows in (2, 4))
    return two + (four - two) * (batch - 2) // 2


def _saved_at(net: nn.Module, x: torch.Tensor) -> int:
    if not any(parameter.requires_grad for parameter in net.parameters()):  # where an autoencoder has no critic
        return 0
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = net(x)  # keeps the graph, and with it every storage, alive: no address is used twice
    assert y.requires_grad
    return sum(kept.values())


def _seconds(config: RunConfig, plan: Plan) -> float | None:
    """Scale the time of an image to ``train.kimg``; start-up and exchange are not in it."""
    per_image = seconds_per_image(config, plan.batch_per_worker, device=plan.device, threads=plan.threads)
    return 1000 * config.train.kimg * per_image / max(1, plan.workers)


def seconds_per_image(config: RunConfig, batch: int, *, device: str, threads: int) -> float:
    """Time one worker's real steps on noise, after one to warm up: seconds for an image of a step on ``batch``.

    It is the median of several rounds (all that ``PROBE_S`` holds): one alone says little of a machine that others use.
    """
    from ganscale.training.autoencoding import phases_of
    from ganscale.training.process_group import solo_group
    from ganscale.training.random import Draws
    from ganscale.training.state import TrainState
    from ganscale.training.step import train_step

    batch = min(batch, PROBE_BATCH)
    probe = override(config, {"train.batch": batch})
    group, threads_before = solo_group(device), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        state, phases, draws = TrainState(probe, group), phases_of(probe), Draws(0, group.device)
        shape = (batch, config.data.channels, *config.data.resolution)
        layout = torch.channels_last if shape[2] > 1 else torch.contiguous_format
        real = to_float(torch.randint(0, 256, shape, dtype=torch.uint8)).to(group.device, memory_format=layout)
        bf16 = config.train.precision == "bf16"
        cycle = min(PROBE_STEPS, math.lcm(*(phase.every for phase in phases)))
        rounds: list[float] = []  # the first one warms up
        while (len(rounds) - 1) * cycle < LEAST_STEPS or sum(rounds[1:]) < PROBE_S:
            began = time.perf_counter()
            for _ in range(cycle):
                train_step(
                    state, phases, real, draws, lambda: torch.autocast(group.device.type, torch.bfloat16, enabled=bf16)
                )
            if group.device.type == "cuda":
                torch.cuda.synchronize()
            rounds.append(time.perf_counter() - began)
        return statistics.median(rounds[1:]) / (cycle * batch)
    finally:
        torch.set_num_threads(threads_before)
