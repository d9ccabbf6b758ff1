"""Starts what evaluates beside training, and waits for its last word: an actor under Ray, a child process without.

It never decides on the run: what fails here is said and written into ``beside.jsonl``, and training goes on.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from ganscale.config import RunConfig
from ganscale.errors import ConfigError
from ganscale.files import name_for_users
from ganscale.runtime.beside import DONE, FINISH, Beside, Events
from ganscale.runtime.placement import Plan

RESTARTS = 3  # of an actor that has died
POLL_S = 0.1


class Finish(Protocol):
    """Lets the last checkpoint be looked at, and waits for it unless ``should_stop`` says to leave it."""

    def __call__(self, should_stop: Callable[[], bool]) -> None: ...


def refuse_far_away(plan: Plan, address: str | None) -> None:
    """Raise ConfigError where the checkpoints of the run at ``address`` would be on a machine of their own."""
    if plan.beside is not None and address is not None and plan.address is not None:
        raise ConfigError(
            "evaluate.every_kimg and explain.every_kimg",
            "be none where a joined cluster trains into an object store, as checkpoints pass no shared folder",
            f"a run at {address}",
            f"leave them out, and use ganscale evaluate {address} on any machine meanwhile",
        )


@contextlib.contextmanager
def beside_training(config: RunConfig, run_dir: Path, plan: Plan) -> Iterator[Finish]:
    """Evaluate and explain checkpoints of ``run_dir`` inside the block, where ``config`` asks for it.

    Yields what is to be called once training has come to its end. Under Ray (``plan.workers``) a Ray must be connected.
    """
    if plan.beside is None:
        yield lambda should_stop: None
        return
    with contextlib.ExitStack() as stack:
        helper = _Actor(run_dir, plan) if plan.workers else _Child(run_dir)
        stack.callback(helper.end)

        def finish(should_stop: Callable[[], bool]) -> None:
            why = _wait(helper, config.evaluate.wait_s, should_stop)
            if why:
                shown = name_for_users(run_dir)
                words = f"the last checkpoint was not evaluated: {why}; do it with ganscale evaluate {shown}"
                Events(run_dir).add("failed", None, words)

        yield finish


def _wait(helper: _Actor | _Child, patience_s: float, should_stop: Callable[[], bool]) -> str | None:
    """Return None where the helper has finished within ``patience_s``, else why not."""
    deadline = time.monotonic() + patience_s
    helper.ask_to_finish()
    while time.monotonic() < deadline:
        if should_stop():
            return "stopped on request"
        done, why = helper.poll(POLL_S)
        if done:
            return why
    return f"it took longer than evaluate.wait_s ({patience_s:g} s)"


class _Actor:
    """The actor, and the call by which it finishes. Ray starts it again where its process is lost."""

    def __init__(self, run_dir: Path, plan: Plan) -> None:
        import ray

        actor = ray.remote(num_cpus=plan.beside, num_gpus=0, max_restarts=RESTARTS, max_task_retries=RESTARTS)(Beside)
        self._handle = actor.remote(str(run_dir))
        self._answer: Any = None

    def ask_to_finish(self) -> None:
        self._answer = self._handle.finish.remote()

    def poll(self, wait_s: float) -> tuple[bool, str | None]:
        import ray

        done, _ = ray.wait([self._answer], timeout=wait_s)
        if not done:
            return False, None
        try:
            ray.get(self._answer)
        except ray.exceptions.RayError as error:
            return True, str(error).strip().splitlines()[0]
        return True, None

    def end(self) -> None:
        import ray

        ray.kill(self._handle)


class _Child:
    """The child process; it ends by itself where this one does, as its input ends then."""

    def __init__(self, run_dir: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ganscale.runtime.beside", str(run_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for the launch, which tells it
        )

    def ask_to_finish(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(FINISH + "\n")
            self._process.stdin.flush()

    def poll(self, wait_s: float) -> tuple[bool, str | None]:
        try:
            code = self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            return False, None
        said = self._process.stdout.read().strip()
        return True, None if said == DONE else f"its process has ended with code {code}"

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()
