"""Ray's life: join a cluster, or start a private local one and end every process of it. Nothing else starts or stops
Ray.

A local Ray lives in a temporary directory of its own, so what survives its shutdown is found by the files it holds open
there, never by a process name. Ray's words stay out of stdout.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ganscale.errors import UserError
from ganscale.runtime.guard import guarded
from ganscale.runtime.joining import check_address, refusal
from ganscale.runtime.placement import Resources
from ganscale.runtime.processes import end_all, tree_of

_open_ray = ContextVar("open_ray", default=False)
SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how soon the controller sees a report, an end, a death
    # how long the controller waits for a place for all workers before it looks again at what there is: it holds nothing
    # but the reservation, so trying often costs little, and after a loss the wait for the lost node is the price
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",  # a worker whose process answers nothing is lost; Ray's is 600
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "300",  # for all ranks to report a tick; without it for ever
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process fewer to start: workers look themselves (leaving.py)
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths keep their meaning in workers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker without GPUs sees none
    "RAY_USAGE_STATS_ENABLED": "0",
}


@contextlib.contextmanager
def ray_session(
    *,
    address: str | None = None,
    cpus: int | None = None,
    gpus: int | None = None,
    verbose: bool = False,
    meanwhile: str | None = None,
) -> Iterator[None]:
    """Hold a connection to Ray: the cluster at ``address``, or a local Ray with ``cpus`` and ``gpus`` of our own.

    ``meanwhile`` names a module to import while Ray starts, which is mostly waiting for other processes.
    A connection that this process already has is used and left alone. A local Ray is gone, with all its processes, when
    the block is left, also by an exception.
    """
    with _settings(), _own_stdout(verbose):
        import ray

        if ray.is_initialized():
            yield
            return
        require_token(create=address is None)
        own = _local_ray(verbose, meanwhile, cpus, gpus) if address is None else _joined(address, verbose, meanwhile)
        with _own_sigterm(), own:
            yield


@contextlib.contextmanager
def _local_ray(verbose: bool, meanwhile: str | None, cpus: int | None, gpus: int | None) -> Iterator[None]:
    import ray

    home = Path(tempfile.mkdtemp(prefix="ganscale-"))
    with guarded(home):
        try:
            # "local": without it Ray joins whatever cluster it finds on this machine
            _init(
                ray,
                verbose,
                meanwhile,
                address="local",
                num_cpus=cpus,
                num_gpus=gpus,
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                _temp_dir=str(home),
            )
            yield
        finally:
            tree = tree_of(home)
            _shut_down(ray, verbose)
            end_all(tree, home)
            if verbose:
                print(f"Ray's logs are in {home}", file=sys.stderr)
            else:
                shutil.rmtree(home, ignore_errors=True)


def cluster_resources(address: str | None) -> Resources:
    """Return what the cluster at ``address`` has (None: the one this process is connected to); raises ResourceError."""
    with ray_session(address=address):
        import ray

        total = ray.cluster_resources()
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return Resources(
            cpus=int(total.get("CPU", 0)),
            gpus=int(total.get("GPU", 0)),
            memory_bytes=int(total["memory"]) if "memory" in total else None,
            where=f"the cluster at {address}" if address not in (None, "auto") else "this cluster",
            nodes=tuple((int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in alive),
        )


def is_connected() -> bool:
    """Whether this process already has a connection to Ray; does not import it."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


@contextlib.contextmanager
def open_ray_accepted() -> Iterator[None]:
    """Accept, inside the block, that RAY_AUTH_MODE turns authentication off: the user has asked for it."""
    before = _open_ray.set(True)
    try:
        yield
    finally:
        _open_ray.reset(before)


def require_token(*, create: bool) -> Path | None:
    """Return the file with Ray's authentication token, readable by its owner alone; ``create`` makes one where none is.

    Raises UserError where a cluster is to be joined and there is no token for it, and where RAY_AUTH_MODE turns
    authentication off without ``open_ray_accepted``.
    """
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        if not _open_ray.get():
            remedy = "unset it, or accept with --insecure that whoever reaches Ray's ports can run programs"
            raise UserError("RAY_AUTH_MODE", "not turn authentication off", "disabled", remedy)
        return None
    if os.environ.get("RAY_AUTH_TOKEN"):
        return None
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if path.exists():
        path.chmod(0o600)
        return path
    if not create:
        raise UserError("the Ray token", f"be in {path}", "no such file", "copy it from the head node of the cluster")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(secrets.token_hex(32))
    with contextlib.suppress(FileExistsError):  # another launch was first: its token is everybody's
        os.link(aside, path)
    aside.unlink()
    return path


@contextlib.contextmanager
def _joined(address: str, verbose: bool, meanwhile: str | None) -> Iterator[None]:
    import ray

    check_address(address, verbose=verbose)
    try:
        _init(ray, verbose, meanwhile, address=address)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        _shut_down(ray, verbose)  # a refusal may come when this process counts as connected already
        raise refusal(address, error) from None
    try:
        yield
    finally:
        _shut_down(ray, verbose)


def _init(ray: Any, verbose: bool, meanwhile: str | None, **options: Any) -> None:
    importing = threading.Thread(target=__import__, args=(meanwhile or "ray",), daemon=True)
    importing.start()
    ray.init(log_to_driver=verbose, logging_level="INFO" if verbose else "ERROR", **options)
    _take_sigterm_back()
    importing.join()


def _shut_down(ray: Any, verbose: bool) -> None:
    """End the connection; what Ray held back of the nodes' last words, to say it once, comes from this very thread."""
    with contextlib.nullcontext() if verbose else contextlib.redirect_stdout(io.StringIO()):
        ray.shutdown()
    _take_sigterm_back()


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep Ray's Python from taking over SIGTERM, at which it would end this process without a word.

    Where nobody listens to it, the signal ends the block as Ctrl-C does. Ray's C++ takes it over too, see below.
    """
    from ray._private import utils

    if threading.current_thread() is not threading.main_thread():  # no signal comes here, and Ray knows
        yield
        return
    before, take_over = signal.getsignal(signal.SIGTERM), utils.set_sigterm_handler
    if before is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = take_over
        if before is not None:  # else it is no handler of Python's, and cannot be put back
            signal.signal(signal.SIGTERM, before)


def _take_sigterm_back() -> None:
    """Have Python's handler called again: Ray's C++ puts its own there in ``init``, and none in ``shutdown``."""
    handler = signal.getsignal(signal.SIGTERM)  # None where it was not installed from Python
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Set what Ray reads from the environment, where the user has not, for the time of a session."""
    if "ray" not in sys.modules:  # Ray reads it when imported, and it must not change afterwards
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    mine = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)


class _Filter(io.TextIOBase):
    """A stdout for everybody but Ray: what Ray's threads print goes to stderr (``verbose``) or nowhere."""

    def __init__(self, stream: Any, verbose: bool) -> None:
        self._stream, self._verbose = stream, verbose

    def write(self, text: str) -> int:
        if not threading.current_thread().name.startswith("ray_"):
            return self._stream.write(text)
        return sys.stderr.write(text) if self._verbose else len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    @property
    def closed(self) -> bool:
        return self._stream.closed  # a library that remembered this stdout asks at exit

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str | None:
        return getattr(self._stream, "encoding", None)

    @property
    def buffer(self) -> Any:
        return self._stream.buffer


@contextlib.contextmanager
def _own_stdout(verbose: bool) -> Iterator[None]:
    if isinstance(sys.stdout, _Filter):
        yield
        return
    with contextlib.redirect_stdout(_Filter(sys.stdout, verbose)):
        yield
