"""The driver's side of a run in an object store whose workers may train on another machine.

Their metrics come here by the store, and a wish to stop goes there. Where a worker turns out to share our working copy
(its flag lies in our folder), there is nothing to do.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from types import TracebackType

from ganscale.errors import CheckpointError
from ganscale.runtime.remote import pull
from ganscale.runtime.stopping import SCRATCH, STARTED_FLAG, STOP_FLAG
from ganscale.runtime.storage import ObjectStore, StorageAway, StorageError

log = logging.getLogger(__name__)

EVERY_S = 2.0
METRICS = "metrics.jsonl"


class Shadow:
    """A context around training under Ray."""

    def __init__(self, run_dir: Path, store: ObjectStore, *, every_s: float = EVERY_S) -> None:
        self._run_dir, self._store, self._every_s = run_dir, store, every_s
        self._started, self._stop_sent, self._fetched = False, False, -1
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)

    def __enter__(self) -> Shadow:
        forget_flags(self._store)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        try:
            if not self._is_shared():
                self._look()
                if self._started:
                    pull(self._store.uri, self._run_dir)
            forget_flags(self._store)
        except (StorageError, StorageAway, CheckpointError) as failure:
            log.warning(
                "what was trained elsewhere is in %s, and not in %s: %s", self._store.uri, self._run_dir, failure
            )

    def _is_shared(self) -> bool:
        """Whether a worker has left its flag in our own working copy."""
        return (self._run_dir / SCRATCH / STARTED_FLAG).exists()

    def _run(self) -> None:
        while not self._done.wait(self._every_s):
            if self._is_shared():
                return
            try:
                self._look()
            except (StorageError, StorageAway) as error:
                log.warning("%s", error)

    def _look(self) -> None:
        self._started = self._started or self._store.entry(f"{SCRATCH}/{STARTED_FLAG}") is not None
        if (self._run_dir / SCRATCH / STOP_FLAG).exists() and not self._stop_sent:
            self._store.put(f"{SCRATCH}/{STOP_FLAG}", b"")
            self._stop_sent = True
        metrics = self._store.entry(METRICS)
        if self._started and metrics is not None and metrics.bytes != self._fetched:
            self._store.get_file(METRICS, self._run_dir / METRICS)
            self._fetched = metrics.bytes


def forget_flags(store: ObjectStore) -> None:
    """Delete the flags of a launch, and what Ray Train has put beside them."""
    store.delete([name for name in store.list() if name.startswith(f"{SCRATCH}/")])
