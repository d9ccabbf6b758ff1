"""What of Ray listens on this machine, and where: read from /proc (Linux), without asking or disturbing anybody."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

ANSWER_S = 2.0
LISTEN = "0A"  # state of a socket in /proc/net/tcp
PROGRAMS = {  # what stands in a command line -> what it is
    "/gcs_server": "GCS",
    "/raylet": "raylet",
    "ray/dashboard/dashboard.py": "dashboard",
    "ray/dashboard/agent.py": "dashboard agent",
    "ray::DashboardAgent": "dashboard agent",
    "ray.util.client.server": "Ray Client",
    "ray/autoscaler/_private/monitor.py": "autoscaler",
    "runtime_env/agent/main.py": "environment agent",
    "ray::RuntimeEnvAgent": "environment agent",
    "ray::": "workers",
}


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Listener:
    """A port on which a process of Ray takes connections; ``host`` is an address, ``0.0.0.0`` and ``::`` are all."""

    program: str
    port: int
    host: str

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        address = ipaddress.ip_address(self.host)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def ray_listeners() -> list[Listener]:
    """Return every port on which a process of Ray listens, of those processes that may be looked at."""
    sockets = _listening_sockets()
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        program = program_of(_command_line(process))
        if program is None:
            continue
        for inode in _socket_inodes(process) & sockets.keys():
            host, port = sockets[inode]
            found.add(Listener(program=program, port=port, host=host))
    return sorted(found)


def program_of(command: str) -> str | None:
    """Return what of Ray a process with this command line is; None for all others."""
    program = command.split(" ", 1)[0]
    for mark, name in PROGRAMS.items():
        # the two servers by their own name only: others carry it in their arguments
        if mark in (program if mark.startswith(("/", "ray::")) else command):
            return name
    return None


def asks_for_token(listeners: Iterable[Listener]) -> bool | None:
    """Return whether the dashboard among ``listeners`` wants a token; None where none of them is one or answers."""
    for listener in listeners:
        if listener.program == "dashboard":
            host = "127.0.0.1" if ipaddress.ip_address(listener.host).is_unspecified else listener.host
            url = f"http://[{host}]:{listener.port}" if ":" in host else f"http://{host}:{listener.port}"
            no_answer = contextlib.suppress(OSError, ValueError, KeyError, TypeError)
            with no_answer, urlopen(f"{url}/api/authentication_mode", timeout=ANSWER_S) as answer:
                return json.load(answer)["authentication_mode"] == "token"
    return None


def in_words(listeners: Iterable[Listener]) -> str:
    """Say who listens where: those that the network can reach first."""
    parts = []
    for local, where in ((False, "open to the network"), (True, "on localhost alone")):
        ports: dict[str, list[int]] = {}
        for listener in listeners:
            if listener.is_local == local:
                ports.setdefault(listener.program, []).append(listener.port)
        if ports:
            named = ", ".join(f"{name} {' '.join(map(str, sorted(set(n))))}" for name, n in ports.items())
            parts.append(f"{where}: {named}")
    return "; ".join(parts)


def _listening_sockets() -> dict[str, tuple[str, int]]:
    """Return inode -> (address, port) of every TCP socket that listens."""
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTEN:
                    found[fields[9]] = parse_address(fields[1])
    return found


def parse_address(text: str) -> tuple[str, int]:
    """Return the address and the port of an entry of /proc/net/tcp, as ``0100007F:1F90`` for 127.0.0.1:8080.

    The kernel prints the address in words of four bytes, each in the byte order of the machine (here: little endian).
    """
    address, port = text.split(":")
    raw = bytes.fromhex(address)
    packed = b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, packed), int(port, 16)


def _command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:  # gone meanwhile
        return ""


def _socket_inodes(process: Path) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):  # another user's, or gone meanwhile
        for link in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                target = os.readlink(link)
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found
