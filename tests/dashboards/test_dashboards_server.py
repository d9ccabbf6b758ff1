"""TensorBoard starts where it is told, says who has the port, and ends on Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from dashboard_cases import red_codes

from ganscale.dashboards import TensorBoardSink, start_tensorboard
from ganscale.dashboards.server import free_port, is_local
from ganscale.errors import ResourceError, UserError
from ganscale.runtime.listening import _listening_sockets, _socket_inodes
from ganscale.training.records import TickRecord

HOST = "127.0.0.1"


def write_one_tick(directory) -> None:
    tick = TickRecord(images=1000, scalars={"penalty": 0.5}, histograms={}, timing={}, checkpoint=None, partial=False)
    with TensorBoardSink(directory / "run") as sink:
        sink.write(tick)


def get(url: str) -> object:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.load(answer)


def test_a_started_server_lists_its_plugins_and_the_run(tmp_path, capsys):
    write_one_tick(tmp_path)
    with start_tensorboard(tmp_path, 0) as server:
        assert server.url in capsys.readouterr().out
        plugins = get(server.url + "data/plugins_listing")
        assert plugins["scalars"]["enabled"] in (True, False)  # the first load of the events may still be under way
        assert {"scalars", "images", "histograms", "custom_scalars", "text"} <= plugins.keys()
        port = int(server.url.rstrip("/").rpartition(":")[2])
        with pytest.raises(ResourceError, match=rf"port {port} must be free, .*--port \d+"):
            start_tensorboard(tmp_path, port)
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind((HOST, port))  # stopping frees the port


def hosts_of(port: int) -> set[str]:
    """Return the addresses at which this process listens on ``port``, as the kernel has them."""
    sockets, mine = _listening_sockets(), _socket_inodes(Path(f"/proc/{os.getpid()}"))
    return {sockets[inode][0] for inode in mine & sockets.keys() if sockets[inode][1] == port}


@pytest.mark.parametrize(("options", "listens"), [({}, {HOST}), ({"host": "0.0.0.0"}, {"0.0.0.0"})])
def test_only_this_machine_can_connect_unless_it_was_asked_otherwise(tmp_path, options, listens):
    with start_tensorboard(tmp_path, 0, quiet=True, **options) as server:
        assert hosts_of(urllib.parse.urlsplit(server.url).port) == listens


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("localhost", True), ("0.0.0.0", False), ("10.0.0.1", False)],
)
def test_a_host_that_others_can_reach_is_told_from_one_that_they_cannot(host, local):
    assert is_local(host) == local


@pytest.mark.parametrize("host", ["no such host", "a..b", "192.0.2.1"])  # the last one is nobody's (RFC 5737)
def test_a_host_that_is_not_of_this_machine_is_refused(tmp_path, host):
    with pytest.raises(ResourceError, match="leave --host out"):
        start_tensorboard(tmp_path, 0, host=host)


def test_the_projector_is_there_for_the_first_page_that_asks(tmp_path):
    with TensorBoardSink(tmp_path / "run") as sink:
        sink.write_explanation(red_codes(10), 1000, panels={})
    with start_tensorboard(tmp_path, 0, quiet=True) as server:
        server.prepared.join(60)
        assert get(server.url + "data/plugins_listing")["projector"]["enabled"]


def test_a_taken_port_is_refused_with_a_free_one(tmp_path):
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ResourceError) as caught:
            start_tensorboard(tmp_path, port)
        offered = int(str(caught.value).rpartition(" ")[2])
        assert offered != port
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one may linger here
            probe.bind((HOST, offered))
        assert free_port(HOST, port) != port


def test_a_missing_directory_and_an_impossible_port_are_refused(tmp_path):
    with pytest.raises(UserError, match="existing directory"):
        start_tensorboard(tmp_path / "none", 0)
    with pytest.raises(UserError, match="between 0 and 65535"):
        start_tensorboard(tmp_path, 70000)


# says so once the main thread stands in wait(), for the moment between two calls belongs to nobody
WAITS = """
import sys, threading, time
from ganscale.dashboards import start_tensorboard

main = threading.get_ident()
server = start_tensorboard(sys.argv[1], 0)

def calls_from(frame):
    return [] if frame is None else [frame.f_code, *calls_from(frame.f_back)]

def tell():
    inside = type(server).wait.__code__, threading.Condition.wait.__code__
    while not set(inside) <= set(calls_from(sys._current_frames()[main])):
        time.sleep(0.01)
    print("waits", flush=True)

threading.Thread(target=tell).start()
server.wait()
print("ended")
"""


def test_ctrl_c_ends_the_server_cleanly(tmp_path):
    write_one_tick(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", WAITS, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        said = process.stdout.readline()
        assert get(said.split(" at ")[1].split(" ")[0] + "data/plugins_listing")
        assert process.stdout.readline() == "waits\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out.strip()) == (0, "ended"), err
    assert "Traceback" not in err
