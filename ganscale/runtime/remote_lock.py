"""One run, one writer, in an object store: the lock file's twin where there are no exclusive creates.

The last of two that put the lock at the same moment wins: each reads it back after ``SETTLE_S``, and who does not find
its own name gives way. Ages are differences between times of the store's own clock.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from types import TracebackType

from ganscale.errors import RunFailed
from ganscale.runtime.run_lock import LOCK, STALE_S, Holder, in_use, is_alive, is_this_process, ourselves, parse_holder
from ganscale.runtime.storage import ObjectStore, StorageAway, StorageError

log = logging.getLogger(__name__)

BEAT_S = 20.0
SETTLE_S = 0.5
READ_AFTER_S = (0.0, 0.05, 0.2)


def is_ours(store: ObjectStore) -> bool:
    """Whether this process holds the lock of the run in ``store`` now; raises StorageError or StorageAway."""
    return is_this_process(_read(store))


class RemoteLock:
    """A context in which this process alone writes the run in ``store``; as ``RunLock``."""

    def __init__(self, store: ObjectStore, *, beat_s: float = BEAT_S) -> None:
        self._store, self._beat_s = store, beat_s
        self.holder = ourselves()
        self._done = threading.Event()
        self._lost: str | None = None
        self._thread = threading.Thread(target=self._beat, name="remote-lock", daemon=True)

    def __enter__(self) -> RemoteLock:
        now = self._store.check()
        found = self._store.entry(LOCK)
        if found is not None:
            self._refuse_living(now - found.put_at)
        self._touch()
        time.sleep(SETTLE_S)
        if _read(self._store) != self.holder:
            self._refuse_living(0.0)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        with contextlib.suppress(StorageError, StorageAway):  # it goes stale by itself
            if _read(self._store) == self.holder:
                self._store.delete([LOCK])

    def check(self) -> None:
        """Raise RunFailed where another process has taken the run over: nothing may be written any more."""
        if self._lost is not None:
            raise RunFailed(f"{self._store.uri} was taken over by {self._lost}; nothing more is written from here")

    def _refuse_living(self, age_s: float) -> None:
        holder = _read(self._store)
        if is_alive(holder, age_s):
            raise in_use(self._store.uri, holder, age_s)
        log.warning("took over the lock of %s, which has died", holder or self._store.uri)

    def _touch(self) -> None:
        self._store.put(LOCK, self.holder.to_json().encode())

    def _beat(self) -> None:
        while not self._done.wait(self._beat_s):
            try:
                found = _read(self._store)
                if found != self.holder:
                    self._lost = str(found or "another process")
                    return
                self._touch()
            except (StorageError, StorageAway) as error:
                log.warning("the lock could not be touched, and counts as dead after %g s: %s", STALE_S, error)


def _read(store: ObjectStore) -> Holder | None:
    """Return the holder. A text that names none is read again: the size is asked for before the content, and a longer
    lock that comes in between is cut short.
    """
    for wait_s in READ_AFTER_S:
        time.sleep(wait_s)
        try:
            holder = parse_holder(store.get(LOCK).decode(errors="replace"))
        except FileNotFoundError:
            return None
        if holder is not None:
            return holder
    return None
