"""Checkpoints written in the background of rank 0: training waits for the copy of its tensors, not for the disk.

At most one checkpoint is under way. The next save waits for it and says so; what went wrong with it is raised by the
next call from the training thread, and at the end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from ganscale.config import CheckpointConfig
from ganscale.files import remove_leftovers
from ganscale.progress import checkpoint_name
from ganscale.training import checkpoint as checkpoints
from ganscale.training.retention import discard_evaluations, spared

log = logging.getLogger(__name__)

WORTH_SAYING_S = 0.5  # a shorter wait for the checkpoint before is not


class CheckpointWriter:
    """Commits checkpoints of ``run_dir`` in a thread, one at a time, and deletes those that need not be kept.

    A context: leaving it waits for what is under way. Nothing else may write checkpoints of this run meanwhile.
    """

    def __init__(self, run_dir: Path, settings: CheckpointConfig, *, newest: Path | None = None) -> None:
        self._run_dir, self._root, self._settings = run_dir, run_dir / "checkpoints", settings
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._newest = newest

    def tidy(self, images: int) -> None:
        """Make room to go on from ``images``: delete what a writer that was killed left, set later checkpoints aside.

        Their evaluations are deleted: they would count for what is saved under these names now. Only for the one
        process that writes.
        """
        remove_leftovers(self._root)
        checkpoints.set_newer_aside(self._root, images)
        discard_evaluations(self._run_dir, checkpoint_name(images))

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint that is wholly on the disk; it never names one that is under way."""
        return self._newest

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.settle()
        if error is None:
            self.check()
        elif self._error is not None:  # the error that ends the run goes first
            log.warning("the checkpoint under way failed too: %s", self._error)

    def make_room(self, images: int) -> None:
        """Wait until nothing is under way, so that the save at ``images`` may copy; raises what ``check`` raises."""
        began = time.perf_counter()
        self.settle()
        waited = time.perf_counter() - began
        if waited > WORTH_SAYING_S:
            log.warning(
                "training waited %.1f s at %g kimg until the checkpoint before was on the disk; "
                "raise checkpoint.every_kimg or use a faster disk",
                waited,
                images / 1000,
            )
        self.check()

    def write(self, images: int, parts: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> None:
        """Begin to commit ``parts``, which nobody may change from now on; ``make_room`` comes before."""
        assert self._thread is None, "make_room first"
        # no daemon: an interpreter that ends waits for it
        self._thread = threading.Thread(target=self._work, args=(images, parts, meta), name="checkpoint-writer")
        self._thread.start()

    def check(self) -> None:
        """Raise what went wrong in the background since the last call, if anything."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def settle(self) -> None:
        """Wait for the checkpoint under way, if there is one; raises nothing."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self, images: int, parts: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> None:
        try:
            page = {**meta, "weights": checkpoints.digest(parts)}
            self._newest = checkpoints.commit(self._root, images, parts, page)
            spare = spared(self._run_dir, self._settings.keep_best)
            checkpoints.prune(self._root, self._settings.keep, spare=spare)
        except BaseException as error:
            self._error = error
