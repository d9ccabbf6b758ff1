"""A Ray cluster of one node for tests: a head with a token, on free ports, in a folder of its own; all of it ends."""

from __future__ import annotations

import contextlib
import os
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
    """Return ports that nobody listens on; all are held until the last is found, so that they differ."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def ray_head(home: Path, *, cpus: int = 2, gpus: int = 0) -> Iterator[RayHead]:
    """Run a head whose files lie in ``home``, a short path: the names of sockets must stay below 108 characters."""
    token_path = home / "auth_token"
    token_path.touch(mode=0o600)
    token_path.write_text(secrets.token_hex(32))
    ports = free_ports(4)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # where jobs find `ganscale`
    }
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    chosen = [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    command = [RAY, "start", "--head", "--block", *chosen, "--dashboard-host=127.0.0.1", "--disable-usage-stats"]
    command += [f"--num-cpus={cpus}", f"--num-gpus={gpus}", f"--temp-dir={home / 'ray'}"]
    with (home / "head.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    head = RayHead(f"http://127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[0]}", token_path, environment)
    try:
        _wait_until_up(head, process, home / "head.log", cpus)
        yield head
    finally:
        tree = tree_of(home)
        process.terminate()  # with --block the head ends its node and itself
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(8)  # it drains its node for up to 30 s, which nobody needs here
        end_all(tree, home)
        process.wait(5)


def _wait_until_up(head: RayHead, process: subprocess.Popen[bytes], log: Path, cpus: int) -> None:
    from ganscale.errors import GanscaleError

    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(GanscaleError):
            if head.server.resources().cpus == cpus:
                return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
