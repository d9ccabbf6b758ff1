"""Laws of ``train.micro_batch``: more passes and less memory, the same gradient and the same draws."""

from __future__ import annotations

import pytest
import torch

from ganscale.config import RunConfig, override
from ganscale.errors import ConfigError
from ganscale.presets import preset
from ganscale.runtime.estimate import estimate
from ganscale.runtime.placement import Resources, place
from ganscale.training.cuda_graphs import GraphedPhases
from ganscale.training.process_group import Group, solo_group
from ganscale.training.random import Draws
from ganscale.training.state import TrainState
from ganscale.training.step import StepContext, build_phases, leave_gradients, train_step

pytestmark = pytest.mark.distributed
MLP = {"model.generator": "mlp", "model.critic": "mlp", "data.resolution": 8}  # no batch norm, which couples samples


@pytest.fixture(autouse=True)
def double():
    """Train in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def one_step(config: RunConfig, gradients=leave_gradients) -> tuple[list[torch.Tensor], dict[str, float]]:
    """Return the gradients of all phases of two batches and the means of what they reported."""
    group = solo_group("cpu")
    state, found = TrainState(config, group), []
    for optimiser in state.optimisers.values():
        optimiser.register_step_pre_hook(
            lambda o, *_: found.append(torch.cat([p.grad.flatten() for p in o.param_groups[0]["params"]]))
        )
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        real = torch.rand(config.train.batch, 1, *config.data.resolution, generator=generator) * 2 - 1
        draws = Draws(0, group.device)
        train_step(state, build_phases(config), real, draws, lambda: torch.autocast("cpu", enabled=False), gradients)
    return found, state.stats.tick()[0]


@pytest.mark.parametrize("micro_batch", [2, 5, 15, 16, 99])
@pytest.mark.parametrize("changes", [{}, {"penalty.every": 2}, {"loss.name": "relativistic", "ops.impl": "fused"}])
def test_passes_add_up_to_the_gradient_of_the_undivided_batch(tiny: RunConfig, changes: dict, micro_batch: int):
    config = override(tiny, MLP | changes)
    whole, whole_means = one_step(config)
    parts, means = one_step(override(config, {"train.micro_batch": micro_batch}))
    assert len(parts) == len(whole) >= 3
    for a, b in zip(parts, whole, strict=True):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()  # float64 sums in another order, some 1e-16 of scale each
    assert means == pytest.approx(whole_means, rel=1e-12)


def test_a_recorded_phase_takes_its_passes_too(tiny: RunConfig):
    config = override(tiny, MLP | {"train.micro_batch": 6})
    eager, _ = one_step(config)
    replayed, _ = one_step(config, GraphedPhases(lambda body: body))
    assert all(torch.equal(a, b) for a, b in zip(replayed, eager, strict=True))


@pytest.mark.parametrize(
    ("batch", "ranks", "micro_batch", "sizes"),
    [
        (16, 1, None, [[16]]),
        (16, 1, 6, [[5, 5, 6]]),
        (16, 2, 4, [[4, 4], [4, 4]]),
        (10, 4, 2, [[1, 1], [1, 2], [1, 1], [1, 2]]),  # shares of 2 and 3: as many passes on every rank
        (10, 3, 64, [[3], [3], [4]]),
    ],
)
def test_every_rank_takes_as_many_passes_of_at_most_so_many_images(
    tiny: RunConfig, batch: int, ranks: int, micro_batch: int | None, sizes: list[list[int]]
):
    config = override(tiny, {"train.batch": batch, "train.micro_batch": micro_batch})
    state = TrainState(config, solo_group("cpu"))
    for rank in range(ranks):
        state.group = Group(rank=rank, size=ranks, device=torch.device("cpu"))
        slots = state.group.slots(batch)
        real = torch.arange(float(batch))[slots.start : slots.stop].view(-1, 1, 1, 1)
        parts = list(StepContext(state, "critic", real, 100 + slots.start, None, None, None).passes())
        assert [len(part.real) for part in parts] == sizes[rank]
        assert torch.equal(torch.cat([part.real for part in parts]), real)
        assert [part.first_slot for part in parts] == [100 + int(part.real[0]) for part in parts]


def test_passes_of_one_image_are_refused(tiny: RunConfig):
    with pytest.raises(ConfigError, match=r"train\.micro_batch must be greater than or equal to 2, got 1"):
        override(tiny, {"train.micro_batch": 1})
    assert override(tiny, ["train.micro_batch=none"]).train.micro_batch is None


def test_memory_is_estimated_for_one_pass():
    config = override(preset("dcgan-64"), {"train.batch": 512})
    machine = Resources(cpus=2, gpus=0, memory_bytes=None, where="this machine")

    def memory(changes: dict) -> int:
        changed = override(config, changes)
        return estimate(changed, place(changed, machine, workers=2), measure=False).memory_bytes

    assert memory({"train.micro_batch": 32}) < memory({}) / 3
    assert memory({"train.micro_batch": 32}) == memory({"train.batch": 64})
    assert memory({"train.micro_batch": 500}) == memory({})
