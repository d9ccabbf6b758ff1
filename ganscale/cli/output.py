"""Where words go: results to the real stdout, everything else to stderr.

While a verb runs, ``sys.stdout`` is stderr, so that what a library prints never spoils a result that a program reads.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

LEAST_ROOM = 24  # of a column that is folded
_results = None


@contextmanager
def stdout_kept_for_results() -> Iterator[None]:
    """Point ``sys.stdout`` at stderr inside the block; ``result`` and ``result_json`` alone reach the real one."""
    global _results
    _results, sys.stdout = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout, _results = _results, None


def result(text: str = "") -> None:
    """Print one line of the result to stdout."""
    click.echo(text, file=_results)
    (_results or sys.stdout).flush()


def result_json(value: Any) -> None:
    """Print ``value`` as strict JSON, alone on stdout; numbers that JSON cannot hold become null."""
    result(json.dumps(plain(value), indent=2, allow_nan=False))


def note(text: str) -> None:
    """Say something about the work to stderr."""
    click.echo(text, err=True)


def plain(value: Any) -> Any:
    """Turn dataclasses, mappings, sequences, paths and array scalars into what JSON knows."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json"))
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return str(value)


def table(rows: Sequence[Sequence[str]], *, indent: str = "", columns: int | None = None) -> str:
    """Lay ``rows`` out in left-aligned columns, two spaces apart; the last column runs free.

    Where a person looks at it, the last column is folded below itself to fit ``columns`` (default: a terminal's width).
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    used = len(indent) + sum(widths[:-1]) + 2 * (len(widths) - 1)
    room = (columns or _terminal_columns() or 0) - used
    lines = []
    for row in rows:
        folded = textwrap.wrap(row[-1], room, break_on_hyphens=False) if room >= LEAST_ROOM else [row[-1]]
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        lines.append(indent + "  ".join([*cells, *folded[:1]]).rstrip())
        lines += [" " * used + more for more in folded[1:]]
    return "\n".join(lines)


def show_table(rows: Sequence[Sequence[str]], *, title: str | None = None, styles: Sequence[str] = ()) -> None:
    """Print ``rows``, the first one their head: ruled on a terminal, in plain columns elsewhere.

    A terminal also shows ``title``, and each row below the head in its style of ``styles`` (as rich names them).
    """
    stream = _results or sys.stdout
    if not stream.isatty():
        result(table(rows))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table(*rows[0], title=title)
    for row, style in itertools.zip_longest(rows[1:], styles):
        shown.add_row(*row, style=style)
    Console(file=stream, markup=False).print(shown)


def _terminal_columns() -> int | None:
    stream = _results or sys.stdout
    return shutil.get_terminal_size().columns if stream.isatty() else None
