"""docs/cluster.md, followed literally: its commands in their order, on a cluster of two nodes with its own home folder.

Only sizes and ports are chosen freely, HEAD is this machine, and nodes stay in the foreground so that they can be ended
by their processes. `ray stop`, which would end every Ray of this machine, is not called.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from ray_head import free_ports

from ganscale.cli import main
from ganscale.errors import GanscaleError
from ganscale.runtime.jobs_server import JobServer
from ganscale.runtime.processes import end_all, processes_below, tree_of

pytestmark = pytest.mark.distributed
PAGE = Path(__file__).resolve().parents[2] / "docs" / "cluster.md"
TINY = " --set train.batch=32 --set train.tick_kimg=0.128 --set model.width=4 --set model.latent=8 --set sample.num=4"


def blocks() -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_every_command_of_the_page_works_in_its_order(short_dir):
    home = short_dir
    dashboard, gcs, *others = free_ports(5)
    head_flags = f"--port={gcs} --dashboard-port={dashboard} --ray-client-server-port={others[0]} --temp-dir={home}/ray"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",  # in the place of the tunnel
    }
    token, start, join, *rest = (block.replace("HEAD:6379", f"127.0.0.1:{gcs}") for block in blocks())
    assert "ray start --head" in start
    assert "ray start --address=" in join

    assert bash(token, environment).returncode == 0
    path = home / ".ray" / "auth_token"
    assert (path.stat().st_mode & 0o777, len(path.read_text())) == (0o600, 64)
    server = JobServer(environment["RAY_API_SERVER_ADDRESS"], path.read_text())
    tree: set[int] = set()
    try:
        with node(start, f"{head_flags} --dashboard-agent-listen-port={others[1]}", environment, "head") as head:
            wait_until_up(server, *head, cpus=1)
            own_disk = f"--temp-dir={home}/ray2 --dashboard-agent-listen-port={others[2]}"
            with node(join, own_disk, environment, "second") as second:
                wait_until_up(server, *second, cpus=2)
                # as written, but for the size of the runs
                script = re.sub(r"(--preset dcgan-fashion --kimg \S+)", rf"\1{TINY}", "\n".join(rest))
                assert TINY in script
                done = bash(script, environment)
                tree = tree_of(home)
    finally:
        end_all(tree | tree_of(home), home)
    check_what_was_done(done, home / "runs" / "both")
    assert processes_below(home) == set()


def bash(script: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    home, text = environment["HOME"], {"text": True, "capture_output": True}
    return subprocess.run(["bash", "-ec", script], env=environment, cwd=home, check=False, timeout=800, **text)


@contextlib.contextmanager
def node(
    command: str, flags: str, environment: dict[str, str], name: str
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Start a node of one core by ``command`` and ``flags``; yields its process and its log."""
    home = Path(environment["HOME"])
    sizes = "--num-cpus=1 --num-gpus=0 --min-worker-port=0 --max-worker-port=0 --block"
    words = ["bash", "-c", f"{command.strip()} {sizes} {flags}"]
    with (home / f"{name}.log").open("w") as log:
        process = subprocess.Popen(words, env=environment, cwd=home, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process, home / f"{name}.log"
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(8)
        process.kill()
        process.wait()


def check_what_was_done(done: subprocess.CompletedProcess[str], both: Path) -> None:
    assert done.returncode == 0, (done.stdout, done.stderr)
    lines = [json.loads(line) for line in (both / "metrics.jsonl").read_text().splitlines()]
    assert {line["timing"]["workers"] for line in lines} == {2}  # each needs a core, and each node has one
    assert "nothing was sent (--dry-run)" in done.stdout
    assert re.search(r"^ganscale-first-\w{8}$", done.stdout, re.MULTILINE) is None  # it went into JOB
    assert "of 0.5 kimg" in done.stdout
    assert re.search(r"^ganscale-first-\w{8} +SUCCEEDED", done.stdout, re.MULTILINE)
    assert re.search(r"^ganscale-second-\w{8} has ended: STOPPED", done.stdout, re.MULTILINE)
    assert re.search(r"^64 +8 +1 ", done.stdout, re.MULTILINE)  # the plan


def wait_until_up(server: JobServer, node: subprocess.Popen[bytes], log: Path, *, cpus: int) -> None:
    while True:
        with contextlib.suppress(GanscaleError):
            if server.resources().cpus == cpus:
                return
        assert node.poll() is None, log.read_text()
        with contextlib.suppress(subprocess.TimeoutExpired):
            node.wait(0.1)


def test_what_the_example_of_costs_says_is_what_the_plan_says():
    page = (PAGE.parent.parent / "cluster" / "README.md").read_text()
    (command,) = re.findall(r"^    ganscale (plan .*)$", page, re.MULTILINE)
    done = CliRunner().invoke(main, [*shlex.split(command), "--json"])
    assert done.exit_code == 0, done.output
    hours = {one["workers"]: one["seconds"] / 3600 for one in json.loads(done.stdout)["sizes"]}
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) g \+ ([\d.]+) h \|$", page, re.MULTILINE)
    assert len(rows) >= 3
    for gpus, *said in rows:
        time = hours[int(gpus)]
        assert said == [f"{time:.1f}", f"{int(gpus) * time:.1f}", f"{int(gpus) * time:.1f}", f"{time:.1f}"]


def test_the_page_says_the_numbers_of_the_code():
    from ganscale.runtime.jobs import STOP_S
    from ganscale.runtime.jobs_package import LIMIT_BYTES

    page = PAGE.read_text()
    assert f"for which it has {STOP_S} s" in page
    assert f"more than {LIMIT_BYTES >> 20} MiB" in page


@pytest.mark.parametrize("page", [PAGE, PAGE.parent.parent / "cluster" / "README.md"], ids=["docs", "cluster"])
def test_every_file_that_is_named_is_there_and_every_deployment_file_is_named(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    assert links
    assert all((page.parent / link).exists() for link in links)
    if page.name == "README.md":
        files = {str(path.relative_to(page.parent)) for path in page.parent.rglob("*") if path.is_file()}
        assert files - {"README.md", "Dockerfile.dockerignore"} == set(links) - {"../docs/cluster.md"}


def test_one_machine_is_told_that_it_needs_none_of_it():
    for page in (PAGE, PAGE.parent.parent / "cluster" / "README.md"):
        assert "ganscale launch --gpus 8" in page.read_text().split("\n\n")[1]
