"""Laws of ``train.cuda_graphs``: the recorded step is the eager step, and where it cannot be had it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from recorded import record

from ganscale import ops
from ganscale.config import RunConfig, override
from ganscale.errors import ConfigError
from ganscale.runtime.placement import Resources, place
from ganscale.training import train
from ganscale.training.autoencoding import phases_of
from ganscale.training.cuda_graphs import Body, FixedDraws, GraphedPhases
from ganscale.training.process_group import Group, solo_group
from ganscale.training.random import Draws
from ganscale.training.state import TrainState
from ganscale.training.step import leave_gradients, train_step

STEPS = 20
AUTOENCODER = {
    "model.generator": "autoencoder",
    "model.critic": "autoencoder",
    "penalty.name": "none",
    "train.batch": 12,  # which images are judged moves from step to step unless that is counted within a batch
}


class Counted:
    """A capture that counts how often it is asked for one."""

    def __init__(self) -> None:
        self.captures = 0

    def __call__(self, body: Body) -> Body:
        self.captures += 1
        return record(body)


def trained(config: RunConfig, differentiate, device: str) -> tuple[TrainState, dict[str, float]]:
    """Return the state and the mean statistics after ``STEPS`` batches."""
    group = solo_group(device)
    state, draws, phases = TrainState(config, group), Draws(0, group.device), phases_of(config)
    generator = torch.Generator().manual_seed(1)
    height, width = config.data.resolution
    for _ in range(STEPS):
        real = torch.rand(config.train.batch, config.data.channels, height, width, generator=generator) * 2 - 1
        real = real.to(device, memory_format=torch.channels_last if height > 1 else torch.contiguous_format)
        bf16 = config.train.precision == "bf16"
        autocast = lambda bf16=bf16: torch.autocast(device, dtype=torch.bfloat16, enabled=bf16)  # noqa: E731
        train_step(state, phases, real, draws, autocast, differentiate)
    return state, state.stats.tick()[0]


def tensors(state: TrainState) -> dict[str, torch.Tensor]:
    return {f"{part}/{name}": value for part, rows in state.parts().items() for name, value in rows.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"penalty.every": 3, "train.micro_batch": 5},
        {"loss.name": "relativistic", "train.precision": "bf16"},
        {**AUTOENCODER, "loss.name": "reconstruction", "train.precision": "bf16"},
        {**AUTOENCODER, "loss.name": "elbo"},
    ],
    ids=["critic", "lazy penalty, in passes", "bf16", "autoencoder", "vae"],
)
def test_a_phase_is_recorded_without_waiting_and_its_replays_give_the_eager_run_bit_by_bit(
    tiny: RunConfig, changes: dict
):
    config = override(tiny, changes)
    capture = Counted()
    with ops.plain_torch():  # whose every operator is seen
        eager, eager_means = trained(config, leave_gradients, "cpu")
        replayed, replayed_means = trained(config, GraphedPhases(capture), "cpu")
    assert capture.captures == len(phases_of(config))
    assert replayed_means == eager_means
    for name, truth in tensors(eager).items():
        assert torch.equal(tensors(replayed)[name], truth), name


def test_inputs_are_copied_into_tensors_that_stay_in_place():
    draws = Draws(3, torch.device("cpu"))
    fixed = FixedDraws(draws, origin=100)
    z, eps = fixed.normal("critic/z", 104, 5, 7), fixed.uniform("critic/eps", 100, 5)
    assert torch.equal(z, draws.normal("critic/z", 104, 5, 7))
    fixed.refill(200)
    assert fixed.normal("critic/z", 204, 5, 7) is z
    assert torch.equal(z, draws.normal("critic/z", 204, 5, 7))
    assert torch.equal(eps, draws.uniform("critic/eps", 200, 5))


def test_every_shape_of_the_batch_is_recorded_once(tiny: RunConfig):
    capture = Counted()
    graphed = GraphedPhases(capture)
    state, draws, phases = TrainState(tiny, solo_group("cpu")), Draws(0, torch.device("cpu")), phases_of(tiny)
    with ops.plain_torch():
        for size in (16, 16, 8, 8, 16):
            real = torch.zeros(size, 1, 28, 28)
            train_step(state, phases, real, draws, lambda: torch.autocast("cpu", enabled=False), graphed)
    critic, generator = 2, 2  # two sizes each; the generator's turns are the second and the fourth
    assert capture.captures == critic + generator


@pytest.mark.parametrize(
    ("group", "said"),
    [
        (Group(rank=0, size=1, device=torch.device("cpu")), "be false without a GPU, got true on cpu"),
        (Group(rank=0, size=2, device=torch.device("cuda", 0)), "be false with several workers, got true with 2"),
    ],
)
def test_it_is_refused_where_there_is_nothing_to_capture_or_several_ranks(
    tmp_path: Path, tiny: RunConfig, group: Group, said: str
):
    with pytest.raises(ConfigError, match=said):
        train(override(tiny, {"train.cuda_graphs": True}), tmp_path, group=group)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("workers", "gpus"), [(1, 0), (2, 2)])
def test_a_placement_that_cannot_use_it_is_refused(tiny: RunConfig, workers: int, gpus: int):
    machine = Resources(cpus=4, gpus=gpus, memory_bytes=None, where="this machine")
    with pytest.raises(ConfigError, match="be false but for one worker on a GPU"):
        place(override(tiny, {"train.cuda_graphs": True}), machine, workers=workers)


def test_one_worker_on_a_gpu_may_use_it(tiny: RunConfig):
    machine = Resources(cpus=4, gpus=1, memory_bytes=None, where="this machine")
    assert place(override(tiny, {"train.cuda_graphs": True}), machine).device == "cuda"


@pytest.fixture
def fixed_algorithms():
    """Without this cuDNN may sum in the order in which threads happen to finish."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


def distance(a: TrainState, b: TrainState, net: str) -> float:
    """Return |a - b| over the parameters of one network."""
    pairs = zip(a.nets[net].parameters(), b.nets[net].parameters(), strict=True)
    return sum((x.detach() - y.detach()).square().sum().item() for x, y in pairs) ** 0.5


@pytest.mark.gpu
@pytest.mark.usefixtures("fixed_algorithms")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train.precision": "bf16"},
        {"loss.name": "relativistic", "penalty.every": 3},
        {"ops.impl": "fused"},
        {**AUTOENCODER, "loss.name": "elbo"},
    ],
)
def test_captured_steps_equal_eager_steps_loss_for_loss(tiny: RunConfig, changes: dict):
    rates = {"optim.generator.lr": 2e-3, "optim.critic.lr": 2e-3}  # so that the losses move far from their beginning
    config = override(tiny, {"model.width": 16, **rates, **changes})
    before = ops.use_impl(config.ops.impl)
    try:
        eager, eager_means = trained(config, leave_gradients, "cuda")
        captured, captured_means = trained(config, GraphedPhases(), "cuda")
    finally:
        ops.use_impl(before)
    # Equal bits are usual; a convolution that takes another algorithm while it is captured differs by rounding, which
    # Adam lets grow. Draws that were not renewed would leave the networks apart by a quarter of their way.
    assert captured_means == pytest.approx(eager_means, rel=1e-2)
    start = TrainState(config, solo_group("cuda"))
    for net in ("generator", "critic"):
        assert distance(captured, eager, net) <= 0.02 * distance(eager, start, net), net
