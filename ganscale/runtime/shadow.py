"""The driver's side of a run in an object store whose workers may train on another machine.

Their metrics come here by the store; a wish to stop and the list of restarts, which is written here, go there. Where
rank 0 shares our working copy (what it says of its start lies in our folder too) nothing need come. That may change
each time the workers start again.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from ganscale.errors import CheckpointError
from ganscale.files import replace_text
from ganscale.runtime.remote import pull
from ganscale.runtime.remote_lock import is_ours
from ganscale.runtime.stopping import SCRATCH, STARTED_FLAG, STOP_FLAG
from ganscale.runtime.storage import Entry, ObjectStore, StorageAway, StorageError
from ganscale.runtime.watch import RESTARTS

log = logging.getLogger(__name__)

EVERY_S = 2.0
METRICS = "metrics.jsonl"


class Shadow:
    """A context around training under Ray."""

    def __init__(self, run_dir: Path, store: ObjectStore, *, every_s: float = EVERY_S) -> None:
        self._run_dir, self._store, self._every_s = run_dir, store, every_s
        self._stop_sent = False
        self._fetched: Entry | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)

    def __enter__(self) -> Shadow:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        try:
            is_elsewhere = self._look()
            if (self._run_dir / RESTARTS).exists() and is_ours(self._store):
                self._store.put_file(RESTARTS, self._run_dir / RESTARTS)
            if is_elsewhere:
                pull(self._store.uri, self._run_dir)
        except (StorageError, StorageAway, CheckpointError) as failure:
            log.warning(
                "what was trained elsewhere is in %s, and not in %s: %s", self._store.uri, self._run_dir, failure
            )

    def _run(self) -> None:
        while not self._done.wait(self._every_s):
            try:
                self._look()
            except (StorageError, StorageAway) as error:
                log.warning("%s", error)

    def _look(self) -> bool:
        """Pass on a wish to stop, and fetch new metrics; return whether rank 0 writes elsewhere."""
        if (self._run_dir / SCRATCH / STOP_FLAG).exists() and not self._stop_sent:
            self._store.put(f"{SCRATCH}/{STOP_FLAG}", b"")
            self._stop_sent = True
        started = _started_there(self._store)
        if started is None or started == _started_here(self._run_dir) or started != _started_there(self._store):
            return False  # the last one: rank 0 starts right now, perhaps here
        metrics = self._store.entry(METRICS)
        if metrics is not None and metrics != self._fetched:
            self._store.get_file(METRICS, self._run_dir / METRICS)
            if (self._run_dir / METRICS).stat().st_size == metrics.bytes:  # else it was cut short, or is newer
                self._fetched = metrics
        return True


def say_started(run_dir: Path, store: ObjectStore) -> Callable[[], bool]:
    """Say in ``run_dir`` and in ``store`` that rank 0 starts here; return what asks whether no other one has since."""
    start = uuid.uuid4().hex
    store.delete([f"{SCRATCH}/{STARTED_FLAG}"])  # else that of an earlier start here would count as one elsewhere
    replace_text(run_dir / SCRATCH / STARTED_FLAG, start)  # here first: nothing may be fetched over what we write
    store.put(f"{SCRATCH}/{STARTED_FLAG}", start.encode())
    return lambda: _started_there(store) == start


def _started_here(run_dir: Path) -> str | None:
    try:
        return (run_dir / SCRATCH / STARTED_FLAG).read_text()
    except FileNotFoundError:
        return None


def _started_there(store: ObjectStore) -> str | None:
    try:
        return store.get(f"{SCRATCH}/{STARTED_FLAG}").decode()
    except FileNotFoundError:
        return None
