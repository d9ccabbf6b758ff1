"""A Ray cluster of one node for tests: a head with a token, on free ports, in a folder of its own; all of it ends."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ganscale.runtime.jobs_server import JobServer
from ganscale.runtime.processes import end_all, tree_of

START_S = 90  # only where all else fails
RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True)
class RayHead:
    """A running head: the URL of its dashboard, host:port of the cluster, its token, and what its users set."""

    url: str
    address: str
    token_path: Path
    environment: dict[str, str]

    @property
    def server(self) -> JobServer:
        """Its job server, asked with the right token."""
        return JobServer(self.url, self.token_path.read_text())


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, drawn at random from those that nobody is given unasked.

    Seconds go by until they are used: the system gives out 32768 to 60999 meanwhile, and Ray 10002 to 19999.
    """
    found = []
    for port in random.SystemRandom().sample(range(20000, 32768), 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


@contextlib.contextmanager
def ray_head(home: Path, *, cpus: int = 2, gpus: int = 0) -> Iterator[RayHead]:
    """Run a head whose files lie in ``home``, a short path: the names of sockets must stay below 108 characters."""
    token_path = home / "auth_token"
    token_path.touch(mode=0o600)
    token_path.write_text(secrets.token_hex(32))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # where jobs find `ganscale`
    }
    log = home / "head.log"
    for _ in range(2):  # somebody may have taken a port before the head did
        ports = free_ports(4)
        head = RayHead(f"http://127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[0]}", token_path, environment)
        with _running(home, ports, log, environment, f"--num-cpus={cpus}", f"--num-gpus={gpus}") as process:
            if _comes_up(head, process, log, cpus):
                yield head
                return
    raise AssertionError(log.read_text())


@contextlib.contextmanager
def _running(
    home: Path, ports: list[int], log: Path, environment: dict[str, str], *sizes: str
) -> Iterator[subprocess.Popen[bytes]]:
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    chosen = [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    command = [RAY, "start", "--head", "--block", *chosen, "--dashboard-host=127.0.0.1", "--disable-usage-stats"]
    command += [*sizes, f"--temp-dir={home / 'ray'}"]
    with log.open("a") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        yield process
    finally:
        tree = tree_of(home)
        process.terminate()  # with --block the head ends its node and itself
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(8)  # it drains its node for up to 30 s, which nobody needs here
        end_all(tree, home)
        process.wait(5)


def _comes_up(head: RayHead, process: subprocess.Popen[bytes], log: Path, cpus: int) -> bool:
    """Wait until the head is up and return True, or False where it ends before."""
    from ganscale.errors import GanscaleError

    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(GanscaleError):
            if head.server.resources().cpus == cpus:
                return True
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, log.read_text()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
