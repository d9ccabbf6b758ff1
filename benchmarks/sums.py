"""What a sum of gradients costs by itself: ``python -m benchmarks.sums [--rounds N]``.

Two processes with one thread each. Over gloo one flat buffer that is copied back (the peer) beside flat buckets of
several sizes whose parts become the gradients, then the same buckets through shared memory (ours), on critics of three
widths. Contenders take turns; milliseconds of wall and process time, the least and the median of all rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from benchmarks.exchanges import flat_blocking
from ganscale.config import override
from ganscale.models import build_critic
from ganscale.presets import preset
from ganscale.training.exchange import exchange_gradients
from ganscale.training.process_group import Group, torch_group

WIDTHS = (32, 64, 128)
flat = flat_blocking(None).exchange
MIB = 1 << 20


def ways() -> dict[str, Callable[[nn.Module, Group], None]]:
    """Return name -> exchange."""

    def over_gloo(net: nn.Module, group: Group, *, bucket_bytes: int) -> None:
        exchange_gradients(net, replace(group, shared=None), bucket_bytes=bucket_bytes)

    sizes = {f"gloo, buckets of {mib:g} MiB": int(mib * MIB) for mib in (0.25, 1, 4)} | {"gloo, one bucket": 1 << 40}
    return (
        {"gloo, one flat buffer, copied back": lambda net, group: flat(net, replace(group, shared=None))}
        | {name: partial(over_gloo, bucket_bytes=size) for name, size in sizes.items()}
        | {"shared memory, buckets of 4 MiB (ours)": exchange_gradients}
    )


def measure(net: nn.Module, exchange: Callable[[nn.Module, Group], None], group: Group) -> tuple[float, float]:
    """Return milliseconds of wall and process time of one exchange of new gradients."""
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    dist.barrier()
    wall, process = time.perf_counter(), time.process_time()
    exchange(net, group)
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - process)


def _rank_main(rank: int, folder: str, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    group = torch_group("cpu")
    if group.is_main:
        print("| parameters | exchange | wall ms, least | median | process ms, least | median |")
        print("|---|---|---|---|---|---|")
    for width in WIDTHS:
        net = build_critic(override(preset("dcgan-64"), {"model.width": width}))
        net = net.to(memory_format=torch.channels_last)
        found = {name: [] for name in ways()}
        for _ in range(rounds):
            for name, exchange in ways().items():
                found[name].append(measure(net, exchange, group))
        for name, rows in found.items():
            walls, processes = zip(*rows[1:], strict=True)  # the first one meets cold memory
            if group.is_main:
                cells = [f(x) for x in (walls, processes) for f in (min, statistics.median)]
                count = sum(p.numel() for p in net.parameters())
                print(f"| {count:,} | {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    dist.destroy_process_group()


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank_main, args=(folder, parser.parse_args().rounds), nprocs=2)


if __name__ == "__main__":
    main()
