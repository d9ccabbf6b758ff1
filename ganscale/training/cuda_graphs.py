"""A phase's forward and backward passes as one CUDA graph: launched once instead of kernel by kernel.

Small networks on a large GPU wait for launches, not for arithmetic; a graph replays hundreds of them for the price of
one. What changes from step to step comes in through tensors that stay where they are: real images and draws, which are
made outside as ever and copied in. What comes out are the gradients and the reported values. The update stays outside:
it refuses a gradient that is not finite before any parameter moves, its learning rate is a number of the moment, and
torch's fused Adam is few launches already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ganscale.config import RunConfig
from ganscale.errors import ConfigError
from ganscale.training.process_group import Group
from ganscale.training.random import Draws
from ganscale.training.state import TrainState
from ganscale.training.step import Phase, StepContext, leave_gradients

WARM_UPS = 3  # before a capture: they load kernels, choose algorithms and make workspaces, which a capture must not do

Body = Callable[[], "Outputs"]


@dataclass(frozen=True, slots=True)
class Outputs:
    """What one evaluation of a phase leaves: a gradient (or None) a parameter, and what ``Stats.add`` takes."""

    gradients: list[Tensor | None]
    reports: list[tuple[str, Tensor, Tensor | None]]


def refuse_where_impossible(config: RunConfig, group: Group) -> None:
    """Raise ConfigError where ``train.cuda_graphs`` is set and this group cannot use it."""
    if not config.train.cuda_graphs:
        return
    if group.device.type != "cuda":
        got = f"true on {group.device.type}"
        raise ConfigError("train.cuda_graphs", "be false without a GPU", got, "leave it out")
    if group.size > 1:
        got = f"true with {group.size} workers"
        raise ConfigError("train.cuda_graphs", "be false with several workers", got, "use one worker, or leave it out")


def capture(body: Body) -> Body:
    """Record ``body`` in a CUDA graph and return its replay, which gives the same tensors with new contents.

    ``body`` runs ``WARM_UPS`` times before; what it changes in place is for the caller to undo.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            body()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = body()

    def replay() -> Outputs:
        graph.replay()
        return outputs

    return replay


@dataclass(slots=True)
class FixedDraws:
    """Draws into tensors that stay in place. Has the two methods of ``Draws``; ``refill`` makes the next ones.

    The slots of a draw are kept relative to the first slot of the step in which it was recorded.
    """

    source: Draws
    origin: int
    tensors: dict[tuple, Tensor] = field(default_factory=dict)

    def uniform(self, purpose: str, first: int, count: int) -> Tensor:
        """As ``Draws.uniform``, always the same tensor."""
        return self._kept(("uniform", purpose, first - self.origin, count))

    def normal(self, purpose: str, first: int, count: int, size: int) -> Tensor:
        """As ``Draws.normal``, always the same tensor."""
        return self._kept(("normal", purpose, first - self.origin, count, size))

    def refill(self, origin: int) -> None:
        """Draw again, now for the step whose first slot is ``origin``."""
        self.origin = origin
        for key, tensor in self.tensors.items():
            tensor.copy_(self._draw(key))

    def _kept(self, key: tuple) -> Tensor:
        if key not in self.tensors:
            self.tensors[key] = self._draw(key)
        return self.tensors[key]

    def _draw(self, key: tuple) -> Tensor:
        kind, purpose, offset, *sizes = key
        return getattr(self.source, kind)(purpose, self.origin + offset, *sizes)


@dataclass(slots=True)
class _Recorded:
    real: Tensor
    draws: FixedDraws
    replay: Body | None = None


class GraphedPhases:
    """Stands in for ``step.leave_gradients``: records a phase when it first runs on a shape, then replays it.

    The gradients and reports are those of the eager step, and so is the run. ``capture`` turns a function into its
    replay. Nothing that was recorded may be moved to other memory; parameters, buffers and averages change in place.
    """

    def __init__(self, capture: Callable[[Body], Body] = capture) -> None:
        self._capture = capture
        self._recorded: dict[tuple, _Recorded] = {}

    def __call__(self, phase: Phase, step: StepContext) -> None:
        """Leave the gradients of ``phase`` in its network and report what its term reports."""
        key = (phase.name, step.real.shape, step.real.dtype, step.real.stride())
        recorded = self._recorded.get(key)
        if recorded is None:
            recorded = self._recorded[key] = self._record(phase, step)
        recorded.real.copy_(step.real)
        recorded.draws.refill(step.first_slot)
        outputs = recorded.replay()
        for parameter, gradient in zip(_parameters(phase, step.state), outputs.gradients, strict=True):
            parameter.grad = gradient
        for report in outputs.reports:
            step.state.stats.add(*report)

    def _record(self, phase: Phase, step: StepContext) -> _Recorded:
        recorded = _Recorded(real=step.real.clone(), draws=FixedDraws(step.draws, step.first_slot))
        parameters = _parameters(phase, step.state)

        def body() -> Outputs:
            reports: list[tuple[str, Tensor, Tensor | None]] = []

            def report(name: str, values_N: Tensor, *, histogram: bool = False) -> None:
                reports.append((name, *step.state.stats.summary(values_N, histogram=histogram)))

            for parameter in parameters:
                parameter.grad = None
            fixed = replace(
                step, real=recorded.real, draws=recorded.draws, first_slot=recorded.draws.origin, report=report
            )
            leave_gradients(phase, fixed)
            return Outputs([parameter.grad for parameter in parameters], reports)

        # the warm-ups of a capture are no steps: running statistics of norms go back to where they were
        buffers = [buffer for net in step.state.nets.values() for buffer in net.buffers()]
        before = [buffer.clone() for buffer in buffers]
        recorded.replay = self._capture(body)
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        return recorded


def _parameters(phase: Phase, state: TrainState) -> list[torch.nn.Parameter]:
    return list(state.nets[phase.net].parameters())
