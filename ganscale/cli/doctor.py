"""``ganscale doctor``: what of this machine ganscale can use, a line each, with the remedy where something is amiss."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import click

from ganscale.cli.dashboard import PORT as TENSORBOARD_PORT
from ganscale.cli.group import Verb
from ganscale.cli.output import result, result_json, table
from ganscale.cli.params import json_option
from ganscale.files import cache_dir

Status = Literal["ok", "note", "bad"]
ROOM_NEEDED_GB = 2.0  # a demo run with its checkpoints takes well under half of it


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One line: ``ok``; ``note``, something could work better; ``bad``, something can't work."""

    name: str
    status: Status
    said: str
    remedy: str = ""


def _python() -> Check:
    from ganscale import __version__

    return Check(name="python", status="ok", said=f"{sys.version.split()[0]}, ganscale {__version__}")


def _core() -> Check:
    from ganscale import ops

    info = ops.build_info()
    if not info["compiled"]:
        said = f"absent ({info['reason']}); plain torch takes its place, slower"
        remedy = "install again with a C++17 compiler on the PATH"
        return Check(name="compiled core", status="note", said=said, remedy=remedy)
    cuda = f"CUDA kernels for {', '.join(info['cuda_archs'])}" if info["cuda"] else "no CUDA kernels"
    said = f"{info['version']}, {info['cpu_kernels']}, {cuda}; in use: {ops.describe()}"
    return Check(name="compiled core", status="ok", said=said)


def _torch() -> Check:
    import torch

    said = f"{torch.__version__}, threads: {torch.get_num_threads()} on {os.cpu_count()} cores"
    return Check(name="torch", status="ok", said=said)


def _cuda() -> Check:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Check(name="CUDA", status="ok", said=f"{len(names)} GPU(s): {', '.join(names)}")
    built = f"torch was built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch was built without CUDA"
    return Check(name="CUDA", status="note", said=f"no GPU in sight ({built}); everything runs on the CPU")


def _package(package: str, needed_for: str, *, extras: tuple[str, ...] = ()) -> Check:
    missing = [name for name in (package, *extras) if importlib.util.find_spec(name) is None]
    if missing:
        remedy = f"pip install {' '.join(missing)}"
        return Check(
            name=package, status="bad", said=f"{', '.join(missing)} missing, needed for {needed_for}", remedy=remedy
        )
    try:
        return Check(name=package, status="ok", said=version(package))
    except PackageNotFoundError:
        return Check(name=package, status="ok", said="present, version unknown")


def _ray_ports() -> Check:
    from ganscale.runtime.listening import asks_for_token, in_words, ray_listeners

    listeners = ray_listeners()
    if not listeners:
        return Check(name="ray ports", status="ok", said=f"nothing of Ray runs here; {_token()}")
    asked = {True: "a token is asked for", False: "no token is asked for", None: "its dashboard does not answer"}
    said = f"{in_words(listeners)}; {asked[asks_for_token(listeners)]}; {_token()}"
    if asks_for_token(listeners) is False:
        remedy = "whoever reaches these ports can run programs here: start Ray with RAY_AUTH_MODE=token"
        return Check(name="ray ports", status="note", said=said, remedy=remedy)
    # GCS and raylet listen on all interfaces, also where the dashboard is bound to localhost
    remedy = "" if all(one.is_local for one in listeners) else "keep these ports behind a firewall"
    return Check(name="ray ports", status="note" if remedy else "ok", said=said, remedy=remedy)


def _token() -> str:
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return "RAY_AUTH_MODE turns the token off"
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "our token is in RAY_AUTH_TOKEN"
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not path.exists():
        return f"no token yet in {path}"
    others = path.stat().st_mode & 0o077
    return f"our token is in {path}" + (", readable by others: chmod 600" if others else "")


def _data() -> Check:
    from ganscale.config import DataConfig
    from ganscale.data import open_dataset

    dataset = open_dataset(DataConfig(), split="train")
    shape = "x".join(map(str, dataset.shape))
    return Check(name="data", status="ok", said=f"{dataset.name}: {len(dataset)} training images of {shape}")


def _cache() -> Check:
    folder = cache_dir()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if os.access(existing, os.W_OK):
        return Check(name="cache", status="ok", said=str(folder))
    remedy = "set GANSCALE_CACHE to a folder that you own"
    return Check(name="cache", status="bad", said=f"{folder} is not writable", remedy=remedy)


def _ports() -> Check:
    if port_is_free(TENSORBOARD_PORT):
        return Check(name="ports", status="ok", said=f"{TENSORBOARD_PORT} (TensorBoard) is free")
    remedy = "ganscale dashboard --port N"
    return Check(name="ports", status="note", said=f"{TENSORBOARD_PORT} (TensorBoard) is taken", remedy=remedy)


def _disk() -> Check:
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    said = f"{free_gb:.1f} GB free in {Path.cwd()}"
    if not os.access(Path.cwd(), os.W_OK):
        return Check(name="disk", status="bad", said=f"{Path.cwd()} is not writable", remedy="use --runs-dir DIR")
    if free_gb < ROOM_NEEDED_GB:
        return Check(name="disk", status="bad", said=said, remedy=f"free some: a run needs up to {ROOM_NEEDED_GB:g} GB")
    return Check(name="disk", status="ok", said=said)


CHECKS: dict[str, Callable[[], Check]] = {
    "python": _python,
    "compiled core": _core,
    "torch": _torch,
    "CUDA": _cuda,
    "ray": lambda: _package("ray", "training with workers", extras=("pandas", "pyarrow", "fsspec")),
    "ray ports": _ray_ports,
    "tensorboard": lambda: _package("tensorboard", "the dashboard"),
    "captum": lambda: _package("captum", "integrated gradients"),
    "data": _data,
    "cache": _cache,
    "ports": _ports,
    "disk": _disk,
}


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Say whether a server could listen on ``port`` of ``host`` now."""
    with socket.socket() as probe:
        # as servers do, so that a port which lingers in TIME_WAIT does not count as taken
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def examine(name: str) -> Check:
    """Run one check; what it raises becomes its line, for doctor has to work where nothing else does."""
    try:
        return CHECKS[name]()
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return Check(name=name, status="bad", said=said, remedy="install again: make setup, or pip install .")


@click.command(cls=Verb)
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Say what of this machine can be used.

    A line each, with the remedy; the exit code is 1 where something is broken.
    """
    checks = [examine(name) for name in CHECKS]
    if as_json:
        result_json(checks)
    else:
        result(table([(c.status, c.name, c.said + (f"; {c.remedy}" if c.remedy else "")) for c in checks]))
    ctx.exit(1 if any(check.status == "bad" for check in checks) else 0)
