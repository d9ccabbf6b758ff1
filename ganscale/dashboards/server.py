"""TensorBoard on this machine, started and stopped by us: ``ganscale dashboard``."""

from __future__ import annotations

import errno
import ipaddress
import os
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
LOCALHOST = "127.0.0.1"
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
    logdir: str | Path, port: int = DEFAULT_PORT, *, host: str = LOCALHOST, quiet: bool = False
) -> TensorBoardServer:
    """Serve the runs below ``logdir`` at ``host:port`` (port 0: any free one) and print the address unless ``quiet``.

    Returns at once; call ``wait`` on the result. Raises ``UserError`` where the directory is missing, and
    ``ResourceError`` where ``host`` is not of this machine, or ``port`` is taken, with a free one. Only this machine
    can connect unless ``host`` says otherwise; TensorBoard then asks nobody who he is.
    """
    directory = Path(logdir)
    if not directory.is_dir():
        raise UserError(
            str(directory), "be an existing directory", "no such directory", "name a run or the runs directory"
        )
    if not 0 <= port <= 65535:
        raise UserError("port", "be between 0 and 65535", port, f"for example --port {DEFAULT_PORT}")
    refused = _binding_error(host, port)
    if refused == errno.EADDRINUSE:
        raise _taken(host, port)
    if refused is not None:  # TensorBoard's server would end the process
        remedy = "try another --port" if is_local(host) else f"leave --host out, which is {LOCALHOST}"
        raise ResourceError(f"{host}:{port}", "be an address that can be bound", os.strerror(refused), remedy)
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


def is_local(host: str) -> bool:
    """Whether only this machine can connect to what listens at ``host``; raises ``ResourceError`` for no host."""
    found = [ipaddress.ip_address(address.partition("%")[0]) for _, address in _addresses(host)]
    return all((getattr(address, "ipv4_mapped", None) or address).is_loopback for address in found)


def free_port(host: str, after: int) -> int:
    """Return the first port above ``after`` that nobody listens on, or any free one where a hundred are taken."""
    for port in range(after + 1, min(after + 101, 65536)):
        if _binding_error(host, port) is None:
            return port
    with socket.socket(_addresses(host)[0][0]) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    try:
        return [(found[0], found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        remedy = f"leave --host out, which is {LOCALHOST}"
        raise ResourceError("--host", "be an address or a name of this machine", host, remedy) from None


def _binding_error(host: str, port: int) -> int | None:
    """Return the errno with which the system refuses the port, or None where it can be had."""
    with socket.socket(_addresses(host)[0][0]) as probe:
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
