"""From one CPU worker to two: ``python -m benchmarks.scaling [--rounds N] [--window-s S] [--only NAME]``.

Two processes with one thread each. All contenders train the same networks on the same images to the same
bits and take turns in windows of some tenths of a second, so that a busy moment of the machine hits all of them:

- one worker: rank 0 alone, the other one waits; efficiency is measured against it
- two alone: both train, each for itself: what the machine gives two processes that exchange nothing
- ours: two ranks that train together and sum through memory that they share
- ours over gloo, one flat blocking all-reduce, overlapped buckets, DistributedDataParallel: all sums are gloo's

*Weak* scaling: the batch per worker stays; *strong*: the global batch stays. Efficiency is the images per second of
two over twice those of one: of the least times of all rounds, and as the median over rounds of the two windows' ratio.
Wall milliseconds; those of the process (all threads, gloo's too; the mean of the ranks) beside them. The efficiency of
the process leaves out waiting: an upper bound, and all that a machine busy with other programs can tell.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks import exchanges
from ganscale.bench.machine import facts
from ganscale.config import RunConfig, override
from ganscale.memory import keep_freed_memory
from ganscale.presets import preset
from ganscale.training import step as steps
from ganscale.training.process_group import Group, solo_group, torch_group
from ganscale.training.random import Draws
from ganscale.training.state import TrainState

ALONE, TWO_ALONE, OURS = "one worker", "two alone", "ours"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What is measured: presets at 32x32, images per worker, channels of the first layer."""

    presets: tuple[str, ...] = ("wgan-gp-64", "dcgan-64")
    batch: int = 64
    width: int = 32
    rounds: int = 15
    window_s: float = 0.4
    command: str = "python -m benchmarks.scaling"


@dataclass(frozen=True, slots=True)
class Window:
    """Wall and process seconds of one batch in one window."""

    wall_s: float
    process_s: float


@dataclass(slots=True)
class Contender:
    """One way to train; ``run`` takes a number of batches, and does nothing on a rank that only waits."""

    name: str
    scaling: str  # weak or strong
    images: int  # of a batch, over all workers
    run: Callable[[int], None]
    weights: Callable[[], torch.Tensor]
    windows: list[Window] = field(default_factory=list)


def training(config: RunConfig, group: Group, way: Callable[[TrainState], exchanges.Way]) -> tuple[Callable, Callable]:
    """Return (train a number of batches, the critic's and the generator's weights) for one way of exchanging."""
    state, draws = TrainState(config, group), Draws(0, group.device)
    before, steps.PENALTIES = steps.PENALTIES, exchanges.UNWRAPPED
    phases = steps.build_phases(config)
    steps.PENALTIES = before
    chosen, bits = way(state), torch.Generator().manual_seed(1)
    shape = (config.train.batch, config.data.channels, *config.data.resolution)
    share = group.slots(config.train.batch)
    real = (torch.rand(shape, generator=bits) * 2 - 1)[share.start : share.stop]
    real = real.contiguous(memory_format=torch.channels_last)

    def run(batches: int) -> None:
        before, steps.exchange_gradients = steps.exchange_gradients, chosen.exchange
        for _ in range(batches):
            steps.train_step(
                state, phases, real, draws, lambda: torch.autocast("cpu", enabled=False), gradients=chosen.leave
            )
        steps.exchange_gradients = before

    def weights() -> torch.Tensor:
        nets = (state.nets[name] for name in ("critic", "generator"))
        return torch.cat([p.detach().flatten() for net in nets for p in net.parameters()])

    return run, weights


def contenders(config: RunConfig, batch: int, group: Group) -> Iterator[Contender]:
    """Yield all contenders; ``batch`` is that of one worker in weak scaling, and the global one in strong."""
    alone, both = (override(config, {"train.batch": size}) for size in (batch, 2 * batch))
    run, weights = training(alone, solo_group("cpu"), exchanges.ours)
    yield Contender(TWO_ALONE, "weak", 2 * batch, run, weights)
    run, weights = training(alone, solo_group("cpu"), exchanges.ours)
    yield Contender(ALONE, "", batch, run if group.is_main else lambda batches: None, weights)
    for scaling, used in (("weak", both), ("strong", alone)):
        for name, way in exchanges.WAYS.items():
            through = group if name == OURS else replace(group, shared=None)  # batch norm's sums too
            yield Contender(name, scaling, used.train.batch, *training(used, through, way))


def measure(contender: Contender, batches: int, group: Group) -> Window:
    """Run one window on all ranks, from a barrier to a barrier."""
    dist.barrier()
    wall, process = time.perf_counter(), time.process_time()
    contender.run(batches)
    spent = torch.tensor([time.process_time() - process])
    dist.barrier()
    wall = time.perf_counter() - wall
    group.sum_([spent])
    ranks = 1 if contender.name == ALONE else group.size
    return Window(wall / batches, spent.item() / batches / ranks)


