"""What several ranks compute: cases as data, and what runs them, for ``test_ranks.py``.

Processes start once: four of them meet as 2 ranks, then as 3, then as 4. Each time they compute twice: they sum in
memory that they share, as CPU workers of one machine do, and over gloo, as those of several machines do.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ganscale import ops
from ganscale.config import AUTOENCODING_NAMES, LOSS_NAMES, PENALTY_NAMES, RunConfig, from_mapping, override
from ganscale.errors import RunFailed
from ganscale.models import MODELS
from ganscale.models.layers import BatchNormAct
from ganscale.training.autoencoding import phases_of
from ganscale.training.exchange import exchange_gradients
from ganscale.training.process_group import Group, torch_group
from ganscale.training.random import Draws
from ganscale.training.records import NullSink
from ganscale.training.state import TrainState
from ganscale.training.step import train_step
from ganscale.training.trainer import Trainer

WORLDS = (2, 3, 4)
WAYS = ("shared memory", "gloo")  # of summing
BATCH = 10  # even shares for 2 ranks, uneven ones for 3 (3, 3, 4) and 4 (2, 3, 2, 3)
TINY = {
    "model": {"width": 2, "latent": 4},
    "data": {"resolution": 8},
    "train": {"batch": BATCH},
    "optim": {"generator": {"lr": 1e-3}, "critic": {"lr": 1e-3}},
}
MLP = {"model.generator": "mlp", "model.critic": "mlp"}  # without batch norm


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One training: what one process gives for ``config`` with the whole batch at once, the ranks have to give too."""

    name: str
    config: RunConfig
    impl: str = "auto"
    steps: int = 1
    micro_batch: int | None = None  # of the ranks; the one process takes its batch at once
    bits: int = 64
    critic: Callable[[RunConfig], nn.Module] | None = None  # a user's own, in the place of the configured one


@dataclass(frozen=True, slots=True)
class Outcome:
    """The summed gradients of every phase in turn, each as one vector; the weights of all networks at the end."""

    gradients: list[Tensor]
    weights: dict[str, Tensor]


def tiny(loss: str = "non-saturating", penalty: str = "r1", **changes: object) -> RunConfig:
    center = 1.0 if "gp" in penalty else 0.0
    parts = {"loss": {"name": loss}, "penalty": {"name": penalty, "center": center, "weight": 1.0}}
    return override(from_mapping(TINY | parts), {key.replace("__", "."): value for key, value in changes.items()})


