"""When a driver gives up on workers that stay away, in which words, and which folder is the same on all nodes."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ganscale.config import RunConfig
from ganscale.errors import DataError, RunFailed, UserError
from ganscale.runtime.attendance import Attendance, absence
from ganscale.runtime.common_ground import check_ground, leave_mark
from ganscale.runtime.placement import Plan, Resources, place
from ganscale.runtime.stopping import SCRATCH

pytestmark = pytest.mark.distributed
NODES = ((4, 0), (4, 0))
PLENTY = Resources(cpus=8, gpus=0, memory_bytes=None, where="the cluster at HEAD", nodes=NODES)


def planned(workers: int | str) -> Plan:
    return place(RunConfig(), PLENTY, workers=workers)


def state(name: str) -> SimpleNamespace:
    return SimpleNamespace(_state_type=SimpleNamespace(state_name=name))


@pytest.fixture
def roll_call() -> type:
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # as a launch does before it imports Ray
    from ganscale.runtime.roll_call import RollCall

    return RollCall


@pytest.fixture
def short_wait(tmp_path, monkeypatch, roll_call) -> SimpleNamespace:
    """One who waits for 5 s, the roll that he reads, and a clock that the test moves by ``now[0]``."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Attendance, "_words", lambda self: "who is missing")
    return SimpleNamespace(
        one=Attendance(tmp_path / "roll", planned(2), 5.0), now=now, roll=roll_call(tmp_path / "roll")
    )


def test_workers_that_never_come_are_waited_for_as_long_as_was_said(short_wait):
    short_wait.one.check()
    short_wait.now[0] += 4.9
    short_wait.one.check()
    short_wait.now[0] += 0.2
    with pytest.raises(RunFailed, match="who is missing"):
        short_wait.one.check()


@pytest.mark.parametrize("lost", ["RESTARTING", "RESCHEDULING", "SCHEDULING", "RESIZING"])
def test_each_loss_has_the_whole_time_again_and_training_has_no_end(short_wait, lost):
    for _ in range(3):
        short_wait.roll.after_controller_state_update(None, state("RUNNING"))
        short_wait.one.check()
        short_wait.now[0] += 1000
        short_wait.one.check()
        short_wait.roll.after_controller_state_update(None, state(lost))
        short_wait.one.check()
        short_wait.now[0] += 4.9
        short_wait.one.check()
    short_wait.now[0] += 0.2
    with pytest.raises(RunFailed):
        short_wait.one.check()


@pytest.mark.parametrize("last", ["SHUTTING_DOWN", "FINISHED", "ERRORED"])
def test_nobody_is_waited_for_once_the_group_ends(short_wait, last):
    short_wait.roll.after_controller_state_update(None, state(last))
    short_wait.one.check()
    short_wait.now[0] += 1000
    short_wait.one.check()


def test_a_controller_that_outlives_its_launch_writes_nothing(tmp_path, roll_call):
    roll_call(tmp_path / "gone" / "roll").after_controller_state_update(None, state("RUNNING"))
    assert list(tmp_path.iterdir()) == []


def test_the_roll_names_the_nodes_of_the_workers(tmp_path, roll_call):
    def worker(node: str, address: str) -> SimpleNamespace:
        return SimpleNamespace(metadata=SimpleNamespace(node_id=node, node_ip=address))

    workers = [worker("a", "10.0.0.1"), worker("b", "10.0.0.2"), worker("b", "10.0.0.2")]
    roll = roll_call(tmp_path / "roll")
    roll.after_worker_group_training_start(SimpleNamespace(get_workers=lambda: workers))
    roll.after_controller_state_update(None, state("RUNNING"))
    page = json.loads((tmp_path / "roll").read_text())
    assert page == {"state": "training", "nodes": {"a": ["10.0.0.1", 1], "b": ["10.0.0.2", 2]}}


