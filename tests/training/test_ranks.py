"""N ranks compute what one process computes on the same global batch: real gloo processes, float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ganscale.config import LOSS_NAMES, PENALTY_NAMES, RunConfig, from_mapping
from ganscale.losses import ADVERSARIAL
from ganscale.training.process_group import Group, solo_group, torch_group
from ganscale.training.random import Draws
from ganscale.training.state import TrainState
from ganscale.training.step import build_phases, train_step

BATCH, STEPS = 10, 2  # 10 over 4 ranks is uneven: 2, 3, 2, 3


def configs() -> list[RunConfig]:
    """Every loss with every penalty that it may go with."""
    made = []
    for loss in LOSS_NAMES:
        for penalty in PENALTY_NAMES:
            if loss == "wasserstein" and penalty == "none":
                continue
            made.append(
                from_mapping(
                    {
                        "model": {"width": 2, "latent": 4},
                        "data": {"resolution": 8},
                        "loss": {"name": loss},
                        "penalty": {"name": penalty, "center": 1.0 if "gp" in penalty else 0.0, "weight": 1.0},
                        "train": {"batch": BATCH},
                        # plain large steps would amplify rounding; Adam's eps does it too, so few steps are compared
                        "optim": {"generator": {"lr": 1e-3}, "critic": {"lr": 1e-3, "repeats": 1}},
                    }
                )
            )
    assert {c.loss.name for c in made} == set(ADVERSARIAL)
    return made


def weights_after_training(config: RunConfig, group: Group) -> list[torch.Tensor]:
    torch.set_default_dtype(torch.float64)
    try:
        state = TrainState(config, group)
        draws, phases = Draws(0, group.device), build_phases(config)
        generator = torch.Generator().manual_seed(1)
        for _ in range(STEPS):
            real = torch.rand(BATCH, 1, 8, 8, generator=generator)[list(group.slots(BATCH))] * 2 - 1
            train_step(state, phases, real, draws, lambda: torch.autocast("cpu", enabled=False))
        return [p.detach().clone() for net in ("generator", "critic", "ema") for p in state.nets[net].parameters()]
    finally:
        torch.set_default_dtype(torch.float32)


def _rank_main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
    group = torch_group("cpu")
    results = [weights_after_training(config, group) for config in configs()]
    torch.save(results, f"{folder}/rank-{rank}-of-{world}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_equal_one_process_for_every_loss_and_penalty(tmp_path: Path, world: int):
    mp.spawn(_rank_main, args=(world, str(tmp_path)), nprocs=world)
    ranks = [torch.load(tmp_path / f"rank-{rank}-of-{world}.pt", weights_only=True) for rank in range(world)]
    for index, config in enumerate(configs()):
        alone = weights_after_training(config, solo_group("cpu"))
        for tensor_index, truth in enumerate(alone):
            for rank in range(1, world):
                assert torch.equal(ranks[rank][index][tensor_index], ranks[0][index][tensor_index])
            # float64 sums in another order differ by 1e-16 of scale. Where a gradient is zero but for rounding
            # (1e-17), Adam still moves the weight by lr * 1e-17 / eps = 1e-12, hence the absolute part.
            error = (ranks[0][index][tensor_index] - truth).abs().max()
            assert error < 1e-10 * truth.abs().max() + 1e-11, f"{config.loss.name}, {config.penalty.name}: {error}"
