"""``ganscale report``: one self-contained HTML page of a run."""

from __future__ import annotations

import click

from ganscale.cli.group import Verb
from ganscale.cli.output import result, result_json
from ganscale.cli.params import find_run, json_option, run_argument


@click.command(cls=Verb)
@run_argument
@json_option
def report(run: str, as_json: bool) -> None:
    """Write one self-contained HTML page of a run."""
    path = find_run(run)
    from ganscale.runtime import load

    page = load(path).report()
    if as_json:
        result_json({"report": page})
    else:
        result(str(page))
