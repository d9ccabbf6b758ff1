"""Evaluation and explanation beside training: looks at the newest checkpoint on the disk, and training never waits.

It runs in a process of its own (a Ray actor, or a child of a launch without Ray) and learns of checkpoints by looking,
so nothing is added to the trainer's path. Its work is done by a thread of the lowest priority, which takes the cores
that training leaves. What came while it was busy is skipped in favour of the newest, and each skip is written down. At
the end of the run the last checkpoint is looked at by a thread of ordinary priority: by then the cores are free.

Importing this module loads neither torch nor Ray: an actor's process does it at the lowest priority too.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ganscale.errors import CheckpointError, GanscaleError
from ganscale.progress import images_of, times_passed

if TYPE_CHECKING:
    from ganscale.runtime.beside_work import Work

POLL_S = 0.25
LOWEST = 19  # of nice(2): against one busy thread a core's share is about 1.5 %
EVENTS = "beside.jsonl"
FINISH, DONE = "finish", "done"


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """What a new checkpoint is due for, and how many looks were passed over since the last one."""

    evaluate: bool
    explain: bool
    skipped: int

    def __bool__(self) -> bool:
        return self.evaluate or self.explain


def what_is_due(
    images: int | None, seen: int | None, *, evaluate_kimg: float | None, explain_kimg: float | None
) -> Due:
    """Return what the newest checkpoint, at ``images`` (None: there is none), is due for; ``seen`` is the last one.

    Due is the first checkpoint at or after each multiple of a cadence. Where several were passed, only the newest is
    looked at. Before anything was seen (a resumed run) nothing counts as skipped.
    """
    if images is None or (seen is not None and images <= seen):
        return Due(evaluate=False, explain=False, skipped=0)
    passed = [0 if every is None else times_passed(seen or 0, images, every) for every in (evaluate_kimg, explain_kimg)]
    skipped = 0 if seen is None else sum(max(0, count - 1) for count in passed)
    return Due(evaluate=passed[0] > 0, explain=passed[1] > 0, skipped=skipped)


class Events:
    """``beside.jsonl`` of a run: a line for each checkpoint that was evaluated, explained, skipped, or could not be."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / EVENTS

    def add(self, event: str, images: int | None, words: str, **more: Any) -> None:
        """Append a line; ``words`` are for the user."""
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        line = {"at": at, "event": event, "images": images, "words": words, **more}
        with self._path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")


class Beside:
    """Looks at checkpoints of ``run_dir`` as its ``config.json`` says, from construction until ``finish``."""

    def __init__(self, run_dir: str | Path) -> None:
        self._run_dir = Path(run_dir)
        config = json.loads((self._run_dir / "config.json").read_text())["config"]
        self._every = {f"{part}_kimg": config[part]["every_kimg"] for part in ("evaluate", "explain")}
        self._events = Events(self._run_dir)
        self._ending = threading.Event()
        self._work: Work | None = None
        threading.Thread(target=self._watch, name="beside", daemon=True).start()

    def finish(self) -> None:
        """Look at the last checkpoint, unless that was done; then nothing more. Raises nothing of the evaluation."""
        self._ending.set()
        path = _newest(self._run_dir)
        if path is not None:
            due = Due(**{part: self._every[f"{part}_kimg"] is not None for part in ("evaluate", "explain")}, skipped=0)
            self._look(path, due, give_up=lambda: False)

    def _watch(self) -> None:
        lower_priority()
        import ganscale.runtime.beside_work  # noqa: F401  takes seconds: before a checkpoint is chosen, not after

        seen = None
        while not self._ending.wait(POLL_S):
            path = _newest(self._run_dir)
            images = None if path is None else images_of(path.name)
            due = what_is_due(images, seen, **self._every)
            if due.skipped:
                words = f"passed over {due.skipped} evaluations or explanations before {path.name}: training was faster"
                self._events.add("skipped", images, words, count=due.skipped)
            if due:
                self._look(path, due, give_up=self._ending.is_set)
            if images is not None:
                seen = images

    def _look(self, path: Path, due: Due, *, give_up: Callable[[], bool]) -> None:
        """Evaluate and explain one checkpoint; whatever goes wrong becomes a line, as training goes on regardless."""
        try:
            if self._work is None:
                from ganscale.runtime.beside_work import Work

                work = Work(self._run_dir, self._events)
                self._work = self._work or work  # a thread that came first may have made one
            self._work.look(path, evaluate=due.evaluate, explain=due.explain, give_up=give_up)
        except CheckpointError as error:
            if path.exists():
                self._events.add("failed", images_of(path.name), f"{path.name} could not be evaluated: {error}")
            else:
                self._events.add(
                    "skipped", images_of(path.name), f"{path.name} was deleted before it was read", count=1
                )
        except Exception as error:
            self._events.add("failed", images_of(path.name), f"{path.name} could not be evaluated: {_words(error)}")


def lower_priority() -> None:
    """Give the calling thread the lowest priority, where threads have one of their own (Linux); else the process."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id() if sys.platform == "linux" else 0, LOWEST)


def _newest(run_dir: Path) -> Path | None:
    return max((run_dir / "checkpoints").glob("kimg-*"), default=None)


def _words(error: Exception) -> str:
    if isinstance(error, GanscaleError):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def main(run_dir: str) -> None:
    """Work as the child of a launch without Ray, which says when to finish; end at once where it has ended."""
    beside = Beside(run_dir)
    asked = sys.stdin.readline().strip()
    if asked == FINISH:
        beside.finish()
        print(DONE, flush=True)
    os._exit(0)  # the low thread may be in the midst of something that nobody waits for


if __name__ == "__main__":
    main(sys.argv[1])
