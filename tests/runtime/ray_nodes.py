"""Several Ray nodes on one machine, in a process of their own: nodes come and go by a line on its stdin.

They share one address, so nothing that goes by addresses is tested with them. GPUs are what a node is told it has.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ganscale.runtime.processes import end_all, tree_of

PATIENCE_S = 400  # only where all else fails
QUICK = {  # how soon the head takes a node for lost: 3 x .5 s; Ray's own is some 15 s
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


class Nodes:
    """A head that holds no worker, and nodes with names; ``address`` is the cluster's."""

    def __init__(self, process: subprocess.Popen[str], token_path: Path) -> None:
        self._process, self.token_path = process, token_path
        self.address: str = self._answer()["address"]

    def add(self, name: str, *, cpus: int, gpus: int = 0) -> None:
        """Add a node; it is there when this returns."""
        self._ask({"add": name, "cpus": cpus, "gpus": gpus})

    def kill(self, name: str) -> None:
        """Kill a node without a warning, as a machine that loses its power."""
        self._ask({"kill": name})

    def _ask(self, order: dict[str, object]) -> dict[str, object]:
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, object]:
        while line := self._process.stdout.readline():  # Ray prints there, too
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict) and "done" in found:
                    return found
        raise AssertionError(f"the nodes ended with {self._process.wait()}")


class Launch:
    """A `ganscale launch` that joins the nodes, and what its run directory says of it."""

    def __init__(
        self,
        nodes: Nodes,
        run_dir: Path,
        *words: str,
        settings: dict[str, Any],
        program: tuple[str, ...] = ("-m", "ganscale"),
        ray_settings: dict[str, str] | None = None,
    ) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"RAY_AUTH_TOKEN_PATH": str(nodes.token_path)} | (ray_settings or {})
        chosen = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        where = ["--address", nodes.address, "--runs-dir", str(run_dir.parent), "--name", run_dir.name]
        command = [sys.executable, *program, "launch", "--preset", "dcgan-fashion", *where, *words, *chosen]
        self.run_dir = run_dir
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and what was said."""
        words = self.process.communicate(timeout=PATIENCE_S)[1]
        return self.process.returncode, words

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds, while the launch lives."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, (self.roll(), self.ticks()[-3:])
            time.sleep(0.05)

    def ticks(self) -> list[tuple[int, int]]:
        """Return (images, workers) of each tick so far."""
        path = self.run_dir / "metrics.jsonl"
        whole = (
            [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            if path.exists()
            else []
        )
        return [(line["images"], line["timing"]["workers"]) for line in map(json.loads, whole)]

    def roll(self) -> dict[str, Any]:
        """Return who is there, as the controller wrote it down last."""
        path = self.run_dir / ".ray" / "roll.json"
        return json.loads(path.read_text()) if path.exists() else {"state": None, "nodes": {}}

    def trains_with(self, workers: int) -> bool:
        return bool(self.ticks()) and self.ticks()[-1][1] == workers


@contextlib.contextmanager
def ray_nodes(home: Path, *, health: dict[str, str] = QUICK) -> Iterator[Nodes]:
    """Run a cluster whose files lie in ``home``, a short path; all of it ends with the block."""
    token_path = home / "auth_token"
    token_path.touch(mode=0o600)
    token_path.write_text(secrets.token_hex(32))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_path)} | health
    with (home / "nodes.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, str(home / "ray")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        yield Nodes(process, token_path)
    finally:
        tree = tree_of(home)
        for pid in (process.pid, *tree):  # nothing of theirs is worth a good end, which takes them 5 s
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        end_all(tree, home)
        process.wait(10)


def main(home: str) -> None:
    """Serve orders; ``add_node`` wants the main thread."""
    from ray.cluster_utils import Cluster

    began = time.monotonic()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": home})
    _say(address=cluster.address, seconds=time.monotonic() - began)
    nodes = {}
    for line in sys.stdin:
        order, began = json.loads(line), time.monotonic()
        if "add" in order:
            nodes[order["add"]] = cluster.add_node(num_cpus=order["cpus"], num_gpus=order["gpus"])
        else:
            cluster.remove_node(nodes.pop(order["kill"]), allow_graceful=False)
        _say(seconds=time.monotonic() - began)


def _say(**facts: object) -> None:
    print(json.dumps({"done": True} | facts), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
