"""docs/cluster.md, followed literally: its commands in their order, on a cluster of one node with its own home folder.

Only the ports are chosen freely, and the head stays in the foreground so that it can be ended by its process.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ray_head import free_ports

from ganscale.errors import GanscaleError
from ganscale.runtime.jobs_server import JobServer
from ganscale.runtime.processes import end_all, processes_below, tree_of

pytestmark = pytest.mark.distributed
PAGE = Path(__file__).resolve().parents[2] / "docs" / "cluster.md"
TINY = " --set train.batch=32 --set train.tick_kimg=0.128 --set model.width=4 --set model.latent=8 --set sample.num=4"


def blocks() -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_every_command_of_the_page_works_in_its_order(short_dir):
    home = short_dir
    dashboard, *others = free_ports(4)
    flags = f"--port={others[0]} --dashboard-port={dashboard} --dashboard-agent-listen-port={others[1]}"
    flags += f" --ray-client-server-port={others[2]} --temp-dir={home}/ray --num-cpus=2 --num-gpus=0 --block"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",  # in the place of the tunnel
    }
    token, start, *rest = blocks()
    assert "ray start --head" in start

    def bash(script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-ec", script], env=environment, cwd=home, capture_output=True, text=True, check=False, timeout=280
        )

    assert bash(token).returncode == 0
    path = home / ".ray" / "auth_token"
    assert (path.stat().st_mode & 0o777, len(path.read_text())) == (0o600, 64)

    with (home / "head.log").open("w") as log:
        command = ["bash", "-c", f"{start.strip()} {flags}"]
        head = subprocess.Popen(command, env=environment, cwd=home, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until_up(JobServer(environment["RAY_API_SERVER_ADDRESS"], path.read_text()), head, home / "head.log")
        # as written, but for the size of the runs
        script = re.sub(r"(--preset dcgan-fashion --kimg \S+)", rf"\1{TINY}", "\n".join(rest))
        assert TINY in script
        done = bash(script)
        assert done.returncode == 0, (done.stdout, done.stderr)
        assert "nothing was sent (--dry-run)" in done.stdout
        assert re.search(r"^ganscale-first-\w{8}$", done.stdout, re.MULTILINE) is None  # it went into JOB
        assert "of 0.5 kimg" in done.stdout
        assert re.search(r"^ganscale-first-\w{8} +SUCCEEDED", done.stdout, re.MULTILINE)
        assert re.search(r"^ganscale-second-\w{8} has ended: STOPPED", done.stdout, re.MULTILINE)
        assert re.search(r"^64 +8 +1 ", done.stdout, re.MULTILINE)  # the plan
    finally:
        tree = tree_of(home)
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(8)
        end_all(tree, home)
        head.wait(5)
    assert processes_below(home) == set()


def wait_until_up(server: JobServer, head: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        with contextlib.suppress(GanscaleError):
            if server.resources().cpus == 2:
                return
        assert head.poll() is None, log.read_text()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(0.1)


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
