"""What a sweep varies: ``--param`` as data, refused before anything starts, drawn without Ray from the run's seed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ganscale.config import RunConfig, flat, matches, override
from ganscale.errors import ConfigError, UserError, nearest
from ganscale.runtime.resume import MAY_CHANGE

# what does not decide what is learned; and what would make scores incomparable
FIXED = (*MAY_CHANGE, "preset", "data.")
SEED = "train.seed"
# what a run may change on its way and stay one: population-based training does
WHILE_TRAINING = (
    "optim.generator.lr",
    "optim.generator.betas",
    "optim.critic.lr",
    "optim.critic.betas",
    "penalty.weight",
    "penalty.center",
    "ema.half_life_kimg",
)
_FORMS = "write KEY=log:1e-5:1e-3, KEY=uniform:0:1, KEY=int:1:5 or KEY=1,10,100"


@dataclass(frozen=True, kw_only=True, slots=True)
class Param:
    """One key and its values: an interval (``log``, ``uniform``, ``int``; both ends count) or a few ``choices``."""

    key: str
    kind: Literal["log", "uniform", "int", "choice"]
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()
    text: str = ""

    def draw(self, rng: np.random.Generator) -> float | int | str:
        """Return one value."""
        if self.kind == "choice":
            return self.choices[int(rng.integers(len(self.choices)))]
        if self.kind == "int":
            return int(rng.integers(int(self.low), int(self.high) + 1))
        if self.kind == "log":
            return self.clamp(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return self.clamp(rng.uniform(self.low, self.high))

    def clamp(self, value: Any) -> float | int | str:
        """Return ``value``, or the end of the interval that it is beyond."""
        if self.kind == "choice":
            return value
        inside = min(max(float(value), self.low), self.high)
        return round(inside) if self.kind == "int" else inside

    def ends(self) -> Sequence[Any]:
        """Return values that all have to be good for the whole to be."""
        return self.choices if self.kind == "choice" else (self.clamp(self.low), self.clamp(self.high))


def parse_param(text: str) -> Param:
    """Read ``KEY=log:LOW:HIGH``, ``uniform:``, ``int:`` or ``KEY=A,B,C`` (``A|B`` where values hold commas).

    Raises UserError for any other form, fewer than two values, or ends that are no interval.
    """
    key, equals, rest = text.partition("=")
    key, rest = key.strip(), rest.strip()
    if not equals or not key or not rest:
        raise UserError("--param", "be written KEY=VALUES", text, _FORMS)
    kind, colon, ends = rest.partition(":")
    if colon:
        return _parse_interval(key, kind, ends, text)
    separator = "|" if "|" in rest else ","
    choices = tuple(part.strip() for part in rest.split(separator) if part.strip())
    if len(set(choices)) < max(2, len(choices)):
        raise UserError(f"--param {key}", "have at least two values, each once", rest, _FORMS)
    return Param(key=key, kind="choice", choices=choices, text=rest)


def _parse_interval(key: str, kind: str, ends: str, text: str) -> Param:
    if kind not in ("log", "uniform", "int"):
        raise UserError(f"--param {key}", "begin with log:, uniform: or int:", text, _FORMS)
    try:
        low, high = (float(end) for end in ends.split(":"))
    except ValueError:
        low = high = math.nan
    whole = kind != "int" or (low.is_integer() and high.is_integer())
    if not (math.isfinite(low) and math.isfinite(high) and low < high and whole and (kind != "log" or low > 0)):
        rules = {"log": "two numbers with 0 < LOW < HIGH", "int": "two whole numbers with LOW < HIGH"}
        rule = rules.get(kind, "two numbers with LOW < HIGH")
        raise UserError(f"--param {key}", f"give {rule} after {kind}:", ends, _FORMS)
    return Param(key=key, kind=kind, low=low, high=high, text=f"{kind}:{ends}")


def check_params(config: RunConfig, params: Sequence[Param], *, while_training: bool) -> None:
    """Raise UserError for a key that is unknown, fixed or given twice, and for a value that cannot be run."""
    if not params:
        raise UserError("--param", "be given at least once", "none", _FORMS)
    known = flat(config)
    for at, param in enumerate(params):
        if param.key not in known:
            raise ConfigError("--param", "name a configuration key", param.key, nearest(param.key, known))
        if matches(param.key, FIXED):
            raise ConfigError("--param", "name a key that decides what is learned", param.key, "use --set for it")
        if while_training and param.key not in WHILE_TRAINING:
            remedy = "use --scheduler asha"
            raise ConfigError("--param", f"with pbt be one of {', '.join(WHILE_TRAINING)}", param.key, remedy)
        if any(other.key == param.key for other in params[:at]):
            raise ConfigError("--param", "name a key once", param.key, "join its values")
        for value in param.ends():
            override(config, {param.key: value})


def combinations(params: Sequence[Param]) -> int | None:
    """Return how many combinations there are, where all keys have few choices; None where one is an interval."""
    return math.prod(len(param.choices) for param in params) if all(p.kind == "choice" for p in params) else None


def draw_trials(params: Sequence[Param], number: int, seed: int) -> list[dict[str, Any]]:
    """Return the settings of ``number`` trials; trial k depends on ``seed`` and k alone, so more of them extend fewer.

    Where all keys have few choices, combinations come again only after all have been tried. What comes again gets
    another ``train.seed``: it would train the same numbers otherwise.
    """
    grid = combinations(params)
    if grid:
        order = np.random.default_rng(seed).permutation(grid)
        drawn = [_combination(params, int(order[k % grid])) for k in range(number)]
    else:
        streams = [np.random.default_rng([seed, k]) for k in range(number)]
        drawn = [{param.key: param.draw(rng) for param in params} for rng in streams]
    times: Counter[tuple[Any, ...]] = Counter()
    for settings in drawn:
        values = tuple(settings.values())
        if times[values]:
            settings.setdefault(SEED, seed + times[values])
        times[values] += 1
    return drawn


def _combination(params: Sequence[Param], index: int) -> dict[str, Any]:
    chosen = {}
    for param in params:
        index, at = divmod(index, len(param.choices))
        chosen[param.key] = param.choices[at]
    return chosen


def milestones(total: int, first: int, *, scheduler: str, factor: int, batch: int = 1) -> list[int]:
    """Return at how many images a trial is scored: ``first``, then ``factor`` times as late each (pbt: evenly).

    The last one is ``total``; none lies within a ``batch`` of it, as that would be the same step.
    """
    found, at = [], first
    while at + batch <= total:
        found.append(at)
        at = at + first if scheduler == "pbt" else at * factor
    return [*found, total]
