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
RAY = str(Path(sys.executable).parent / "ray")
QUICK = {  # how soon the head takes a node for lost: 3 x .5 s; Ray's own is some 15 s
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


class Nodes:
    """A head that holds no worker, and nodes with names; ``address`` is the cluster's."""

    def __init__(self, process: subprocess.Popen[str], token_path: Path) -> None:
        self._process, self.token_path, self._names = process, token_path, set[str]()
        self.address: str = self._answer()["address"]

    def have(self, *names: str, cpus: int = 1) -> None:
        """See to it that there are these nodes, added here, and no others."""
        for name in sorted(self._names - set(names)):
            self.kill(name)
        for name in sorted(set(names) - self._names):
            self.add(name, cpus=cpus)

    def add(self, name: str, *, cpus: int, gpus: int = 0) -> None:
        """Add a node; it is there when this returns."""
        self._ask({"add": name, "cpus": cpus, "gpus": gpus})
        self._names.add(name)

    def kill(self, name: str) -> None:
        """Kill a node without a warning, as a machine that loses its power."""
        self._names.remove(name)
        self._ask({"kill": name})

    def free_cpus(self) -> float:
        """Return how many CPUs nobody holds."""
        return self._ask({"free": "CPU"})["free"]

    @contextlib.contextmanager
    def joined(self, log: Path, *, cpus: int) -> Iterator[subprocess.Popen[bytes]]:
        """Join a node as a machine does, by `ray start --block`, the process that an orchestrator sends SIGTERM to."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_path)}
        ports = ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]  # any that is free
        command = [RAY, "start", f"--address={self.address}", "--block", f"--num-cpus={cpus}", "--num-gpus=0", *ports]
        with log.open("w") as stream:
            node = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while "Ray runtime started" not in log.read_text():
                assert node.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield node
        finally:
            node.kill()
            node.wait()

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
        resumes: bool = False,
    ) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"RAY_AUTH_TOKEN_PATH": str(nodes.token_path)} | (ray_settings or {})
        chosen = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        which = ["--preset", "dcgan-fashion", "--runs-dir", str(run_dir.parent), "--name", run_dir.name]
        which = ["--resume", str(run_dir)] if resumes else which
        command = [sys.executable, *program, "launch", "--address", nodes.address, *which, *words, *chosen]
        self.run_dir = run_dir
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and what was said."""
        words = self.process.communicate(timeout=PATIENCE_S)[1]
        return self.process.returncode, words

    def until(self, condition: Callable[[], bool], *, lives: bool = True) -> None:
        """Wait until ``condition`` holds, while the launch ``lives``."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert not lives or self.process.poll() is None, self.process.communicate()
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
    environment["RAY_TMPDIR"] = str(home)  # there it notes its address, else in /tmp/ray, which need not exist
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
        order, began, found = json.loads(line), time.monotonic(), {}
        if "add" in order:
            nodes[order["add"]] = cluster.add_node(num_cpus=order["cpus"], num_gpus=order["gpus"])
        elif "kill" in order:
            cluster.remove_node(nodes.pop(order["kill"]), allow_graceful=False)
        else:
            found["free"] = cluster.global_state.available_resources().get(order["free"], 0.0)
        _say(seconds=time.monotonic() - began, **found)


def _say(**facts: object) -> None:
    print(json.dumps({"done": True} | facts), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
