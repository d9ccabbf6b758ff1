"""What an attack on a critic or a classifier lowers: the margin by which the verdict on a row holds.

A critic's margin is the distance of its raw logit from the threshold on the side where the row stands; a classifier's
is the logit of the row's label minus the best other. A verdict has changed where the margin is negative.

Legend: n rows, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ganscale.explain.base import Meter
from ganscale.explain.errors import CallableError, ZeroGradientError

Loss = Literal["cross-entropy", "margin"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """A network and what each row stands for: ``sides`` [n] is +1 or -1 for a critic, a class number for a
    classifier.
    """

    network: Callable[[Tensor], Tensor]
    meter: Meter
    classes: bool
    sides: Tensor
    threshold: float = 0.0
    loss: Loss = "cross-entropy"

    def repeated(self, times: int) -> Objective:
        """Return the same for rows that are each repeated ``times`` times in a row."""
        return Objective(
            network=self.network,
            meter=self.meter,
            classes=self.classes,
            sides=self.sides.repeat_interleave(times),
            threshold=self.threshold,
            loss=self.loss,
        )

    def margins(self, rows: Tensor) -> Tensor:
        """Return the margin of each row, float64 [n] on the CPU."""
        self.meter.rows_forward += len(rows)
        with torch.no_grad():
            parts = [
                self._margin(self.network(part), sides).double().cpu() for part, sides in self._micro_batches(rows)
            ]
        margin_n = torch.cat(parts)
        if not torch.isfinite(margin_n).all():
            raise CallableError(
                "the network", "return finite numbers", "NaN or infinity on a perturbed row", "look at the weights"
            )
        return margin_n

    def gradient(self, rows: Tensor) -> Tensor:
        """Return the gradient of the attacker's objective at each row: which way the verdict weakens."""
        self.meter.rows_forward += len(rows)
        self.meter.rows_backward += len(rows)
        found = []
        for part, sides in self._micro_batches(rows):
            with torch.enable_grad():
                leaf = part.detach().requires_grad_(True)
                objective = self._attacked(self.network(leaf), sides).sum()
                (gradient,) = torch.autograd.grad(objective, leaf)
            found.append(gradient.detach())
        return torch.cat(found)

    def first_gradient(self, rows: Tensor) -> Tensor:
        """Return ``gradient`` at unperturbed rows; raises ZeroGradientError where it is zero for a whole row."""
        gradient = self.gradient(rows)
        empty = (~gradient.flatten(1).any(dim=1)).nonzero().flatten().tolist()
        if empty:
            cause = (
                "its softmax is saturated: use loss=margin, or look for a detached graph"
                if self.classes and self.loss == "cross-entropy"
                else "attack raw logits: a saturated sigmoid, cross-entropy over one class or rounding leaves no slope"
            )
            raise ZeroGradientError(
                "the attacked gradient", "not be exactly zero over a whole sample", f"zeros at rows {empty}", cause
            )
        return gradient

    def _attacked(self, output: Tensor, sides: Tensor) -> Tensor:
        if self.classes and self.loss == "cross-entropy":
            return F.cross_entropy(output, sides, reduction="none")
        return -self._margin(output, sides)

    def _margin(self, output: Tensor, sides: Tensor) -> Tensor:
        if not self.classes:
            return sides.to(output) * (output - self.threshold)
        own = output.gather(1, sides[:, None]).squeeze(1)
        others = output.masked_fill(F.one_hot(sides, output.shape[1]).bool(), -torch.inf)
        return own - others.amax(dim=1)

    def _micro_batches(self, rows: Tensor):
        size = self.meter.micro_batch
        device = self.meter.subject.device
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            yield rows[part].to(device), self.sides[part].to(device)


def kind_of_output(network: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Return 1 for a network with one number a row, or its number of classes K >= 2; raises CallableError."""
    with torch.no_grad():
        output = network(x[:2])
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if isinstance(output, Tensor) and output.ndim == 1 and len(output) == len(x[:2]):
        return 1
    if isinstance(output, Tensor) and output.ndim == 2 and len(output) == len(x[:2]) and output.shape[1] > 1:
        return output.shape[1]
    raise CallableError(
        "the attacked network",
        "return one logit a row, [n], or one a class, [n, K] with K >= 2",
        shape,
        "squeeze a single logit: cross-entropy over one class has no gradient",
    )
