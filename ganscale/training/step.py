"""One global batch of adversarial training; all else in this project exists so that this file can stay this simple.

Legend: N samples of this rank, D latent, x real images [N, C, H, W], z latents [N, D], eps mixing weights [N].
A phase is data: which network moves, every how many batches, and the terms [N] whose global mean it minimises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from ganscale.config import RunConfig
from ganscale.losses import ADVERSARIAL, PENALTIES
from ganscale.training.exchange import exchange_gradients
from ganscale.training.random import Draws
from ganscale.training.soundness import finite_norm
from ganscale.training.state import TrainState


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """Minimise the mean of ``term`` in the parameters of ``net``, every ``every``-th batch, times ``gain``."""

    name: str
    net: str
    every: int
    term: Callable[[StepContext], Tensor]
    gain: float = 1.0
    generates: bool = True  # whether the term runs the generator, its batch norms among it


@dataclass(frozen=True, slots=True)
class StepContext:
    """What the terms of a phase may use: networks, this rank's real images from ``first_slot`` on, keyed draws."""

    state: TrainState
    phase: str
    real: Tensor
    first_slot: int
    draws: Draws
    autocast: Callable[[], AbstractContextManager]
    report: Callable[..., None]  # as Stats.report

    def passes(self) -> Iterator[StepContext]:
        """This step in passes of at most ``train.micro_batch`` images, each with the draws of its slots."""
        train = self.state.config.train
        largest = -(-train.batch // self.state.group.size)
        count = -(-largest // (train.micro_batch or largest))  # on every rank, as batch norm meets in each pass
        for start, end in pairwise(i * len(self.real) // count for i in range(count + 1)):
            yield replace(self, real=self.real[start:end], first_slot=self.first_slot + start)

    def generate(self) -> Tensor:
        """G(z), z ~ N(0, I)."""
        G = self.state.nets["generator"]
        z = self.draws.normal(f"{self.phase}/z", self.first_slot, len(self.real), G.latent)
        with self.autocast():
            return G(z).to(self.real.dtype)

    def criticise(self, x: Tensor) -> Tensor:
        """D(x), the raw logits [N]."""
        with self.autocast():
            return self.state.nets["critic"](x).to(x.dtype)


def build_phases(config: RunConfig) -> list[Phase]:
    """Return the phases of a run in the order in which they take turns."""
    loss, penalty, k = ADVERSARIAL[config.loss.name], PENALTIES.get(config.penalty.name), config.penalty.every

    def critic_loss(step: StepContext) -> Tensor:
        # min_D E[ loss_D(D(x), D(G(z))) ], G held fixed  (Goodfellow et al. 2014, algorithm 1)
        with torch.no_grad():
            fake = step.generate()
        logits_real, logits_fake = step.criticise(torch.cat([step.real, fake])).chunk(2)
        step.report("logits/real", logits_real, histogram=True)
        step.report("logits/fake", logits_fake, histogram=True)
        term = loss.critic(logits_real, logits_fake)
        step.report("loss/critic", term)
        return term + weighted_penalty(step, fake) if penalty and k == 1 else term

    def weighted_penalty(step: StepContext, fake: Tensor | None) -> Tensor:
        # weight * R(D; x, G(z)): WGAN-GP (Gulrajani et al. 2017, eq. 3), R1, R2 (Mescheder et al. 2018, eq. 9 and 10)
        critic, purpose = step.state.nets["critic"], f"{step.phase}/eps"
        eps = step.draws.uniform(purpose, step.first_slot, len(step.real))  # U[0, 1), one a sample
        with step.autocast():
            value = penalty(critic, step.real, fake, eps, center=config.penalty.center)
        step.report("penalty", value)
        return config.penalty.weight * value

    def lazy_penalty(step: StepContext) -> Tensor:
        # the same penalty every k-th batch with gain k (Karras et al. 2020, appendix B)
        with torch.no_grad():
            fake = step.generate() if penalty.reads_fake else None
        return weighted_penalty(step, fake)

    def generator_loss(step: StepContext) -> Tensor:
        # min_G E[ loss_G(D(x), D(G(z))) ], D held fixed
        fake = step.generate()
        logits_real = step.criticise(step.real) if loss.paired else None
        term = loss.generator(logits_real, step.criticise(fake))
        step.report("loss/generator", term)
        return term

    phases = [Phase(name="critic", net="critic", every=1, term=critic_loss)]
    if penalty and k > 1:
        lazy = {"every": k, "gain": float(k), "generates": penalty.reads_fake}
        phases.append(Phase(name="critic-penalty", net="critic", term=lazy_penalty, **lazy))
    phases.append(Phase(name="generator", net="generator", every=config.optim.critic.repeats, term=generator_loss))
    return phases


def leave_gradients(phase: Phase, step: StepContext) -> None:
    """Leave d E[term] / d parameters of the phase's network: sums over N / the global batch; passes, ranks add up."""
    for part in step.passes():
        (phase.gain * phase.term(part).sum() / step.state.config.train.batch).backward()


def train_step(
    state: TrainState, phases: list[Phase], real: Tensor, draws: Draws, autocast: Callable, gradients=leave_gradients
) -> None:
    """Run the phases that are due on one global batch, of which ``real`` [N, C, H, W] is this rank's share."""
    batch = state.config.train.batch
    first_slot = state.images + state.group.slots(batch).start
    state.set_learning_rates()
    for phase in phases:
        if (state.batches + 1) % phase.every:
            continue
        step = StepContext(state, phase.name, real, first_slot, draws, autocast, state.stats.report)
        for name in ("generator", "critic"):
            state.nets[name].requires_grad_(name == phase.net)
        gradients(phase, step)
        update(state, phase)
    state.images += batch
    if state.batches % phases[-1].every == 0:
        state.update_ema(batch * phases[-1].every)


def update(state: TrainState, phase: Phase) -> None:
    """Sum the gradients over ranks, refuse what is not finite, let the optimiser move the network."""
    net, optimiser = state.nets[phase.net], state.optimisers[phase.net]
    exchange_gradients(net, state.group)
    state.stats.report_scalar(f"grad_norm/{phase.name}", finite_norm(net, phase.net, phase.name, state.images))
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
