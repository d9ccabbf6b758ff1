"""The errors of ganscale: each says what must hold, what came instead, and what to do.

The class decides the exit code of the command line: 2 for the user's mistake (nothing was started, nothing written),
1 for a run that failed, 130 for an interrupted one. Every error survives pickling, so it can cross a process boundary.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping


class GanscaleError(Exception):
    """Base of all errors that ganscale raises on purpose."""

    exit_code = 1


class UserError(GanscaleError, ValueError):
    """A mistake in what the user asked for: ``<what> must <rule>, got <got>; <remedy>``."""

    exit_code = 2

    def __init__(self, what: str, rule: str, got: object, remedy: str) -> None:
        super().__init__(what, rule, got if got and isinstance(got, str) else repr(got), remedy)

    def __str__(self) -> str:
        what, rule, got, remedy = self.args
        return f"{what} must {rule}, got {got}; {remedy}"


class ConfigError(UserError):
    """A configuration value, key or combination that cannot be run."""


class DataError(UserError):
    """A data source that is missing, empty, or too broken to train on."""


class CheckpointError(UserError):
    """A checkpoint that is missing, truncated, altered, or of another run."""


class ResourceError(UserError):
    """More devices, workers, memory, disk or ports than there are."""


class MissingPackageError(UserError):
    """An optional package that this feature needs and that is not installed."""


class RunFailed(GanscaleError):
    """A run that started and could not go on; the message says what was saved and how to go on."""


class NonFiniteError(RunFailed):
    """A loss or gradient that is NaN or infinite; raised before the optimiser has touched any parameter."""


class Interrupted(GanscaleError):
    """The user stopped the run; a checkpoint was written first."""

    exit_code = 130


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a remedy that offers the names closest to ``name``, or all of them where none is close."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(names)}"


def unknown(kind: str, name: str, names: Iterable[str], *, error: type[UserError] = ConfigError) -> UserError:
    """Build the error for a name that no registry holds, e.g. ``unknown("loss", "hinje", LOSSES)``."""
    names = list(names)
    return error(kind, "be a known name", name, nearest(name, names))


def in_python(error: UserError, arguments: Mapping[str, str]) -> UserError:
    """Return ``error``, in words of the command line, in those of a call; ``arguments`` names what was passed by key.

    ``--set a.b=c`` becomes an entry of ``settings``; a key that an argument of the call stands for is called by it.
    """
    what, rule, got, remedy = error.args
    if what in arguments:
        return type(error)(arguments[what], rule, got, f"pass another {arguments[what]}, or none")
    what = "settings" if what == "--set" else what.removeprefix("--")
    return type(error)(what, rule, got, re.sub(r"--set ([\w.]+)=([\w.-]+)", r'settings={"\1": "\2"}', remedy))
