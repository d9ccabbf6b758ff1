"""What a phase computes, and what it does not."""

from __future__ import annotations

import pytest
import torch

from ganscale.config import RunConfig, override
from ganscale.training.process_group import solo_group
from ganscale.training.random import Draws
from ganscale.training.state import TrainState
from ganscale.training.step import build_phases, train_step


@pytest.mark.parametrize(("penalty", "generated"), [("r1", 1 + 1), ("r2", 1 + 2), ("wgan-gp", 1 + 2)])
def test_a_lazy_penalty_generates_only_what_it_reads(tiny: RunConfig, penalty: str, generated: int):
    center = 1.0 if penalty == "wgan-gp" else 0.0
    config = override(tiny, {"penalty.name": penalty, "penalty.center": center, "penalty.every": 2})
    state, phases = TrainState(config, solo_group("cpu")), build_phases(config)
    critic, lazy, _ = phases
    batches = []
    state.nets["generator"].register_forward_hook(lambda net, z, images: batches.append(len(images)))
    real, draws = torch.rand(16, 1, 28, 28) * 2 - 1, Draws(0, torch.device("cpu"))
    for _ in range(2):  # the penalty's turn is the second
        train_step(state, [critic, lazy], real, draws, lambda: torch.autocast("cpu", enabled=False))
    assert batches == [16] * generated
    assert lazy.generates is (generated == 1 + 2)
