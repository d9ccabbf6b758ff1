"""Parameter types and options that several verbs share; they refuse a value in the form of all our errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import click

from ganscale.errors import UserError, nearest, unknown

Function = Callable[..., Any]


class WholeNumber(click.ParamType):
    """A whole number of at least ``least`` (and at most ``most``)."""

    name = "n"

    def __init__(self, least: int, most: int | None = None) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return ``value`` as an int; raises ``UserError``."""
        try:
            number = int(value)
        except ValueError:
            number = None
        if number is None or number < self.least or (self.most is not None and number > self.most):
            bounds = f"of at least {self.least}" if self.most is None else f"from {self.least} to {self.most}"
            raise UserError(
                param.opts[0], f"be a whole number {bounds}", str(value), f"for example {max(self.least, 1)}"
            )
        return number


class WorkerCount(click.ParamType):
    """A whole number of at least ``least``, or a range MIN:MAX that the number may change in."""

    name = "n"

    def __init__(self, least: int) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return ``value`` as text that was found to be good; raises ``UserError``."""
        from ganscale.runtime.placement import read_count

        fewest, most = read_count(value, param.opts[0], least=self.least)
        return str(most) if fewest == most else f"{fewest}:{most}"


class Amount(click.ParamType):
    """A finite number above zero."""

    name = "x"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return ``value`` as a float; raises ``UserError``."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number > 0):
            raise UserError(param.opts[0], "be a number above 0", str(value), "for example 64")
        return number


class Duration(click.ParamType):
    """A time above zero, in seconds, or with s, m or h behind it."""

    name = "time"
    UNITS: ClassVar[dict[str, float]] = {"s": 1.0, "m": 60.0, "h": 3600.0}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return ``value`` in seconds; raises ``UserError``."""
        text = str(value).strip()
        unit = self.UNITS.get(text[-1:].lower())
        try:
            number = float(text[:-1] if unit else text) * (unit or 1.0)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number > 0):
            raise UserError(param.opts[0], "be a time above 0", str(value), "for example 90s, 10m or 1h")
        return number


class Pair(click.ParamType):
    """Two finite numbers LOW,HIGH with LOW < HIGH."""

    name = "low,high"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        """Return both as floats; raises ``UserError``."""
        try:
            low, high = (float(part) for part in str(value).split(","))
        except ValueError:
            low = high = math.nan
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(param.opts[0], "be LOW,HIGH", str(value), "for example 0,1")
        return low, high


class Name(click.ParamType):
    """One of a fixed table of names; a miss offers the nearest."""

    def __init__(self, kind: str, names: Iterable[str]) -> None:
        self.name, self.names = kind, tuple(names)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return ``value`` if the table holds it; raises ``UserError``."""
        if value not in self.names:
            raise unknown(self.name, str(value), self.names, error=UserError)
        return value


def json_option(function: Function) -> Function:
    """Add ``--json``: strict JSON, alone on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print strict JSON, alone on stdout.")(function)


def run_argument(function: Function) -> Function:
    """Add the argument RUN: a run directory, or the name of one below ``runs/``."""
    return click.argument("run", metavar="RUN")(function)


def find_run(text: str, *, runs_dir: str | Path = "runs") -> Path:
    """Return the run directory that ``text`` names; raises ``UserError``.

    ``text`` is a path, a name below ``runs_dir``, or an address in an object store, whose working copy is returned. The
    path of a checkpoint in a run directory is returned as it is.
    """
    if "://" in text:
        from ganscale.runtime.remote import open_run

        return open_run(text)
    for path in (Path(text), Path(runs_dir) / text):
        run_dir = path.parent.parent if path.parent.name == "checkpoints" and path.is_dir() else path
        if (run_dir / "config.json").is_file():
            return path
        if path.parent.name == "checkpoints" and (path.parent.parent / "config.json").is_file():
            there = [found.name for found in sorted(path.parent.glob("kimg-*")) if found.is_dir()]
            remedy = f"choose one of {', '.join(there)}" if there else "the run has none yet"
            raise UserError("checkpoint", f"be one of those in {path.parent}", path.name, remedy)
    rule = "be a run directory (it holds config.json)"
    raise UserError("run", rule, text, nearest_run(text, runs_dir))


def nearest_run(text: str, runs_dir: str | Path = "runs") -> str:
    """Return a remedy that offers the runs below ``runs_dir`` that are called nearly so, or all."""
    known = sorted(path.parent.name for path in Path(runs_dir).glob("*/config.json"))
    return nearest(Path(text).name, known) if known else "train one with `ganscale launch`"
