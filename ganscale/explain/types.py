"""What an explanation is: the target that was explained, its values, and the scores that say how far to trust them.

Legend: N samples, M cells (superpixels) or features, C channels, H height, W width, D latent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from ganscale.explain.errors import ExplainTargetError

if TYPE_CHECKING:
    from collections.abc import Callable

Better = Literal["higher", "lower", "zero"]
TARGETS = ("critic", "critic:real", "critic:fake", "function")


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Which scalar was explained: ``kind`` "critic" (its raw logit) or "function" (the callable as it was given).

    ``sign`` "fake" explains the negated logit: what makes the critic say fake.
    """

    kind: str = "function"
    sign: Literal["real", "fake"] = "real"

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``critic``, ``critic:real``, ``critic:fake`` or ``function``; raises ExplainTargetError otherwise."""
        if text not in TARGETS:
            raise ExplainTargetError("target", f"be one of {', '.join(TARGETS)}", text, "for example --target critic")
        kind, _, sign = text.partition(":")
        return cls(kind=kind, sign="fake" if sign == "fake" else "real")

    def __str__(self) -> str:
        return self.kind if self.kind == "function" else f"{self.kind}:{self.sign}"


FUNCTION = Target()


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One number about an explanation, with the number that chance reaches in the same setting.

    ``value`` is taken over ``n`` samples or directions (the mean, unless the score's name says otherwise) and
    ``control`` is the same of the random control. ``low`` and ``high`` bound a 95 % interval, or are None where
    nothing was sampled. Where the control is random the interval is ``value`` plus or minus 1.96 standard errors *of
    the control*: chance alone would put the value within that distance of the control, so a value whose interval holds
    its control shows nothing. ``better`` says which way is good.
    """

    value: float
    low: float | None = None
    high: float | None = None
    control: float
    n: int
    better: Better

    @property
    def beats_control(self) -> bool:
        """Whether the whole interval (or the value, where there is none) lies on the better side of the control."""
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        if not all(math.isfinite(number) for number in (low, high, self.control)):
            return False
        if self.better == "higher":
            return low > self.control
        if self.better == "lower":
            return high < self.control
        return max(abs(low), abs(high)) < abs(self.control)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Explanation:
    """The one result type of every method: what was explained, the values, and the scores.

    ``values`` and ``inputs`` hold CPU tensors (names in docs of each method; ``inputs`` is all that is needed to redraw
    or recompute). ``scores`` is never empty. ``meta`` holds plain JSON data: seed, plan, options, versions, cost,
    warnings, and ``primary``, the names of the scores that decide ``not_better_than_random``.
    """

    method: str
    target: Target
    values: dict[str, Tensor]
    inputs: dict[str, Tensor]
    scores: dict[str, Score]
    meta: dict[str, Any]

    def __post_init__(self) -> None:
        assert self.scores, "an explanation comes with at least one score"
        missing = [name for name in self.meta.get("primary", ()) if name not in self.scores]
        assert not missing, f"primary scores without a score: {missing}"
        for group in (self.values, self.inputs):
            for name, tensor in group.items():
                assert tensor.device.type == "cpu", name
                assert not tensor.requires_grad, name

    def __repr__(self) -> str:
        scores = ", ".join(
            f"{name} {score.value:.4g} (control {score.control:.4g})" for name, score in self.scores.items()
        )
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in self.values.items())
        return f"Explanation({self.method} of {self.target}; scores: {scores}; values: {shapes})"

    @property
    def not_better_than_random(self) -> bool:
        """True where a primary score does not beat its control: pictures of it carry a banner that says so."""
        return any(not self.scores[name].beats_control for name in self.meta.get("primary", self.scores))

    def save(self, directory: Path, *, also_write: Callable[[Path], None] | None = None) -> Path:
        """Write ``values.safetensors`` and ``explanation.json`` as the new ``directory`` in one visible step.

        ``also_write`` is called with the temporary directory before it is renamed, for pictures that belong to it.
        Raises ExplanationFileError where ``directory`` exists, and leaves nothing behind where writing fails.
        """
        from ganscale.explain.store import save

        return save(self, directory, also_write=also_write)

    @classmethod
    def load(cls, directory: Path) -> Explanation:
        """Read what ``save`` wrote, bit-exact; raises ExplanationFileError that names the damaged file."""
        from ganscale.explain.store import load

        return load(directory)
