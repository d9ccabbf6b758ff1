"""The command group: it runs verbs, and turns every way to fail into one line on stderr and an exit code.

Exit codes: 0 done, 2 the user's mistake (nothing started, nothing written), 1 a run that failed, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import click

from ganscale.cli.output import stdout_kept_for_results
from ganscale.errors import GanscaleError, Interrupted, UserError, nearest, unknown
from ganscale.files import full_disk, is_full_disk
from ganscale.memory import keep_freed_memory

# what the file system says of a path that the user chose badly
_UNUSABLE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}


class Verb(click.Command):
    """One verb. Its stdout is kept for results; ``--debug`` (every verb has it) lets tracebacks through."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the verb's own parameters and ``--debug``."""
        return [*super().get_params(ctx), _DEBUG]

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb with stdout kept for results and the warnings of libraries out of sight."""
        keep_freed_memory()
        with stdout_kept_for_results(), warnings.catch_warnings():
            if not ctx.find_root().meta.get("debug"):
                warnings.filterwarnings("ignore", module=r"(torch|ray|captum|tensorboard|google|numpy)(\.|$)")
            return super().invoke(ctx)


class VerbGroup(click.Group):
    """The ``ganscale`` command; its ``main`` always ends in ``SystemExit`` with a code of the contract."""

    command_class = Verb

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None) -> NoReturn:
        """Run the command line ``args`` (default: ``sys.argv[1:]``)."""
        args = list(sys.argv[1:] if args is None else args)
        # --debug counts wherever it stands, also where parsing fails before it is reached
        debug = "--debug" in args
        run = super().main
        sys.exit(_guard(lambda: run(args, prog_name or "ganscale", standalone_mode=False), debug=debug))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return the verb; an unknown one is refused with the nearest names."""
        verb = super().get_command(ctx, name)
        if verb is None:
            raise unknown("command", name, self.commands, error=UserError)
        return verb


def _remember_debug(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    ctx.find_root().meta["debug"] = value


_DEBUG = click.Option(
    ["--debug"],
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_remember_debug,
    help="Print the traceback of an error, and the warnings of libraries.",
)


def _guard(action: Callable[[], object], *, debug: bool) -> int:
    try:
        outcome = action()
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except BrokenPipeError:
        # the reader of our output has gone (`ganscale list presets | head -1`), which is no error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
        return 0
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        code, message = explain(error)
        if debug:
            traceback.print_exc()
        kind = "interrupted" if code == Interrupted.exit_code else "error"
        click.echo(f"{kind}: {' '.join(message.split())}", err=True)
        return code
    return outcome if isinstance(outcome, int) and not isinstance(outcome, bool) else 0


def explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the message of any exception that a verb can end in."""
    if isinstance(error, GanscaleError):
        return error.exit_code, str(error)
    if isinstance(error, click.UsageError):
        return 2, str(explain_usage(error))
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return Interrupted.exit_code, "the command has not finished"
    if is_full_disk(error):
        where = getattr(error, "filename", None) or "this machine"
        return 1, str(full_disk(where, "free some, or choose another directory"))
    if isinstance(error, OSError) and error.errno in _UNUSABLE and error.filename:
        return 2, f"{error.filename} must be usable, got {error.strerror}; change it, or choose another path"
    kind = type(error).__name__
    return (
        1,
        f"ganscale must not fail unexplained, got {kind}: {error}; run it again with --debug and report what it says",
    )


def explain_usage(error: click.UsageError) -> UserError:
    """Reword a mistake on the command line, as click sees it, in the form of all our errors."""
    path = error.ctx.command_path if error.ctx else "ganscale"
    see_help = f"see `{path} --help`"
    if isinstance(error, click.NoSuchOption):
        options = [
            name for parameter in error.ctx.command.get_params(error.ctx) for name in parameter.opts if "--" in name
        ]
        return UserError("option", f"be one of `{path}`", error.option_name, nearest(error.option_name, options))
    if isinstance(error, click.MissingParameter):
        return UserError(_name(error.param), "be given", "nothing", _choices(error.param) or see_help)
    if isinstance(error, click.BadOptionUsage):
        if "does not take a value" in error.message:
            return UserError(error.option_name, "stand without a value", "one", see_help)
        return UserError(error.option_name, "be followed by a value", "nothing", see_help)
    if isinstance(error, click.BadParameter):
        return UserError(_name(error.param), "be a valid value", error.message.rstrip("."), see_help)
    return UserError(
        f"`{path}`", "be called as its help says", error.format_message().removeprefix("Got ").rstrip("."), see_help
    )


def _name(parameter: click.Parameter | None) -> str:
    if isinstance(parameter, click.Option):
        return next((name for name in parameter.opts if name.startswith("--")), parameter.opts[0])
    return "argument" if parameter is None else parameter.human_readable_name


def _choices(parameter: click.Parameter | None) -> str | None:
    names = getattr(parameter.type, "names", None) if parameter else None
    return f"choose one of {', '.join(names)}" if names else None
