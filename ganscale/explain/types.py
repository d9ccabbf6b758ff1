"""What an explanation is: the target that was explained, its values, and the scores that say how far to trust them.

Legend: N samples, M cells (superpixels) or features, C channels, H height, W width, D latent.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from ganscale.errors import nearest
from ganscale.explain.errors import ExplainTargetError

if TYPE_CHECKING:
    from collections.abc import Callable

Better = Literal["higher", "lower", "zero"]
Margin = Literal["chance", "difference", "value"]  # what an interval's width is the error of
Verdict = Literal["better", "not better", "no margin"]
OUTPUTS = ("log-probability", "logit", "margin")  # what a class target takes of the classifier
TARGETS = {
    "critic": "critic[(Y)][:real|:fake][@G]",
    "class": f"class:K[:{'|:'.join(OUTPUTS)}][@G]",
    "unit": "unit:LAYER:CHANNEL[:Y:X][@G]",
    "distance": "distance:LAYER[@G]",
    "region": "region:Y0,X0,Y1,X1[:distance]",
    "function": "function",
}
_LAYER = r"(?P<layer>[^:]+)"
_FORMS = {
    "critic": r"critic(?:\((?P<label>\d+)\))?(?::(?P<sign>real|fake))?",
    "class": rf"class:(?P<name>[^:]+)(?::(?P<output>{'|'.join(OUTPUTS)}))?",
    "unit": rf"unit:{_LAYER}:(?P<index>\d+)(?::(?P<y>\d+):(?P<x>\d+))?",
    "distance": f"distance:{_LAYER}",
    "region": r"region:(?P<region>[^:]+(?::distance)?)",
    "function": "function",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Which scalar was explained; ``parse`` says how it is written.

    ``kind``: "critic" (its raw logit), "class" (a classifier's), "region" (pixels of the generator), "unit" (an inner
    one), "distance" (from a reference image, in features) or "function" (the callable as it was given). ``sign`` "fake"
    explains the critic's negated logit: what makes it say fake. ``label`` is the critic's condition y. ``index`` is the
    class or the unit's channel and ``name`` the class's name; ``output`` what is taken of the classifier. ``layer`` may
    begin with G., D. or C.; ``y`` and ``x`` are a place on its map. ``of_generator``: a function of the latent z.
    """

    kind: str = "function"
    sign: Literal["real", "fake"] = "real"
    label: int | None = None
    index: int | None = None
    name: str | None = None
    output: str | None = None
    layer: str | None = None
    y: int | None = None
    x: int | None = None
    region: str | None = None
    of_generator: bool = False

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read a target; raises ExplainTargetError that lists the forms where ``text`` has none of them.

        ``critic``, ``critic:fake``, ``critic(3)`` (with condition 3), ``class:4`` or ``class:coat`` (optionally
        ``:logit``, ``:margin`` or ``:log-probability``, the default), ``unit:LAYER:CHANNEL[:Y:X]``, ``distance:LAYER``,
        ``region:Y0,X0,Y1,X1`` or ``region:MASK.png`` (optionally ``:distance``), ``function``. ``critic@G`` and
        ``class:4@G`` (also written with ∘) explain the same as a function of the latent.
        """
        body, of_generator = text.strip(), False
        for mark in ("∘G", "@G"):
            if body.endswith(mark):
                body, of_generator = body.removesuffix(mark), True
        kind = re.split(r"[:(]", body, maxsplit=1)[0]
        found = re.fullmatch(_FORMS[kind], body) if kind in _FORMS else None
        if found is None or (of_generator and kind in ("region", "function")):
            near = f"{kind} is written {TARGETS[kind]}" if kind in TARGETS else nearest(kind, TARGETS)
            forms = ", ".join(TARGETS.values())
            raise ExplainTargetError("target", f"be one of {forms}", text, near)
        parts = {key: value for key, value in found.groupdict().items() if value is not None}
        if kind == "class":
            parts.setdefault("output", OUTPUTS[0])
            if parts["name"].isdigit():
                parts["index"] = parts.pop("name")
        numbers = {key: int(value) for key, value in parts.items() if key in ("label", "index", "y", "x")}
        return cls(kind=kind, of_generator=of_generator or kind == "region", **{**parts, **numbers})

    @property
    def of_classifier(self) -> bool:
        """Whether it is of a classifier: a class, or what is inside it."""
        return self.kind == "class" or str(self.layer).startswith("C.")

    def __str__(self) -> str:
        place = "" if self.y is None else f":{self.y}:{self.x}"
        label = "" if self.label is None else f"({self.label})"
        chosen = self.name if self.index is None else self.index
        text = {
            "critic": f"critic{label}:{self.sign}",
            "class": f"class:{chosen}:{self.output}",
            "unit": f"unit:{self.layer}:{self.index}{place}",
            "distance": f"distance:{self.layer}",
            "region": f"region:{self.region}",
        }.get(self.kind, self.kind)
        return text + ("∘G" if self.of_generator and self.kind != "region" else "")


FUNCTION = Target()


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One number about an explanation, with the number that chance reaches in the same setting.

    ``value`` is taken over ``n`` samples or directions (the mean, unless the score's name says otherwise) and
    ``control`` is the same of the random control. ``low`` and ``high`` are ``value`` minus and plus a margin, or None
    where nothing was sampled: 95 % of what ``margin_of`` says, which is 1.96 standard errors, and more of few.
    "chance": of the random control, so that chance alone would put the value within the margin of the control;
    "difference": of the mean difference from the control of the same samples; "value": of the value itself. A value
    whose control lies within the margin shows nothing. ``better`` says which way is good. ``constant`` is what an
    account that predicts no difference reaches (0 for R², 1 for infidelity); a value that has one must be better than
    that too.
    """

    value: float
    low: float | None = None
    high: float | None = None
    control: float
    n: int
    better: Better
    margin_of: Margin = "chance"
    constant: float | None = None

    @property
    def margin(self) -> float | None:
        """Return how far the value must be from its control to show anything; None where nothing was sampled."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def verdict(self) -> Verdict:
        """Return whether the whole interval lies on the better side of the control (and of the constant).

        A bare value without an interval is never "better": "no margin" on the better side, "not better" elsewhere.
        """
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        bars = [self.control] if self.constant is None else [self.control, self.constant]
        if not all(math.isfinite(number) for number in (low, high, *bars)):
            return "not better"
        beaten = {
            "higher": low > max(bars),
            "lower": high < min(bars),
            "zero": max(abs(low), abs(high)) < min(map(abs, bars)),
        }[self.better]
        if not beaten:
            return "not better"
        return "no margin" if self.margin is None else "better"

    @property
    def beats_control(self) -> bool:
        """Whether the value is better than its control by more than its margin; never without a margin."""
        return self.verdict == "better"

    @property
    def beats_constant(self) -> bool:
        """Whether the value is better than that of an account that predicts no difference, where there is one."""
        return self.constant is None or replace(self, control=self.constant, constant=None).verdict != "not better"


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
        return self.verdict == "not better"

    @property
    def verdict(self) -> Verdict:
        """Return what the primary scores say together: the worst of those with a margin or on the worse side.

        "no margin" where none of them can be told from its control, as none has a margin.
        """
        said = {self.scores[name].verdict for name in self.meta.get("primary", self.scores)}
        return next((verdict for verdict in ("not better", "better") if verdict in said), "no margin")

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
