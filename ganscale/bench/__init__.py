"""Measurements of what the project claims, each a ratio against a named peer in the same run.

A claim is one entry of ``CLAIMS``: a summary and a generator of lines. Peers that fail are reported as that; losses are
printed like wins.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from ganscale.bench.lines import Case, Line, Settings, reason

__all__ = ["CLAIMS", "Claim", "Line", "Settings", "measure"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What is claimed, and the function ``Settings -> lines`` that measures it, by module and name."""

    summary: str
    module: str
    function: str = "measure"

    def lines(self, settings: Settings) -> Iterator[Line]:
        """Measure; the module is loaded here, so that a claim whose packages are missing costs only itself."""
        function: Callable[[Settings], Iterator[Line]] = getattr(importlib.import_module(self.module), self.function)
        return function(settings)


CLAIMS: dict[str, Claim] = {
    "penalty": Claim(
        summary="the gradient penalty of WGAN-GP with its gradients in all weights", module="ganscale.bench.penalty"
    ),
    "blocks": Claim(
        summary="output layer, batch norm with ReLU, up-sampling blocks, whole generator trunks; "
        "with impl=fused what 'auto' leaves to cuDNN",
        module="ganscale.bench.blocks",
    ),
    "critic-step": Claim(
        summary="the critic's loss with all gradients, as the trainer composes it from models, losses and operators",
        module="ganscale.bench.critic_step",
    ),
    "iteration": Claim(
        summary="whole WGAN-GP iterations: the trainer's own step with all its bookkeeping, against a bare loop",
        module="ganscale.bench.iteration",
    ),
    "memory": Claim(
        summary="bytes of tensors alive at once while the penalty and its gradients are computed",
        module="ganscale.bench.accounting",
        function="measure_memory",
    ),
    "counts": Claim(
        summary="convolutions that the penalty and its gradients run",
        module="ganscale.bench.accounting",
        function="measure_counts",
    ),
    "roofline": Claim(
        summary="share of the copy bandwidth, on a GPU also of the matrix rate, measured beside it",
        module="ganscale.bench.roofline",
    ),
    "elementwise": Claim(
        summary="every elementwise operator against its plain-torch twin; with impl=fused what 'auto' leaves to it",
        module="ganscale.bench.elementwise",
    ),
}


def measure(names: Iterable[str], settings: Settings) -> Iterator[Line]:
    """Yield the lines of the claims ``names``. A claim that cannot be measured is a line that says why."""
    for name in names:
        case = Case(claim=name, what="left out", shape="", dtype="", layout="")
        try:
            yield from CLAIMS[name].lines(settings)
        except ModuleNotFoundError as error:
            yield case.line("", None, None, note=f"{error.name} is not installed")
        except Exception as error:
            yield replace(case, what="failed").line("", None, None, note=reason(error), failed=True)
