"""What is done with one checkpoint beside training: one generation and feature pass, all metrics; explanations."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ganscale.files import replace_text
from ganscale.metrics import MetricValue
from ganscale.runtime.beside import Events
from ganscale.runtime.evaluation import build_judge, evaluation_board, keep
from ganscale.runtime.explain_run import explain_run
from ganscale.runtime.run import Run
from ganscale.training.retention import READING

SEED = 0


class GaveUp(Exception):
    """An explanation that was left, with the reason."""


class Work:
    """Evaluates and explains checkpoints of one run. The classifier, the reals' features and floors are made once."""

    def __init__(self, run_dir: Path, events: Events) -> None:
        self._run_dir, self._events = run_dir, events
        self._judge = None
        self._lock = threading.Lock()  # around what is written of an evaluation
        self._keeping = threading.Lock()  # and of an explanation, which takes longer
        self._evaluated, self._explained = -1, -1  # images of the last one
        self._board = evaluation_board(run_dir)

    def look(self, path: Path, *, evaluate: bool, explain: bool, give_up: Callable[[], bool]) -> None:
        """Evaluate and explain the checkpoint at ``path``; ``give_up`` is asked between the parts.

        Raises what reading and measuring raise. A checkpoint that was done is not done again.
        """
        with _kept(self._run_dir, path.name):
            run = Run(path)
            images = run.networks.images  # read, and with that out of reach of the writer that deletes old ones
            if evaluate and images > self._evaluated:
                self._evaluate(run)
        if explain and images > self._explained:
            self._explain(run, give_up)

    def _evaluate(self, run: Run) -> None:
        began, cpu = time.perf_counter(), time.thread_time()
        judge = self._judge or build_judge(run.config, run.name)
        self._judge = judge
        values = judge(run.networks)
        spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.thread_time() - cpu}
        with self._lock:
            if run.networks.images <= self._evaluated:
                return
            self._evaluated = run.networks.images
            keep(run, run.networks, values)
            self._board.write_metrics(values, run.networks.images)
            self._events.add("evaluated", run.networks.images, _summary(run.networks.images, values), **spent)

    def _explain(self, run: Run, give_up: Callable[[], bool]) -> None:
        settings = run.config.explain
        left_s = settings.budget
        for method in settings.methods:
            began, cpu = time.perf_counter(), time.thread_time()
            try:
                self._explain_by(run, method, left_s, give_up)
            except GaveUp as reason:
                words = f"{method} of {run.networks.images / 1000:g} kimg was left: {reason}"
                self._events.add("skipped", run.networks.images, words, method=method)
                if give_up():
                    return
            else:
                spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.thread_time() - cpu}
                words = f"explained {run.networks.images / 1000:g} kimg by {method}"
                self._events.add("explained", run.networks.images, words, method=method, **spent)
            left_s -= time.thread_time() - cpu
        self._explained = run.networks.images

    def _explain_by(self, run: Run, method: str, left_s: float, give_up: Callable[[], bool]) -> None:
        settings, cpu = run.config.explain, time.thread_time()

        def leave_where_told() -> None:
            if give_up():
                raise GaveUp("training has ended, and the last checkpoint comes first")

        @contextlib.contextmanager
        def keeping() -> Iterator[None]:
            with self._keeping:  # else both may take the same free number, and the later one deletes the earlier
                leave_where_told()  # the end may have come since the last chunk
                yield

        def between() -> None:
            leave_where_told()
            if time.thread_time() - cpu > left_s:
                raise GaveUp(f"explain.budget of {settings.budget:g} s is spent; raise it or lower explain.num_samples")

        explain_run(
            run,
            method,
            target="critic",
            num_samples=settings.num_samples,
            workers=0,
            seed=SEED,
            options={},
            address=None,
            between=between,
            keeping=keeping(),
            board=self._board,
        )


class _kept:
    """A context in which the trainer does not delete the checkpoint ``name``: its score may turn out the best."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self._mark, self._name = run_dir / READING, name

    def __enter__(self) -> None:
        if self._mark.parent.is_dir():
            replace_text(self._mark, self._name)

    def __exit__(self, *error: object) -> None:
        self._mark.unlink(missing_ok=True)


def _summary(images: int, values: dict[str, MetricValue]) -> str:
    found = [f"{name} {value.value:.4g} (real v real {value.floor:.4g})" for name, value in values.items()]
    return f"evaluated {images / 1000:g} kimg: " + ", ".join(found[:2])
