"""Runs in an object store whose writer changes: rank 0 starts on another machine, or another launch takes the run over.

The parts are called as the driver and the workers call them; a whole cluster is in test_remote_cluster.py.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
import uuid
from pathlib import Path

import pytest
from stores import BUCKET
from tiny_runs import tiny_config

from ganscale.errors import RunFailed
from ganscale.runtime import launch, shadow
from ganscale.runtime.mirror import Mirror, complete_checkpoints
from ganscale.runtime.remote_lock import RemoteLock
from ganscale.runtime.run_lock import LOCK, ourselves
from ganscale.runtime.shadow import METRICS, Shadow, say_started
from ganscale.runtime.stopping import SCRATCH, STARTED_FLAG, STOP_FLAG
from ganscale.runtime.storage import ObjectStore
from ganscale.runtime.watch import RESTARTS
from ganscale.training.checkpoint import MANIFEST

pytestmark = pytest.mark.distributed
PATIENCE_S = 60
NEVER_S = 1e6  # between two passes of a thread: what is done is done at the end


@pytest.fixture
def store(address) -> ObjectStore:
    """A run in a store, as a launch leaves it to its workers."""
    store = ObjectStore(f"s3://{BUCKET}/{uuid.uuid4().hex}/x")
    store.put("config.json", json.dumps({"created": "today"}).encode())
    return store


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The working copy of the driver."""
    return working_copy(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The working copy of another machine."""
    return working_copy(tmp_path / "there")


def working_copy(run_dir: Path) -> Path:
    (run_dir / SCRATCH).mkdir(parents=True)
    (run_dir / "config.json").write_text(json.dumps({"created": "today"}))
    return run_dir


def wait_until(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def test_a_driver_follows_rank_0_to_another_machine_also_where_it_was_on_its_own_before(store, here, there):
    say_started(here, store)
    (here / METRICS).write_bytes(b"1\n")
    store.put(METRICS, b"1\n")
    with Shadow(here, store, every_s=0.01):
        say_started(there, store)
        store.put(METRICS, b"1\n2\n")
        wait_until(lambda: (here / METRICS).read_bytes() == b"1\n2\n")
        (here / SCRATCH / STOP_FLAG).touch()
        wait_until(lambda: store.entry(f"{SCRATCH}/{STOP_FLAG}") is not None)
        store.put("samples/kimg-000001.png", b"picture")
    assert (here / "samples" / "kimg-000001.png").read_bytes() == b"picture"


def test_metrics_that_came_cut_short_are_fetched_again_and_whole_ones_are_not(store, here, there, monkeypatch):
    say_started(there, store)
    store.put(METRICS, b"1\n2\n")
    get, fetched = store.get_file, []

    def get_short_at_first(name, file):
        get(name, file)
        fetched.append(name)
        if len(fetched) == 1:
            file.write_bytes(b"1\n")

    monkeypatch.setattr(store, "get_file", get_short_at_first)
    driver = Shadow(here, store)
    assert [driver._look() for _ in range(3)] == 3 * [True]
    assert (here / METRICS).read_bytes() == b"1\n2\n"
    assert fetched == 2 * [METRICS]


def test_nothing_is_fetched_over_what_rank_0_writes_on_the_machine_of_the_driver(store, here, there):
    say_started(there, store)
    say_started(here, store)
    (here / METRICS).write_bytes(b"1\n2\n3\n")
    store.put(METRICS, b"1\n2\n")
    with Shadow(here, store, every_s=NEVER_S):
        pass
    assert (here / METRICS).read_bytes() == b"1\n2\n3\n"


def test_nor_when_it_starts_there_again_whenever_the_driver_looks(store, here, monkeypatch):
    say_started(here, store)
    (here / METRICS).write_bytes(b"1\n2\n")
    store.put(METRICS, b"1\n")
    put, look, found = store.put, shadow._started_here, []

    def look_before(name, content):
        found.append(Shadow(here, store)._look())
        put(name, content)

    def start_before(run_dir):
        monkeypatch.setattr(shadow, "_started_here", look)
        say_started(here, store)
        return look(run_dir)

    monkeypatch.setattr(store, "put", look_before)
    say_started(here, store)
    monkeypatch.setattr(store, "put", put)
    monkeypatch.setattr(shadow, "_started_here", start_before)
    found.append(Shadow(here, store)._look())
    assert found == [False, False]
    assert (here / METRICS).read_bytes() == b"1\n2\n"


def test_the_driver_sends_the_restarts_that_it_has_written_down_while_the_run_is_its_own(store, here, there):
    say_started(there, store)
    store.put(RESTARTS, b"before\n")
    (here / RESTARTS).write_bytes(b"before\nnow\n")
    with RemoteLock(store), Shadow(here, store, every_s=NEVER_S):
        pass
    assert store.get(RESTARTS) == (here / RESTARTS).read_bytes() == b"before\nnow\n"
    store.put(RESTARTS, b"theirs\n")  # another launch's, which has the lock now
    with Shadow(here, store, every_s=NEVER_S):
        pass
    assert store.get(RESTARTS) == b"theirs\n"


def test_a_start_of_rank_0_discards_what_was_passed_over_obeys_a_stop_and_sends_until_the_next_start(
    store, here, there
):
    from ganscale.runtime.worker import _mirror

    for name in ("kimg-000001", "kimg-000002"):
        store.put(f"checkpoints/{name}/{MANIFEST}", b"{}")
        store.put(f"evaluations/{name}.json", b"{}")
    mirror = _mirror(store, there, tiny_config(), there / "checkpoints" / "kimg-000001")
    assert complete_checkpoints(store) == {"kimg-000001"}  # else all that is saved now would be pruned as older
    assert {name for name in store.list() if name.startswith("evaluations/")} == {"evaluations/kimg-000001.json"}
    (there / METRICS).write_bytes(b"1\n")
    store.put(f"{SCRATCH}/{STOP_FLAG}", b"")
    with mirror:
        pass
    assert store.get(METRICS) == b"1\n"
    assert (there / SCRATCH / STOP_FLAG).exists()
    late = _mirror(store, there, tiny_config(), there / "checkpoints" / "kimg-000001")
    say_started(here, store)
    (there / METRICS).write_bytes(b"1\nlate\n")
    with pytest.raises(RunFailed, match="was taken over; nothing more is sent from here"), late:
        pass
    assert store.get(METRICS) == b"1\n"


def test_a_start_that_could_read_no_checkpoint_deletes_none_and_says_what_to_do(store, there):
    from ganscale.runtime.worker import _mirror

    kept = {"kimg-000001", "kimg-000002"}
    for name in kept:
        store.put(f"checkpoints/{name}/{MANIFEST}", b"{}")
    with pytest.raises(RunFailed, match=r"\(kimg-000001, kimg-000002\), and none is deleted.* --resume .*000001, or"):
        _mirror(store, there, tiny_config(), None)
    assert complete_checkpoints(store) == kept


def test_a_launch_names_who_took_it_over_though_its_lock_grew_while_it_was_read(server, through, store, monkeypatch):
    monkeypatch.setitem(RemoteLock.__init__.__kwdefaults__, "beat_s", 0.01)
    far = dataclasses.replace(ourselves(), host="far" * 50, machine="another boot")
    begun = threading.Event()

    def between_size_and_content(number: int, method: str, path: str) -> None:
        if begun.is_set() and method == "GET" and path.endswith(LOCK):
            server.write(store.uri.split("/", 3)[3] + f"/{LOCK}", far.to_json().encode())

    through(between_size_and_content)
    lock = RemoteLock(ObjectStore(store.uri))
    with lock:
        begun.set()
        lock._thread.join(PATIENCE_S)
    with pytest.raises(RunFailed, match=f"taken over by process .* on {far.host}"):
        lock.check()


def test_a_launch_that_was_taken_over_sends_and_deletes_nothing_in_the_store(server, address, machine, monkeypatch):
    monkeypatch.setitem(RemoteLock.__init__.__kwdefaults__, "beat_s", 0.01)
    monkeypatch.setitem(Mirror.__init__.__kwdefaults__, "every_s", NEVER_S)
    runs = uuid.uuid4().hex
    far = dataclasses.replace(ourselves(), host="far", machine="another boot").to_json().encode()
    theirs = {f"{SCRATCH}/{STARTED_FLAG}": b"theirs", METRICS: b"theirs\n"}
    ticks = []

    def on_tick(tick: dict) -> None:
        server.write(f"{runs}/x/{LOCK}", far)  # each time: a touch may just come after it
        for name, content in theirs.items() if not ticks else ():
            server.write(f"{runs}/x/{name}", content)
        ticks.append(tick)

    with pytest.raises(RunFailed, match=r"taken over by process .* on far since"):
        launch(tiny_config(train__kimg=1e5), name="x", runs_dir=f"s3://{BUCKET}/{runs}", workers=0, on_tick=on_tick)
    assert {name: server.read(f"{runs}/x/{name}") for name in theirs} == theirs
    assert server.read(f"{runs}/x/{LOCK}") == far
