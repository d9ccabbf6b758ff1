"""What of Ray listens where: the kernel's tables read right, programs told apart, the network named first."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ganscale.runtime.listening import (
    Listener,
    _listening_sockets,
    _socket_inodes,
    in_words,
    parse_address,
    program_of,
)

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("0100007F:1F90", ("127.0.0.1", 8080)),
        ("00000000:0050", ("0.0.0.0", 80)),
        ("00000000000000000000000000000000:1388", ("::", 5000)),
        ("00000000000000000000000001000000:0001", ("::1", 1)),
        ("0000000000000000FFFF00000100007F:0001", ("::ffff:127.0.0.1", 1)),
    ],
)
def test_an_address_of_the_kernel_is_read(text, meant):
    assert parse_address(text) == meant


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_socket_of_ours_is_found_with_its_address(host):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        server.bind((host, 0))
        sockets = _listening_sockets()
        mine = _socket_inodes(Path(f"/proc/{os.getpid()}"))
        port = server.getsockname()[1]
        assert (host, port) not in {sockets[inode] for inode in mine & sockets.keys()}  # bound is not listening
        server.listen()
        sockets = _listening_sockets()
        assert (host, port) in {sockets[inode] for inode in mine & sockets.keys()}


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("/x/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp", "GCS"),
        ("/x/ray/core/src/ray/raylet/raylet --dashboard_agent_command=ray/dashboard/agent.py", "raylet"),
        ("/x/python3 /x/ray/dashboard/dashboard.py --host=127.0.0.1", "dashboard"),
        ("ray::DashboardAgent", "dashboard agent"),
        ("ray::RayTrainWorker.run()", "workers"),
        ("/usr/bin/vim notes-on-/raylet", None),
        ("python train.py", None),
        ("", None),
    ],
)
def test_a_program_of_ray_is_known_by_its_command_line(command, program):
    assert program_of(command) == program


def test_the_network_comes_first_and_loopback_in_any_writing_is_local():
    found = [
        Listener(program="dashboard", port=8265, host="127.0.0.1"),
        Listener(program="Ray Client", port=10001, host="::ffff:127.0.0.1"),
        Listener(program="GCS", port=6379, host="::"),
        Listener(program="raylet", port=2, host="10.0.0.1"),
        Listener(program="raylet", port=1, host="0.0.0.0"),
    ]
    assert in_words(found) == (
        "open to the network: GCS 6379, raylet 1 2; on localhost alone: dashboard 8265, Ray Client 10001"
    )
    assert in_words([]) == ""
