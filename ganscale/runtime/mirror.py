"""Keeps an object store equal to the working copy of a run: finished artefacts go up in the background.

A store has no renames, so order does what a rename does elsewhere: the parts of a checkpoint go first and its manifest
last, and a prefix without a manifest that verifies does not exist. Deleting goes the other way round. Training never
waits for the store; what could not be sent is whole in the working copy, and sent later.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from ganscale.config import CheckpointConfig
from ganscale.errors import RunFailed
from ganscale.files import name_for_users
from ganscale.runtime.storage import ObjectStore, StorageAway, StorageError
from ganscale.training.checkpoint import MANIFEST, names
from ganscale.training.retention import spared

log = logging.getLogger(__name__)

EVERY_S = 5.0
GROWING_EVERY_S = 30.0  # event files are sent whole each time they have grown: objects cannot be appended to
_CHECKPOINTS, _EVALUATIONS, _LAST_OF_EXPLANATION = "checkpoints", "evaluations", "explanation.json"


class Mirror:
    """A context: while it is open a thread sends what is new; leaving it sends the rest, or raises RunFailed.

    ``settings`` says how many checkpoints the store keeps; without it nothing is deleted there. ``may_send`` is asked
    before each pass: once another launch has the run, nothing more goes up.
    """

    def __init__(
        self,
        run_dir: Path,
        store: ObjectStore,
        settings: CheckpointConfig | None = None,
        *,
        every_s: float = EVERY_S,
        may_send: Callable[[], bool] = lambda: True,
    ) -> None:
        self._run_dir, self._store, self._settings = run_dir, store, settings
        self._every_s, self._may_send = every_s, may_send
        self._sent: dict[str, tuple[int, int]] = {}  # name -> size and time of change of what the store has
        self._grown_at = -GROWING_EVERY_S
        self._whole: set[str] | None = None  # checkpoints that the store has, and that equal ours where we have them
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def __enter__(self) -> Mirror:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        try:
            if self._may_send():
                self.send()
            elif error is None:
                raise RunFailed(f"{name_for_users(self._run_dir)} was taken over; nothing more is sent from here")
        except (StorageError, StorageAway) as failure:
            words = (
                f"{name_for_users(self._run_dir)} does not hold all of the run: {failure}; it is whole in "
                f"{self._run_dir}, and `ganscale report {self._run_dir}` sends the rest"
            )
            if error is None:
                raise RunFailed(words) from failure
            log.warning("%s", words)

    def send(self, *, growing: bool = True) -> None:
        """Send what is new; ``growing`` files included. Raises StorageError or StorageAway."""
        ready = names(self._run_dir / _CHECKPOINTS)  # first: the lines of metrics up to these are written already
        for file in self._loose_files(growing):
            self._send_file(file)
        if self._whole is None:
            self._whole = self._find_whole()
        for path in reversed(ready):  # the newest one is what a resume wants
            if path.name not in self._whole and self._send_checkpoint(path):
                self._whole.add(path.name)
                self._prune()

    def _run(self) -> None:
        while not self._done.wait(self._every_s):
            now = time.monotonic()
            growing = now - self._grown_at >= GROWING_EVERY_S
            try:
                if self._may_send():
                    self.send(growing=growing)
                    self._grown_at = now if growing else self._grown_at
            except (StorageError, StorageAway) as error:
                log.warning("%s; the run is kept in %s and sent later", error, self._run_dir)

    def _loose_files(self, growing: bool) -> Iterator[Path]:
        """Yield every finished file that is no checkpoint's, the document of an explanation after the rest of it."""
        found = [path for path in self._run_dir.rglob("*") if path.is_file()]
        for path in sorted(found, key=lambda path: (path.name == _LAST_OF_EXPLANATION, path)):
            parts = path.relative_to(self._run_dir).parts
            hidden = any(part.startswith(".") for part in parts)
            if not hidden and parts[0] != _CHECKPOINTS and (growing or parts[0] != "tensorboard"):
                yield path

    def _send_file(self, file: Path) -> None:
        name = file.relative_to(self._run_dir).as_posix()
        try:
            facts = file.stat()
            version = (facts.st_size, facts.st_mtime_ns)
            if self._sent.get(name) == version:
                return
            if file.suffix == ".jsonl":  # the last line may be half written
                content = file.read_bytes()
                self._store.put(name, content[: content.rfind(b"\n") + 1])
            else:
                self._store.put_file(name, file)
        except FileNotFoundError:
            return  # replaced or deleted meanwhile
        self._sent[name] = version

    def _find_whole(self) -> set[str]:
        found = complete_checkpoints(self._store)
        for path in names(self._run_dir / _CHECKPOINTS):
            if path.name in found and not self._is_equal(path):
                found.remove(path.name)
        return found

    def _is_equal(self, path: Path) -> bool:
        try:
            return self._store.get(f"{_CHECKPOINTS}/{path.name}/{MANIFEST}") == (path / MANIFEST).read_bytes()
        except FileNotFoundError:
            return False

    def _send_checkpoint(self, path: Path) -> bool:
        """Send one checkpoint; returns False where it was deleted here meanwhile."""
        prefix = f"{_CHECKPOINTS}/{path.name}"
        try:
            manifest = (path / MANIFEST).read_bytes()
            self._store.delete([f"{prefix}/{MANIFEST}"])  # of an older one: parts and manifest must never disagree
            for file in json.loads(manifest)["files"]:
                self._store.put_file(f"{prefix}/{file}", path / file)
        except FileNotFoundError:
            delete_checkpoint(self._store, path.name)
            return False
        self._store.put(f"{prefix}/{MANIFEST}", manifest)
        return True

    def _prune(self) -> None:
        """Delete what need not be kept, once a newer checkpoint is whole in the store."""
        if self._settings is None:
            return
        spare = spared(self._run_dir, self._settings.keep_best, among=self._whole)
        for name in sorted(self._whole)[: -self._settings.keep]:
            if name not in spare:
                delete_checkpoint(self._store, name)
                self._whole.discard(name)


def complete_checkpoints(store: ObjectStore) -> set[str]:
    """Return the names of the checkpoints in ``store`` that have a manifest; whether it verifies, reading tells."""
    parts = (name.split("/") for name in store.list())
    return {part[1] for part in parts if len(part) == 3 and part[0] == _CHECKPOINTS and part[2] == MANIFEST}


def discard_newer(store: ObjectStore, name: str) -> None:
    """Delete the checkpoints after ``name`` (all after ""), finished or not, and the evaluations of such.

    The run goes over that ground again.
    """
    entries = [entry.split("/") for entry in store.list() if "/" in entry]
    for found in {parts[1] for parts in entries if parts[0] == _CHECKPOINTS}:
        if found > name:
            delete_checkpoint(store, found)
    stale = ["/".join(parts) for parts in entries if parts[0] == _EVALUATIONS and Path(parts[1]).stem > name]
    store.delete(stale)


def delete_checkpoint(store: ObjectStore, name: str) -> None:
    """Delete a checkpoint from ``store``: the manifest first, so that no half of it ever counts as one."""
    prefix = f"{_CHECKPOINTS}/{name}/"
    files = [found for found in store.list() if found.startswith(prefix)]
    store.delete(sorted(files, key=lambda file: file != prefix + MANIFEST))
