"""The decision that a counterfactual turns round, and the smallest step that turns it.

Legend: n rows, D numbers of a row (latents or pixels), K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ganscale.explain.subject import Subject

STEPS_BACK = 14  # halvings of the last step: it ends within 2^-14 of its length of the boundary
AIM = 0.02  # how far beyond the boundary each step aims, in parts of the margin at the start
LEAST_AIM = 1e-3
SHORTER = 0.6  # share of a step towards the start, each time that one went back over the boundary
LEAST_SHARE = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What is to be turned round: the classifier's verdict, or without one on which side of ``threshold`` D is.

    ``margin`` is at least 0 where the wish is granted: the odds of class ``to`` against all others (or of the other
    side of the critic) are at least ``odds`` (a logarithm; 0 for even ones). ``to`` is -1 or 1 for a critic: its side.
    """

    subject: Subject
    by_classifier: bool
    odds: float
    threshold: float = 0.0

    def verdicts(self, images: Tensor) -> Tensor:
        """Return the class of each image, or the critic's side (-1, 1), int64 [n]."""
        if self.by_classifier:
            return self.subject.classifier(images).argmax(dim=1)
        return torch.where(self.subject.critic(images) >= self.threshold, 1, -1)

    def log_odds(self, images: Tensor, to: Tensor) -> Tensor:
        """Return the log-odds of the wished verdict [n]."""
        if not self.by_classifier:
            return (self.subject.critic(images) - self.threshold) * to
        logits = self.subject.classifier(images)
        rest = logits.scatter(1, to[:, None], float("-inf")).logsumexp(dim=1)
        return logits.gather(1, to[:, None])[:, 0] - rest

    def margin(self, images: Tensor, to: Tensor) -> Tensor:
        """Return the log-odds above what is wished [n]."""
        return self.log_odds(images, to) - self.odds


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Where a search ended: ``step`` [n, ...] and whether it ``granted`` the wish, bool [n]; rows it cost."""

    step: Tensor
    granted: Tensor
    rows_forward: int
    rows_backward: int


def smallest_step(margin: Callable[[Tensor], Tensor], start: Tensor, *, steps: int, longest: float) -> Found:
    """Find for each row the shortest step to where ``margin`` is at least 0.

    Below 0 an iteration goes to the nearest point of the linearised boundary, as DeepFool does (Moosavi-Dezfooli et al.
    2016, arXiv:1511.04599). From 0 on it goes to the point of that boundary that is nearest to the *start*, whose fixed
    point is locally the nearest of all (Hasofer and Lind 1974; Rackwitz and Fiessler 1978, the first-order method of
    structural reliability); each time that such a step falls below 0 again, those steps get shorter. For a linear
    margin the first iteration ends there. Steps are cut to ``longest`` (L2). The shortest granted point is then pulled
    back along its ray until the margin is 0. Rows whose margin is 0 or more at the start do not move.
    """
    flat, width = (len(start), -1), (len(start), *(1 for _ in start.shape[1:]))
    step, share, aim = torch.zeros_like(start), torch.ones(len(start)).to(start), None
    best, best_length = torch.zeros_like(start), torch.full((len(start),), float("inf")).to(start)
    was_granted = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    for _ in range(steps):
        at = (start + step).requires_grad_(True)
        value = margin(at)
        (slope,) = torch.autograd.grad(value.sum(), at)
        value = value.detach()
        aim = LEAST_AIM + AIM * value.abs() if aim is None else aim
        length, is_granted = step.reshape(flat).norm(dim=1), value >= 0
        better = is_granted & (length < best_length)
        best, best_length = torch.where(better.view(width), step, best), torch.where(better, length, best_length)
        share = torch.where(was_granted & ~is_granted, (share * SHORTER).clamp_min(LEAST_SHARE), share)
        was_granted = is_granted
        power = slope.reshape(flat).square().sum(dim=1).clamp_min(1e-30)
        along = torch.where(is_granted, (slope * step).reshape(flat).sum(dim=1), 0.0)
        move = ((along - value + aim) / power).view(width) * slope - step * is_granted.view(width)
        cut = (longest / move.reshape(flat).norm(dim=1).clamp_min(1e-30)).clamp_max(1.0)
        step = step + (cut * torch.where(is_granted, share, 1.0)).view(width) * move
    granted = best_length.isfinite()
    low, high = torch.zeros_like(best_length), torch.ones_like(best_length)
    with torch.no_grad():
        for _ in range(STEPS_BACK):
            middle = (low + high) / 2
            enough = margin(start + middle.view(width) * best) >= 0
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    rows = len(start)
    return Found(
        step=high.view(width) * best,
        granted=granted,
        rows_forward=rows * (steps + STEPS_BACK),
        rows_backward=rows * steps,
    )