def normed_critic(config: RunConfig) -> nn.Module:
    """Build a critic with batch norm, which none of ours has: its rows then depend on those of other ranks."""
    height, width = config.data.resolution
    conv = nn.Conv2d(config.data.channels, config.model.width, 4, stride=2, padding=1)
    last = nn.Linear(config.model.width * height * width // 4, 1)
    return nn.Sequential(conv, BatchNormAct(config.model.width, "relu"), nn.Flatten(), last, nn.Flatten(0))


def half(penalty: str) -> RunConfig:
    """Return one in bf16 whose penalty outweighs its loss, which the small gradients of first weights would not."""
    changes = {"train.precision": "bf16", "penalty.weight": 1e5, "penalty.center": 1e-6 if "gp" in penalty else 0.0}
    return override(tiny(penalty=penalty, data__resolution=16), changes)


def cases() -> list[Case]:
    """Every loss with every penalty that it may go with, computed both ways; then what else couples ranks."""
    made = []
    for loss in LOSS_NAMES:
        for penalty in PENALTY_NAMES:
            if (loss, penalty) != ("wasserstein", "none"):  # which the configuration refuses
                for impl in ("reference", "fused") if penalty != "none" else ("reference",):
                    made.append(Case(name=f"{loss}, {penalty}, {impl}", config=tiny(loss, penalty), impl=impl))
    for loss in AUTOENCODING_NAMES:
        config = from_mapping(
            TINY
            | {"loss": {"name": loss}, "model": {**TINY["model"], "generator": "autoencoder", "critic": "autoencoder"}}
        )
        made.append(Case(name=f"autoencoder, {loss}", config=config, steps=3))
    lazy, deep = tiny(penalty__every=2), tiny(data__resolution=16)
    mlp, both = override(tiny("wasserstein", "wgan-gp"), MLP), override(lazy, MLP)
    for impl in ("reference", "fused"):
        made.append(Case(name=f"lazy penalty, {impl}", config=lazy, impl=impl, steps=4))
        made.append(Case(name=f"batch norm in two depths, {impl}", config=deep, impl=impl, steps=2))
        made.append(Case(name=f"passes of 2, {impl}", config=mlp, impl=impl, steps=3, micro_batch=2))
        made.append(Case(name=f"lazy, passes of 3, {impl}", config=both, impl=impl, steps=2, micro_batch=3))
    for penalty in ("none", "r1"):
        made.append(Case(name=f"a critic's batch norm, {penalty}", config=tiny(penalty=penalty), critic=normed_critic))
    made.append(Case(name="bf16", config=override(deep, {"train.precision": "bf16"}), bits=32))
    for penalty in PENALTY_NAMES:
        for impl in ("reference", "fused") if penalty != "none" else ("reference",):
            made.append(Case(name=f"bf16 {penalty} {impl}", config=half(penalty), impl=impl, bits=32))
    for config in (tiny("relativistic", "r1-r2"), lazy, mlp):
        made.append(Case(name=f"long, {config.loss.name}", config=config, steps=20, bits=32, micro_batch=2))
    return made


def cases_of(way: str) -> list[Case]:
    """Return the cases that are computed in one way of summing: over gloo one implementation of each penalty."""
    if way != "gloo":
        return cases()
    # what an implementation gives does not know how it will be summed; and one long case shows what many steps do
    chosen = [case for case in cases() if case.impl != "reference" or case.config.penalty.name == "none"]
    return [case for case in chosen if case.steps < 20 or case.config.penalty.name == "r1-r2"]


def outcome(case: Case, group: Group) -> Outcome:
    """Train ``case`` on this rank's share of the images."""
    default, impl = torch.get_default_dtype(), ops.use_impl(case.impl)
    torch.set_default_dtype(torch.float64 if case.bits == 64 else torch.float32)
    try:
        config = override(case.config, {"train.micro_batch": case.micro_batch if group.size > 1 else None})
        family = MODELS[config.model.critic]
        with patch.dict(MODELS, {config.model.critic: replace(family, critic=case.critic or family.critic)}):
            state = TrainState(config, group)
        draws, phases = Draws(0, group.device), phases_of(config)
        gradients: list[Tensor] = []
        for optimiser in state.optimisers.values():
            optimiser.register_step_pre_hook(lambda o, *_: gradients.append(flat(p.grad for p in parameters(o))))
        generator, share = torch.Generator().manual_seed(1), group.slots(BATCH)
        bf16 = config.train.precision == "bf16"
        for _ in range(case.steps):
            real = torch.rand(BATCH, 1, *config.data.resolution, generator=generator)[share.start : share.stop] * 2 - 1
            train_step(state, phases, real, draws, lambda: torch.autocast("cpu", enabled=bf16, dtype=torch.bfloat16))
        weights = {name: flat([*net.parameters(), *net.buffers()]) for name, net in state.nets.items()}
        return Outcome(gradients, weights)
    finally:
        torch.set_default_dtype(default)
        ops.use_impl(impl)


def parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return optimiser.param_groups[0]["params"]


def flat(tensors) -> Tensor:
    return torch.cat([t.detach().double().flatten() for t in tensors])


def sums_of_odd_gradients(group: Group, bucket_bytes: int) -> list[Tensor]:
    """Sum gradients that ranks have in part, of several types and memory layouts; return them as they then are."""
    net = nn.ParameterList([torch.zeros(3), torch.zeros(2, 3, 2, 2), torch.zeros(4), torch.zeros(5)]).double()
    net[1] = nn.Parameter(net[1].detach().to(memory_format=torch.channels_last))
    net[3] = nn.Parameter(net[3].detach().float())
    for index, p in enumerate(net):
        if index != group.rank:  # so that each of the first ranks lacks another one
            p.grad = torch.arange(p.numel(), dtype=p.dtype).view(p.shape) * 10.0**group.rank
    exchange_gradients(net, group, bucket_bytes=bucket_bytes)
    assert all(p.grad.stride() == p.stride() for p in net)
    return [p.grad.clone() for p in net]


def message_after_altering(net: str, guilty: int, group: Group, folder: str) -> str:
    """Train with one number of one rank altered by the least there is; return the error of the tick, or ""."""
    config = tiny(train__kimg=0.02, train__tick_kimg=0.01, data__resolution=28)
    trainer = Trainer(config, Path(folder), group, NullSink())
    if group.rank == guilty:
        with torch.no_grad():
            weights = next(trainer.state.nets[net].parameters()).view(-1)
            weights[0] = torch.nextafter(weights[0], torch.tensor(torch.inf))
    with suppress_run_failed() as caught:
        trainer.run(lambda: False, None)
    return caught.message


class suppress_run_failed(suppress):
    message = ""

    def __init__(self) -> None:
        super().__init__(RunFailed)

    def __enter__(self) -> suppress_run_failed:
        return self

    def __exit__(self, kind, error, trace) -> bool | None:
        self.message = str(error or "")
        return super().__exit__(kind, error, trace)


def rank_main(rank: int, folder: str) -> None:
    """Run everything as one of 2, of 3 and of 4 ranks, those that this process is among."""
    torch.set_num_threads(1)
    for world in WORLDS:
        if rank >= world:
            continue
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
        group = torch_group("cpu")
        assert group.shared is not None, "no memory to share: both ways would be gloo"
        for way, ranks in zip(WAYS, (group, replace(group, shared=None)), strict=True):
            found = found_by(ranks, cases_of(way), Path(folder, f"{way}-{world}"))
            torch.save(found, f"{folder}/{way}-{world}-{rank}.pt")
        dist.destroy_process_group()


def found_by(group: Group, chosen: list[Case], folder: Path) -> dict[str, object]:
    """Return what this rank of ``group`` finds in the ``chosen`` cases; runs are written below ``folder``."""
    outcomes = {case.name: outcome(case, group) for case in chosen}
    drift = {}
    for net, guilty in (("critic", 1), ("generator", group.size - 1), ("generator", 0), ("critic", -1)):
        run_dir = folder / f"{net}-{guilty}"
        run_dir.mkdir(parents=True, exist_ok=True)
        drift[net, guilty] = message_after_altering(net, guilty, group, str(run_dir))
    return {
        "outcomes": {name: (found.gradients, found.weights) for name, found in outcomes.items()},
        "sums": [sums_of_odd_gradients(group, bucket_bytes) for bucket_bytes in (1, 64, 1 << 20)],
        "drift": drift,
    }