def compete(config: RunConfig, settings: Settings, group: Group) -> list[Contender]:
    """Return all contenders of one preset with their windows."""
    found = list(contenders(config, settings.batch, group))
    cycle = config.optim.critic.repeats
    for contender in found:
        measure(contender, cycle, group)
    slowest = max(measure(contender, cycle, group).wall_s for contender in found)
    batches = group.broadcast_object(cycle * max(1, round(settings.window_s / slowest / cycle)))
    for turn in range(settings.rounds):
        first = turn % len(found)
        for contender in found[first:] + found[:first]:
            contender.windows.append(measure(contender, batches, group))
    check(found, group)
    return found


def check(found: list[Contender], group: Group) -> None:
    """Stop where ways to exchange have not led to the same weights: then they did not do the same work."""
    for scaling in ("weak", "strong"):
        weights = [c.weights() for c in found if c.scaling == scaling and c.name != TWO_ALONE]
        for other in weights[1:]:
            assert torch.equal(other, weights[0]), f"ways differ by {(other - weights[0]).abs().max()}"


def table(found: list[Contender]) -> Iterator[str]:
    """Yield the lines of a Markdown table, then how ours stands to each peer."""
    one = next(c for c in found if c.name == ALONE)
    yield (
        "| scaling | contender | ms a batch, least | median | process ms | images/s | "
        "efficiency, least | median | of the process |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for c in sorted(found, key=lambda c: ("weak strong".find(c.scaling), c.name != ALONE, c.name != TWO_ALONE)):
        walls = [w.wall_s for w in c.windows]
        work = c.images / one.images / (1 if c is one else 2)
        least = work * min(w.wall_s for w in one.windows) / min(walls)
        process = statistics.median(w.process_s for w in c.windows)
        shares = least, work * ratio(one, c), work * ratio(one, c, "process_s")
        yield (
            f"| {c.scaling or '-'} | {c.name} | {1000 * min(walls):.1f} | {1000 * statistics.median(walls):.1f} | "
            f"{1000 * process:.1f} | {c.images / min(walls):.0f} | " + " | ".join(f"{x:.3f}" for x in shares) + " |"
        )
    yield ""
    for mine in (c for c in found if c.name == OURS):
        peers = [c for c in found if c.scaling == mine.scaling and c.name not in (ALONE, TWO_ALONE, OURS)]
        words = ", ".join(f"{ratio(c, mine):.3f} of {c.name}" for c in peers)
        yield f"{mine.scaling}: the speed of ours (median of the ratios) is {words}"


def ratio(a: Contender, b: Contender, clock: str = "wall_s") -> float:
    """Return the time of ``a`` over that of ``b``: the median over rounds, in each of which they took turns."""
    return statistics.median(getattr(x, clock) / getattr(y, clock) for x, y in zip(a.windows, b.windows, strict=True))


def _rank_main(rank: int, folder: str, settings: Settings) -> None:
    torch.set_num_threads(1)
    kept = keep_freed_memory()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    group, lines, load = torch_group("cpu"), [], os.getloadavg()[0]
    for name in settings.presets:
        config = override(preset(name), {"data.resolution": 32, "model.width": settings.width})
        found = compete(config, settings, group)
        lines += [f"\n{name} at 32x32x3, width {settings.width}, {settings.batch} images a worker (weak):\n"]
        lines += table(found)
    if group.is_main:
        about = facts("cpu", rounds=settings.rounds, memory_kept=kept, command=settings.command)
        about["machine"] = (
            about["machine"].partition(",")[0] + f", {os.cpu_count()} cores, 2 workers with 1 thread each"
        )
        about["load"] = f"{load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end (2 of it is this benchmark)"
        about["measured"] = f"wall time, {settings.rounds} interleaved rounds in windows of {settings.window_s:g} s"
        print("\n".join([*(f"- {key}: {value}" for key, value in about.items()), *lines]))
    dist.destroy_process_group()


def main(arguments: list[str] | None = None) -> None:
    """Print Markdown tables."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=defaults.rounds)
    parser.add_argument("--window-s", type=float, default=defaults.window_s)
    parser.add_argument("--batch", type=int, default=defaults.batch)
    parser.add_argument("--width", type=int, default=defaults.width)
    parser.add_argument("--only", action="append", help="a preset; may be given several times")
    asked = vars(parser.parse_args(arguments))
    asked["command"] = shlex.join(["python", "-m", "benchmarks.scaling", *(arguments or sys.argv[1:])])
    asked["presets"] = tuple(asked.pop("only") or defaults.presets)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank_main, args=(folder, Settings(**asked)), nprocs=2)


if __name__ == "__main__":
    main()
