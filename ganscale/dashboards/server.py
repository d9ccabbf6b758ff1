"""TensorBoard on this machine, started and stopped by us: ``ganscale dashboard``."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tensorboard import default, program
from tensorboard.plugins.projector.metadata import PROJECTOR_FILENAME
from werkzeug.test import Client

from ganscale.errors import ResourceError, UserError

DEFAULT_PORT = 6006
_ASKS, _ASK_EVERY_S = 100, 0.1  # by then all events have been read, or there are so many that people wait anyway

# TensorBoard keeps only ten images a tag by default, fewer than the grids of a usual run
_SAMPLES = "images=200,scalars=10000,histograms=1000"


class TensorBoardServer:
    """A running TensorBoard: ``url``, ``wait`` until Ctrl-C, ``stop``. A context manager that stops at its end."""

    def __init__(self, url: str, server: program.TensorBoardServer, app: Callable, logdir: Path) -> None:
        self.url = url
        self._server = server
        self._stopped = threading.Event()
        self.prepared = threading.Thread(target=_find_codes, args=(app, logdir, self._stopped), daemon=True)
        self.prepared.start()

    def __enter__(self) -> TensorBoardServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait(self) -> None:
        """Serve until Ctrl-C, then stop and return."""
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            self.stop()

    def stop(self) -> None:
        """End the server and free its port; a second call does nothing."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()


def start_tensorboard(
    logdir: str | Path, port: int = DEFAULT_PORT, *, host: str = "127.0.0.1", quiet: bool = False
) -> TensorBoardServer:
    """Serve the runs below ``logdir`` at ``host:port`` (port 0: any free one) and print the address unless ``quiet``.

    Returns at once; call ``wait`` on the result. Raises ``UserError`` where the directory is missing and
    ``ResourceError`` that offers a free port where ``port`` is taken. Only this machine can connect unless ``host``
    says otherwise.
    """
    directory = Path(logdir)
    if not directory.is_dir():
        raise UserError(
            str(directory), "be an existing directory", "no such directory", "name a run or the runs directory"
        )
    if not 0 <= port <= 65535:
        raise UserError("port", "be between 0 and 65535", port, f"for example --port {DEFAULT_PORT}")
    if port and _binding_error(host, port) == errno.EADDRINUSE:
        raise _taken(host, port)
    made: list[tuple[program.TensorBoardServer, Callable]] = []

    def make(wsgi_app: Callable, flags: object) -> program.TensorBoardServer:
        made.append((program.WerkzeugServer(wsgi_app, flags), wsgi_app))
        return made[0][0]

    board = program.TensorBoard(plugins=default.get_plugins(), server_class=make)
    # the fast loader is another process that would outlive us; multifile: a run and its explanations write at one time
    board.configure(
        logdir=str(directory),
        host=host,
        port=port,
        load_fast="false",
        reload_multifile=True,
        samples_per_plugin=_parse_samples(_SAMPLES),
    )
    try:
        url = board.launch()
    except program.TensorBoardPortInUseError:
        raise _taken(host, port) from None
    except program.TensorBoardServerException as error:
        raise ResourceError(
            f"{host}:{port}", "be an address that can be bound", error.msg, "try another --port"
        ) from None
    server = TensorBoardServer(url, *made[0], directory)
    if not quiet:  # last, for who has read it may end us
        print(f"TensorBoard of {directory} at {url} (Ctrl-C ends it)", flush=True)
    return server


def _find_codes(app: Callable, logdir: Path, stopped: threading.Event) -> None:
    """Ask for the projector until it is there: it looks for codes once it is asked, too late for a page that asks."""
    client = Client(app)
    if next(logdir.rglob(PROJECTOR_FILENAME), None) is None:
        return
    for _ in range(_ASKS):
        if client.get("/data/plugins_listing").get_json()["projector"]["enabled"] or stopped.wait(_ASK_EVERY_S):
            return


def free_port(host: str, after: int) -> int:
    """Return the first port above ``after`` that nobody listens on, or any free one where a hundred are taken."""
    for port in range(after + 1, min(after + 101, 65536)):
        if _binding_error(host, port) is None:
            return port
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def _binding_error(host: str, port: int) -> int | None:
    """Return the errno with which the system refuses the port, or None where it can be had."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: a port just left is free
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno
    return None


def _taken(host: str, port: int) -> ResourceError:
    return ResourceError(f"port {port}", "be free", "a port in use", f"use --port {free_port(host, port)}")


def _parse_samples(text: str) -> dict[str, int]:
    return {name: int(count) for name, _, count in (part.partition("=") for part in text.split(","))}
