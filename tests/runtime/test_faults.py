"""Nothing is lost when a process dies: a run that is disturbed ends with the bits of one that was left alone."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tiny_runs import descendants, is_alive

from benchmarks import faults
from ganscale.errors import RunFailed
from ganscale.runtime import launch
from ganscale.runtime.heartbeat import Beat
from ganscale.runtime.local import ray_session
from ganscale.runtime.run_lock import started_at
from ganscale.runtime.watch import end_process

# a hang is told from a long step by the clock; three restarts take minutes where all cores are busy
pytestmark = [pytest.mark.ray, pytest.mark.alone, pytest.mark.timeout(600)]
PATIENCE_S = 200  # only where all else fails
HANG_S = 20.0  # longer than any step on a busy machine
SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)
LEAST = 1024  # images of a disturbed run
PAUSE = threading.Event()


def config(images: int, **changes: object):
    return faults.override(faults.settings(images), {"runtime.hang_timeout_s": HANG_S} | changes)


@pytest.fixture(scope="module")
def shared_ray():
    """One local Ray for the tests that need not start their own."""
    before = descendants(os.getpid())
    with ray_session(cpus=2, gpus=0):
        yield
    assert descendants(os.getpid()) <= before, "Ray left processes behind"


@pytest.fixture(scope="module")
def disturbed(shared_ray, tmp_path_factory):
    """A run that SIGKILL, SIGSTOP and SIGTERM struck, each a worker at a random moment; the faults; what was said."""
    runs, said, handler = tmp_path_factory.mktemp("runs"), [], logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("ganscale").addHandler(handler)
    try:
        longer, signals = config(faults.LONGER), list(SIGNALS)
        return *faults.disturb(longer, runs, "disturbed", signals, longest_s=0.5, seed=1, least=LEAST), said
    finally:
        logging.getLogger("ganscale").removeHandler(handler)


@pytest.fixture(scope="module")
def alone(disturbed, tmp_path_factory):
    """A run as long that nobody disturbs."""
    images = faults.newest_checkpoint(disturbed[0].path)
    return launch(config(images), name="alone", runs_dir=tmp_path_factory.mktemp("runs"), workers=2)


def test_a_fault_costs_nothing_that_was_saved_and_at_most_what_was_trained_since_the_last_save_but_one(
    disturbed,
):
    """The last save may still be on its way to the disk; the one before is there, or training would have waited."""
    run, strikes, _ = disturbed
    found = faults.of_workers(run.path, strikes)
    assert found.wrong == []  # what went on from less than was saved, or repeated more, would be here
    assert len(found.repeated) == len(SIGNALS)
    assert max(found.repeated) <= faults.MOST == 2 * faults.SAVE


def test_a_run_that_is_killed_stopped_and_asked_to_leave_ends_as_if_it_had_been_left_alone(disturbed, alone):
    run, strikes, said = disturbed
    assert len(strikes) == len(SIGNALS)
    assert faults.differences(run, alone) == []
    killed, stopped, left = (entry["why"] for entry in faults.restarts(run.path)[:3])
    # where the survivor raises first, its words are all that is known
    closed = r"\w+: .*Connection (closed|reset) by peer.*\(worker [01]\)$"
    assert re.match(rf"worker [01] was lost \((Worker|ConnectionError: rank [01] has died)|{closed}", killed), killed
    # what it did is known as of its last sign of life, which may be from before its first step
    assert re.match(r"worker [01] \(process \d+ on \S+\) gave no sign of life for \d+ s in \w.* at \d+ images", stopped)
    assert re.match(r"worker [01] was asked to end by SIGTERM; all saved at \d+ images", left)
    assert faults.restarts(run.path)[2]["images_lost"] == 0
    assert any("the workers start again" in words for words in said)


def test_a_loop_without_end_is_ended_twice_and_then_ends_the_run_in_one_line_with_rank_and_phase(
    shared_ray, tmp_path, monkeypatch
):
    def endless(settings):
        import ray.train

        from ganscale.runtime.worker import run_rank
        from ganscale.training import trainer

        leave = trainer.leave_gradients

        def hang_in_the_generator(phase, step):
            while phase.name == "generator" and step.state.images >= 64 and ray.train.get_context().get_world_rank():
                pass
            leave(phase, step)

        trainer.leave_gradients = hang_in_the_generator
        return run_rank(settings)

    monkeypatch.setattr("ganscale.runtime.train.worker_loop", endless)
    with pytest.raises(RunFailed) as caught:
        launch(config(LEAST), name="x", runs_dir=tmp_path, workers=2)
    words = str(caught.value)
    assert "\n" not in words
    assert words.startswith("the workers failed twice in the same way: worker 1 (process ")
    assert re.search(r"made no progress for \d+ s in phase generator \(.*\) at 64 images; nothing was saved yet", words)


def test_a_launch_that_is_killed_leaves_no_process_and_is_resumed_to_the_same_end(alone, tmp_path):
    images = faults.newest_checkpoint(alone.path)
    words = [word for key, value in faults.SETTINGS.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "ganscale", "launch", "--preset", "dcgan-fashion", "--workers", "2", "--name", "x"]
    command += ["--runs-dir", str(tmp_path), "--kimg", str(images / 1000), *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: faults.images(tmp_path / "x") >= 4 * faults.SAVE or process.poll() is not None)
    assert process.poll() is None, "it ended by itself"
    below = descendants(process.pid)
    assert faults.train_workers(process.pid)
    process.kill()
    process.wait()
    # resumed at once, while the processes of the first one may still be there
    run = launch(config(images), resume=tmp_path / "x", workers=2)
    wait_until(lambda: not [pid for pid in below if is_alive(pid)])
    assert faults.differences(run, alone) == []


def test_a_process_on_another_machine_is_ended_through_ray_and_one_that_took_its_number_is_not(shared_ray):
    import ray

    process = subprocess.Popen(["sleep", str(PATIENCE_S)])
    here = {"attempt": "a", "rank": 0, "size": 1, "pid": process.pid, "host": "far", "machine": "another boot"}
    rest = {"beats": 1, "marks": 1, "doing": "", "images": 0, "place": "", "waits": False, "begun_at": 0}
    node = ray.get_runtime_context().get_node_id()
    beat = Beat(**here, **rest, node=node, trained_since=None, started=started_at(process.pid))
    ray.get(end_process(dataclasses.replace(beat, started="1")))
    assert process.poll() is None
    ray.get(end_process(beat))
    assert process.wait(PATIENCE_S) == -signal.SIGKILL


def wait_until(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        PAUSE.wait(0.02)


def test_an_orphaned_worker_stops_writing_once_its_launch_is_gone(tmp_path):
    """The mark of the launch vanishes with it, and each worker looks for it about once a second."""
    from ganscale.runtime.worker import stop_question

    mark, flag = tmp_path / "mark", tmp_path / "stop"
    mark.touch()
    should_stop = stop_question(flag, mark)
    assert not should_stop()
    flag.touch()
    assert should_stop()
    mark.unlink()
    with pytest.raises(RunFailed, match="has ended"):
        should_stop()
    assert not stop_question(Path(tmp_path / "none"), mark)()  # another machine, which never saw it
