"""``ganscale dashboard``: TensorBoard on localhost, or where the user wants it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import click

from ganscale.cli.group import Verb
from ganscale.cli.jobs import warn
from ganscale.cli.output import result
from ganscale.cli.params import WholeNumber, find_run, nearest_run
from ganscale.errors import UserError

EVENTS = "events.out.tfevents.*"
PORT = 6006
HOST = "127.0.0.1"


@click.command(cls=Verb)
@click.argument("where", metavar="[RUN|DIR]", default="runs")
@click.option("--port", type=WholeNumber(1, 65535), default=PORT, show_default=True, help="Port to listen on.")
@click.option(
    "--host", metavar="HOST", default=HOST, show_default=True, help="Address to listen on; 0.0.0.0: for everybody."
)
def dashboard(where: str, port: int, host: str) -> None:
    """Show runs in TensorBoard, on localhost.

    RUN is a run directory, the name of one below runs/, or an address in an object store; DIR (default: runs) shows
    every run below it.
    """
    folder = find_events(where)
    from ganscale.dashboards.server import is_local, start_tensorboard

    with start_tensorboard(folder, port, host=host, quiet=True) as server, suppress(KeyboardInterrupt):
        if not is_local(host):
            warn(
                f"TensorBoard has no password: whoever reaches port {port} of this machine sees every run of {folder}, "
                f"images included; a tunnel needs no --host: ssh -L {port}:localhost:{port} THIS-MACHINE"
            )
        result(f"TensorBoard of {folder} at {server.url} (Ctrl-C ends it)")
        server.wait()


def find_events(where: str) -> Path:
    """Return the directory that ``where`` names, a path or a run below ``runs``; raises ``UserError`` if eventless."""
    for folder in (find_run(where),) if "://" in where else (Path(where), Path("runs") / where):
        if next(folder.rglob(EVENTS), None) is not None:
            return folder
    raise UserError("RUN or DIR", "be a directory that holds TensorBoard events", where, nearest_run(where))
