"""All that a run is at one moment: networks, their average, optimisers, images seen, running statistics."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from ganscale.config import RunConfig
from ganscale.errors import CheckpointError
from ganscale.models import build_critic, build_generator
from ganscale.models.layers import BatchNormAct
from ganscale.training.checkpoint import Checkpoint
from ganscale.training.process_group import Group
from ganscale.training.records import Histogram
from ganscale.training.soundness import fingerprints, refuse_drift
from ganscale.training.stats import Stats

EMA_RAMP = 0.05  # the half-life is at most this share of the images seen, so a young average is not its first weights


class TrainState:
    """Networks ``generator``, ``critic`` and ``ema`` with one optimiser for each of the first two.

    Initial weights depend on ``train.seed`` alone, so every rank builds the same ones.
    """

    def __init__(self, config: RunConfig, group: Group) -> None:
        self.config, self.group = config, group
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            generator, critic = build_generator(config), build_critic(config)
        layout = torch.channels_last if _is_image_net(generator) else torch.contiguous_format
        self.nets: dict[str, nn.Module] = {
            name: net.to(group.device, memory_format=layout)
            for name, net in (("generator", generator), ("critic", critic))
        }
        self.nets["ema"] = copy.deepcopy(self.nets["generator"]).eval().requires_grad_(False)
        if group.size > 1:
            for name in ("generator", "critic"):
                for module in self.nets[name].modules():
                    if isinstance(module, BatchNormAct):
                        module.sum_over_ranks = group.sum_differentiable
        self.optimisers = {
            name: _adam(config, name, self.nets[name])
            for name in ("generator", "critic")
            if any(True for _ in self.nets[name].parameters())
        }
        self.images = 0
        self.stats = Stats(group)

    @property
    def batches(self) -> int:
        """Global batches of real images consumed so far."""
        return self.images // self.config.train.batch

    def set_learning_rates(self) -> None:
        """Apply the decay that belongs to ``images``: a function of progress, so resuming needs no scheduler state."""
        optim = self.config.optim
        if optim.decay == "constant":
            return
        done = min(1.0, self.images / (1000 * optim.decay_kimg))
        factor = 1.0 - done if optim.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        for optimiser in self.optimisers.values():
            for param_group in optimiser.param_groups:
                param_group["lr"] = param_group["initial_lr"] * factor

    @torch.no_grad()
    def update_ema(self, images: int) -> None:
        """Move the average towards the generator by what ``images`` more images are worth, in half-lives."""
        half_life = min(1000 * self.config.ema.half_life_kimg, EMA_RAMP * self.images)
        keep = 0.5 ** (images / half_life) if half_life > 0 else 0.0
        average, current = self.nets["ema"], self.nets["generator"]
        torch._foreach_lerp_(list(average.parameters()), list(current.parameters()), 1.0 - keep)
        for mine, theirs in zip(average.buffers(), current.buffers(), strict=True):
            mine.copy_(theirs)

    def tick(self) -> tuple[dict[str, float], dict[str, Histogram]]:
        """Return what ``Stats.tick`` does, over all ranks; raises RunFailed where their networks have drifted apart."""
        table = fingerprints(self.nets, self.group)
        statistics = self.stats.tick(rider=table)
        refuse_drift(table, list(self.nets))
        return statistics

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """Return everything as named CPU tensors with storage of their own, ready for a checkpoint.

        Collective; the other ranks get an empty dict, as they write nothing.
        """
        statistics = self.stats.state()
        if not self.group.is_main:
            return {}
        parts = {name: _own(net.state_dict()) for name, net in self.nets.items()}
        for name, optimiser in self.optimisers.items():
            names = {parameter: key for key, parameter in self.nets[name].named_parameters()}
            rows = {
                f"{names[parameter]}/{field}": value
                for parameter, fields in optimiser.state.items()
                for field, value in fields.items()
            }
            parts[f"optimiser-{name}"] = _own(rows)
        parts["statistics"] = _own(statistics)
        if self.group.device.type == "cuda":
            torch.cuda.synchronize(self.group.device)  # the copies were queued; now they have happened
        return parts

    def load(self, checkpoint: Checkpoint) -> None:
        """Become what ``checkpoint`` holds; raises CheckpointError where its tensors don't fit these networks."""
        for name, net in self.nets.items():
            try:
                net.load_state_dict(checkpoint.parts[name])
            except (KeyError, RuntimeError) as error:
                raise CheckpointError(
                    str(checkpoint.path / f"{name}.safetensors"),
                    "fit the configured network",
                    str(error).splitlines()[-1].strip(),
                    "resume with the configuration that the run was started with",
                ) from None
        for name, optimiser in self.optimisers.items():
            parameters = dict(self.nets[name].named_parameters())
            for key, value in checkpoint.parts[f"optimiser-{name}"].items():
                owner, _, field = key.rpartition("/")
                parameter = parameters[owner]
                value = value.to(parameter.device, copy=True)  # "step" as well: the fused Adam wants it there
                if (
                    value.shape == parameter.shape
                ):  # keep the parameter's memory layout: sums then run in the same order
                    value = torch.empty_like(parameter).copy_(value)
                optimiser.state[parameter][field] = value
        self.stats.load(checkpoint.parts["statistics"])
        self.images = checkpoint.images


def _adam(config: RunConfig, name: str, net: nn.Module) -> torch.optim.Adam:
    """Build a network's Adam; with a lazy phase every k batches, lr and betas are rescaled by c = k / (k + 1).

    So k main updates and one penalty update step as far as k main updates would (Karras et al. 2020, appendix B).
    """
    chosen = getattr(config.optim, name)
    lazy = config.penalty.every if name == "critic" and config.penalty.name != "none" else 1
    c = lazy / (lazy + 1) if lazy > 1 else 1.0
    lr = chosen.lr * c
    optimiser = torch.optim.Adam(net.parameters(), lr=lr, betas=tuple(beta**c for beta in chosen.betas), fused=True)
    for param_group in optimiser.param_groups:
        param_group["initial_lr"] = lr
    return optimiser


def _own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # contiguous: channels_last weights are saved in plain order; pinned: copies from a GPU don't wait for each other
    return {
        name: torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda).copy_(t.detach(), non_blocking=True)
        for name, t in tensors.items()
    }


def _is_image_net(net: nn.Module) -> bool:
    return any(isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) for module in net.modules())
