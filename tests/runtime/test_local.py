"""What surrounds Ray: the token's mode, stdout, and the end of processes that were started."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ganscale.errors import UserError
from ganscale.runtime import processes
from ganscale.runtime.local import _own_stdout, _take_sigterm_back, open_ray_accepted, require_token
from ganscale.runtime.processes import end_all, tree_of
from ganscale.runtime.stopping import stop_signals

pytestmark = pytest.mark.distributed
STUBBORN = """
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
held = open(sys.argv[1], "w")
child = subprocess.Popen([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(999)"], stdout=-1)
child.stdout.readline()
print(child.pid, flush=True)
while True:
    time.sleep(9)  # not for the child, which may be killed first
"""
HOLDING = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
held = open(sys.argv[1], "w")
print(1, flush=True)
time.sleep(999)
"""


def test_a_token_is_made_once_for_its_owner_alone(tmp_path, monkeypatch):
    path = tmp_path / "ray" / "auth_token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(UserError, match=r"the Ray token must be in .*auth_token, got no such file; copy it"):
        require_token(create=False)
    assert require_token(create=True) == path
    first = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)  # as Ray itself leaves it
    require_token(create=False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == first


def test_launches_that_begin_together_agree_on_one_token(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    for turn in range(50):
        path = tmp_path / str(turn) / "auth_token"
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
        together = threading.Barrier(8)

        def read(_, together=together):
            together.wait()
            return require_token(create=True).read_text()

        with ThreadPoolExecutor(8) as pool:
            tokens = set(pool.map(read, range(8)))
        assert tokens == {path.read_text()}
        assert len(path.read_text()) == 64
        assert list(path.parent.iterdir()) == [path]


def test_a_ray_without_a_token_is_started_only_where_that_was_accepted(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for create in (True, False):
        with pytest.raises(UserError, match="RAY_AUTH_MODE must not turn authentication off, got disabled; unset it"):
            require_token(create=create)
        with open_ray_accepted():
            assert require_token(create=create) is None
    with pytest.raises(UserError):  # what was accepted once does not last
        require_token(create=True)


@pytest.mark.parametrize("verbose", [False, True])
def test_what_rays_threads_print_stays_out_of_stdout(verbose):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _own_stdout(verbose):
        thread = threading.Thread(target=lambda: print("(raylet) noise"), name="ray_print_logs")
        thread.start()
        thread.join()
        print("ours")
    assert out.getvalue() == "ours\n"
    assert ("noise" in err.getvalue()) == verbose


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found through /proc")
def test_processes_end_with_their_children_also_where_they_ignore_the_asking(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", STUBBORN, str(tmp_path / "held")], stdout=-1, text=True)
    child = int(process.stdout.readline())
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(999)"])
    tree = tree_of(tmp_path)
    assert set(tree) == {process.pid, child}
    end_all(tree, tmp_path)
    assert process.wait(5) == -signal.SIGKILL
    assert tree_of(tmp_path) == {}
    assert other.poll() is None  # not ours to end
    other.kill()
    other.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found through /proc")
def test_a_process_that_is_forked_just_as_the_others_are_ended_is_ended_too(tmp_path, monkeypatch):
    def holding():
        process = subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path / "held")], stdout=-1, text=True)
        process.stdout.readline()
        return process

    started, kill = [holding()], os.kill

    def kill_once_it_has_forked(pid, number):
        if number == signal.SIGKILL and len(started) == 1:
            started.append(holding())
        kill(pid, number)

    monkeypatch.setattr(processes, "TERMINATE_S", 0.0)
    monkeypatch.setattr(processes, "KILL_S", 1.0)
    monkeypatch.setattr(os, "kill", kill_once_it_has_forked)
    end_all(tree_of(tmp_path), tmp_path)
    left = tree_of(tmp_path)
    for process in started:
        process.kill()
        process.wait()
    assert len(started) == 2
    assert left == {}


def test_a_handler_that_was_not_installed_from_python_ends_no_session(tmp_path, monkeypatch):
    look = signal.getsignal
    before = {number: look(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(signal, "getsignal", lambda number: None)  # as in a program that embeds Python
    try:
        with stop_signals(tmp_path, str) as stop:
            _take_sigterm_back()
        assert {look(number) for number in before} == {stop._on_signal}  # there is nothing to put back
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
