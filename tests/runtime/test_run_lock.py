"""Laws of the lock: one writer a run, the dead give way, the living never do."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from tiny_runs import tiny_config

from ganscale.errors import RunFailed, UserError
from ganscale.runtime import launch, run_lock
from ganscale.runtime.run_lock import LOCK, STALE_S, Holder, RunLock, is_ours, ourselves, parse_holder
from ganscale.runtime.stopping import SCRATCH
from ganscale.runtime.tune import _scratch as scratch_of_sweep

pytestmark = pytest.mark.distributed
FORK = multiprocessing.get_context("fork")
PATIENCE_S = 30


def hold(run_dir: Path, told: Connection) -> None:
    with RunLock(run_dir):
        told.send(os.getpid())
        signal.pause()


@pytest.fixture
def other(tmp_path: Path):
    """A process that holds the lock of ``tmp_path``."""
    mine, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=hold, args=(tmp_path, theirs))
    process.start()
    assert mine.recv() == process.pid
    yield process
    process.kill()
    process.join()


def write_lock(run_dir: Path, *, age_s: float, **changes: object) -> Holder:
    holder = dataclasses.replace(ourselves(), **changes)
    (run_dir / LOCK).write_text(holder.to_json())
    then = time.time() - age_s
    os.utime(run_dir / LOCK, (then, then))
    return holder


def stamps(run_dir: Path) -> dict[str, int]:
    """Return name -> time of change; of the lock, which its holder touches, only that it is there."""
    return {path.name: path.name != LOCK and path.stat().st_mtime_ns for path in run_dir.iterdir()}


def test_a_second_writer_is_refused_with_the_process_host_and_time_of_the_first(tmp_path: Path, other):
    with pytest.raises(UserError, match=rf"process {other.pid} on \S+ since 20\d\d-") as caught, RunLock(tmp_path):
        pass
    assert caught.value.exit_code == 2
    assert parse_holder((tmp_path / LOCK).read_text()).pid == other.pid


def test_a_launch_into_a_run_that_is_being_written_is_refused_and_touches_nothing(tmp_path: Path, other):
    before = stamps(tmp_path)
    with pytest.raises(UserError, match=rf"written by one launch at a time, got one by process {other.pid}"):
        launch(tiny_config(), name=tmp_path.name, runs_dir=tmp_path.parent, workers=0)
    assert stamps(tmp_path) == before


def test_a_resume_of_a_run_that_is_being_written_is_refused_and_touches_nothing(tmp_path: Path):
    run = launch(tiny_config(train__kimg=0.256), name="x", runs_dir=tmp_path, workers=0)
    assert not (run.path / LOCK).exists()
    with RunLock(run.path):
        before = stamps(run.path)
        with pytest.raises(UserError, match="written by one launch at a time"):
            launch(tiny_config(), resume=run.path, workers=0)
        assert stamps(run.path) == before


def test_the_lock_of_a_process_that_was_killed_is_taken_over_at_once(tmp_path: Path, other):
    other.kill()
    other.join()
    with RunLock(tmp_path) as lock:
        assert parse_holder((tmp_path / LOCK).read_text()) == lock.holder
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{"started": "1"}, {"pid": 2**22 + 1}])
def test_a_pid_that_another_process_has_now_is_no_sign_of_life(tmp_path: Path, changes: dict):
    write_lock(tmp_path, age_s=0, **changes)
    with RunLock(tmp_path) as lock:
        assert parse_holder((tmp_path / LOCK).read_text()) == lock.holder


def test_a_holder_elsewhere_lives_as_long_as_it_touches_the_lock(tmp_path: Path):
    write_lock(tmp_path, age_s=STALE_S / 2, host="far", machine="another boot")
    with pytest.raises(UserError, match=r"far since .*; if it is dead, try again in ") as caught, RunLock(tmp_path):
        pass
    # half of it is left, less what this test was kept waiting
    assert 20 <= int(re.search(r"again in (\d+) s", str(caught.value))[1]) <= 31
    write_lock(tmp_path, age_s=STALE_S + 5, host="far", machine="another boot")
    with RunLock(tmp_path):
        pass


def test_a_lock_that_nobody_can_read_counts_by_its_age(tmp_path: Path):
    write_lock(tmp_path, age_s=0)
    (tmp_path / LOCK).write_text("{")
    with pytest.raises(UserError, match="got one by somebody; "), RunLock(tmp_path):
        pass
    old = time.time() - STALE_S - 5
    os.utime(tmp_path / LOCK, (old, old))
    with RunLock(tmp_path):
        pass


def test_a_folder_without_hard_links_is_locked_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*paths: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with RunLock(tmp_path):
        with pytest.raises(UserError, match=f"process {os.getpid()} on "), RunLock(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()


def contend(run_dir: Path, ready: object, told: Connection) -> None:
    ready.wait()
    try:
        with RunLock(run_dir):
            told.send("held")
            signal.pause()
    except UserError:
        told.send("refused")


def test_of_many_who_take_over_a_dead_lock_at_once_exactly_one_gets_it(tmp_path: Path):
    for attempt in range(5):
        run_dir = tmp_path / str(attempt)
        run_dir.mkdir()
        write_lock(run_dir, age_s=0, started="1")
        ready = FORK.Barrier(6)
        pipes = [FORK.Pipe(duplex=False) for _ in range(6)]
        processes = [FORK.Process(target=contend, args=(run_dir, ready, theirs)) for _, theirs in pipes]
        for process in processes:
            process.start()
        assert sorted(mine.recv() for mine, _ in pipes) == ["held"] + 5 * ["refused"]
        for process in processes:
            process.kill()
            process.join()


def test_nobody_gets_the_place_of_a_new_lock_that_another_one_took_for_the_dead_ones(tmp_path: Path, monkeypatch):
    """Z sees a dead lock, Y takes it over, Z renames what lies there, and W comes before Z has put it back."""
    write_lock(tmp_path, age_s=0, started="1")
    look, link, told, over, others = run_lock.is_alive, os.link, [], threading.Event(), []

    def contend_in_a_thread() -> None:
        decided = threading.Event()

        def enter() -> None:
            try:
                with RunLock(tmp_path):
                    told.append("held")
                    decided.set()
                    over.wait(PATIENCE_S)
            except UserError:
                told.append("refused")
                decided.set()

        others.append(threading.Thread(target=enter))
        others[-1].start()
        decided.wait(0.5)  # it comes to nothing as long as the one who looks is not done

    def look_while_another_one_comes(*arguments):
        found = look(*arguments)
        monkeypatch.setattr(run_lock, "is_alive", look)
        contend_in_a_thread()
        return found

    def put_back_while_another_one_comes(source, target):
        if ".tmp-taken-" in str(source):
            contend_in_a_thread()
        link(source, target)

    monkeypatch.setattr(run_lock, "is_alive", look_while_another_one_comes)
    monkeypatch.setattr(os, "link", put_back_while_another_one_comes)
    try:
        with RunLock(tmp_path):
            told.append("held")
            others[0].join(PATIENCE_S)
    except UserError:
        told.append("refused")
    finally:
        over.set()
        for other in others:
            other.join()
    assert sorted(told) == ["held", "refused"]


def check_until_it_raises(lock: RunLock) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        lock.check()
        threading.Event().wait(0.01)


@pytest.mark.parametrize("taken", ["replaced", "gone"])
def test_who_was_taken_for_dead_finds_out_and_stops(tmp_path: Path, taken: str):
    with RunLock(tmp_path, beat_s=0.01) as lock:
        lock.check()
        (tmp_path / LOCK).unlink()
        if taken == "replaced":
            write_lock(tmp_path, age_s=0, host="far")
        with pytest.raises(RunFailed, match="taken over by"):
            check_until_it_raises(lock)
    assert (tmp_path / LOCK).exists() == (taken == "replaced")  # another one's lock is not ours to delete


def take_over(run_dir: Path) -> None:
    """Do what a launch elsewhere does that takes this process for dead."""
    shutil.rmtree(run_dir / SCRATCH)
    write_lock(run_dir, age_s=0, host="far", machine="another boot")
    (run_dir / SCRATCH).mkdir()
    (run_dir / SCRATCH / "mark-of-the-other").touch()


def test_a_launch_that_was_taken_over_leaves_the_flags_of_the_one_that_took_over(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(RunLock.__init__.__kwdefaults__, "beat_s", 0.01)
    taken = []

    def on_tick(tick: dict) -> None:
        if not taken:
            take_over(tmp_path / "x")
            taken.append(tick)

    with pytest.raises(RunFailed, match="taken over by"):
        launch(tiny_config(train__kimg=100_000), name="x", runs_dir=tmp_path, workers=0, on_tick=on_tick)
    assert [path.name for path in (tmp_path / "x" / SCRATCH).iterdir()] == ["mark-of-the-other"]
    assert parse_holder((tmp_path / "x" / LOCK).read_text()).host == "far"


def test_a_sweep_that_was_taken_over_leaves_the_flags_of_the_one_that_took_over(tmp_path: Path):
    with RunLock(tmp_path), scratch_of_sweep(tmp_path):
        take_over(tmp_path)
    assert (tmp_path / SCRATCH / "mark-of-the-other").exists()
    (tmp_path / LOCK).unlink()
    with RunLock(tmp_path), scratch_of_sweep(tmp_path):
        assert not list((tmp_path / SCRATCH).iterdir())
    assert not (tmp_path / SCRATCH).exists()


@pytest.mark.parametrize("changes", [{"host": "far"}, {"pid": 1}, {"started": "1"}, {"machine": "another boot"}])
def test_a_run_is_ours_while_its_lock_names_this_process(tmp_path: Path, changes: dict):
    assert not is_ours(tmp_path)
    with RunLock(tmp_path):
        assert is_ours(tmp_path)
        write_lock(tmp_path, age_s=0, **changes)
        assert not is_ours(tmp_path)


def test_a_living_holder_touches_its_lock(tmp_path: Path):
    with RunLock(tmp_path, beat_s=0.01):
        os.utime(tmp_path / LOCK, (0, 0))
        deadline = time.monotonic() + PATIENCE_S
        while (tmp_path / LOCK).stat().st_mtime < 1:
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