@pytest.mark.parametrize(
    ("workers", "lost", "began", "places", "words"),
    [
        (2, [], False, 1, ["2 workers did not start within 60 s", "each needs 4 CPUs", "places for 1", "use fewer"]),
        (2, [], False, 2, ["its places are taken, by others or by workers that still start"]),
        (
            2,
            ["10.0.0.2 (1 of them)"],
            True,
            1,
            ["2 workers did not come back", "node 10.0.0.2 (1 of them) did not come back", "go on with --workers 1:2"],
        ),
        ("2:8", ["10.0.0.2 (4 of them)"], True, 1, ["2 workers did not come back", "--workers 1:8"]),
        (
            1,
            ["10.0.0.2 (1 of them)"],
            True,
            0,
            ["1 worker did not come back", "places for 0", "raise runtime.max_wait_s"],
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(workers, lost, began, places, words):
    free = {"CPU": 3.0, "memory": 1e9}
    told = absence(planned(workers), 60, lost=lost, began=began, places=places, free=free)
    assert all(word in told for word in words), told
    assert "the cluster at HEAD has 3 CPUs and 0 GPUs free" in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("nodes", "places"),
    [
        ([], 0),
        ([{"CPU": 4.0}], 1),
        ([{"CPU": 9.0, "memory": 1.0}, {"CPU": 3.9}, {"GPU": 8.0}], 2),
    ],
)
def test_places_are_whole_workers_of_one_node(nodes, places):
    assert planned(2).threads == 4
    assert planned(2).places(nodes) == places


@pytest.fixture
def choose() -> Callable:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ganscale.runtime.backend import choose

    return choose


@pytest.mark.parametrize(
    ("sees", "backend"), [([True, True], "nccl"), ([True], "nccl"), ([False, False], "gloo"), ([False], "gloo")]
)
def test_pretended_gpus_are_no_gpus(choose, sees, backend):
    assert choose([(f"node-{n}", one) for n, one in enumerate(sees)]) == backend


def test_a_node_that_lost_its_gpu_is_named_and_not_trained_around(choose):
    with pytest.raises(RunFailed, match=r"workers on node-2, but torch sees none there"):
        choose([("node-1", True), ("node-2", False), ("node-2", False)])


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run" / SCRATCH).mkdir(parents=True)
    return tmp_path / "run"


def test_the_folder_of_the_driver_is_known_by_its_mark(run_dir):
    check_ground(run_dir, leave_mark(run_dir), "fashion-mnist-10k", "10.0.0.2", patience_s=0)


@pytest.mark.parametrize(("name", "got"), [("run", "a folder of the same name"), ("none", "no such folder")])
def test_another_folder_is_refused_in_the_name_of_its_node(run_dir, tmp_path, name, got):
    mark = leave_mark(run_dir)
    elsewhere = tmp_path / "elsewhere" / name
    (tmp_path / "elsewhere" / "run" / SCRATCH / "mark-of-another").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"must be the same on all nodes, got {got} on node 10\.0\.0\.2") as caught:
        check_ground(elsewhere, mark, "fashion-mnist-10k", "10.0.0.2", patience_s=0)
    assert "s3://" in str(caught.value)


def test_a_mark_that_a_network_shows_late_is_waited_for(run_dir):
    later = threading.Timer(0.3, (run_dir / SCRATCH / "mark-x").touch)
    later.start()
    check_ground(run_dir, "mark-x", "fashion-mnist-10k", "10.0.0.2", patience_s=60)
    later.join()


def test_data_that_a_node_lacks_are_refused_in_its_name(run_dir, tmp_path):
    mark = leave_mark(run_dir)
    check_ground(run_dir, mark, str(tmp_path), "10.0.0.2", patience_s=0)
    with pytest.raises(DataError, match=r"nothing must be there on all nodes, got nothing on node 10\.0\.0\.2"):
        check_ground(run_dir, mark, str(tmp_path / "nothing"), "10.0.0.2", patience_s=0)
