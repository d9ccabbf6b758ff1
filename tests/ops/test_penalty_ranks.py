"""A step of the penalty alone (lazy regularisation) on two real gloo ranks: every parameter gets its gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from penalty_cases import case
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ganscale import ops
from ganscale.ops.penalty import plan as penalty_plan

pytestmark = pytest.mark.distributed
SAMPLES = 6
NAMES = ["k4s2p1-16", "smooth"]


def _critic(name):
    critic, x = case("k4s2p1-16", samples=SAMPLES)
    if name == "smooth":
        critic[1] = nn.Softplus()  # takes the piecewise way
    return critic, x


def _rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    penalty_plan.PAYS_FROM = 0
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for name in NAMES:
        critic, x = _critic(name)
        mine = x[rank::2]
        wrapped = DistributedDataParallel(critic)
        choices = [ops.explain_choice(c, mine).path for c in (critic, wrapped)]
        for _ in range(2):  # the second step fails where the first left a parameter without a gradient
            critic.zero_grad()
            ops.gradient_penalty(wrapped, mine).mean().backward()
        parallel = [p.grad.clone() for p in critic.parameters()]
        critic.zero_grad()
        ops.gradient_penalty(critic, mine).mean().backward()
        for p in critic.parameters():
            dist.all_reduce(p.grad)
            p.grad /= 2
        found[name] = choices, parallel, [p.grad for p in critic.parameters()]
    torch.save(found, f"{folder}/rank-{rank}.pt")
    dist.destroy_process_group()


def test_a_penalty_alone_gives_every_rank_the_gradients_of_one_process(tmp_path: Path):
    mp.spawn(_rank_main, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True)
        for name in NAMES:
            critic, x = _critic(name)
            ops.gradient_penalty(critic, x, impl="reference").mean().backward()
            choices, *gradients = found[name]
            assert choices == (["fused", "piecewise"] if name == NAMES[0] else ["piecewise", "piecewise"])
            for way in gradients:
                for g, p in zip(way, critic.parameters(), strict=True):
                    plain = torch.zeros_like(p) if p.grad is None else p.grad
                    torch.testing.assert_close(g, plain, rtol=1e-10, atol=1e-13)
