"""A cluster that must not be joined (another token, another Ray, another Python): one line with the facts, exit 2."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_head import RayHead, ray_head
from tiny_runs import tiny_config

from ganscale.runtime import launch
from ganscale.runtime.processes import processes_below

pytestmark = pytest.mark.ray
PATIENCE_S = 240  # only where all else fails

# every verb that joins a cluster, in one process, as a program that goes on after a refusal would
CALLS = """
import json, sys
from click.testing import CliRunner
from ganscale.cli import main

found = []
for words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(main, words)
    found.append([done.exit_code, done.stdout, done.stderr])
import ray
print(json.dumps({"found": found, "connected": ray.is_initialized()}))
"""

# what the head tells of itself, as another one would
PRETEND = """
import json, sys
from ray._private import ray_constants
from ray._common.usage import usage_constants, usage_lib
from ray._raylet import GcsClient

client = GcsClient(address=sys.argv[1])
told = usage_lib.get_cluster_metadata(client) | json.loads(sys.argv[2])
key, space = usage_constants.CLUSTER_METADATA_KEY, ray_constants.KV_NAMESPACE_CLUSTER
client.internal_kv_put(key, json.dumps(told).encode(), overwrite=True, namespace=space)
"""


@pytest.fixture(scope="module")
def head(short_dir: Path) -> Iterator[RayHead]:
    with ray_head(short_dir, cpus=1) as running:
        yield running
    assert processes_below(short_dir) == set()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to explain."""
    changes = {"train__kimg": 0.064, "train__tick_kimg": 0.064}
    return launch(tiny_config(**changes), name="x", runs_dir=tmp_path_factory.mktemp("runs"), workers=0).path


def python(script: str, *arguments: str, environment: dict[str, str], folder: Path) -> str:
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr  # nor does compiled code write to it
    return done.stdout


def refusals(*calls: list[str], environment: dict[str, str], folder: Path) -> list[str]:
    """Return the one line that each of ``calls`` is refused with; none leaves a file, nor a connection half made."""
    told = json.loads(python(CALLS, json.dumps(calls), environment=environment, folder=folder).splitlines()[-1])
    lines = []
    for code, out, err in told["found"]:
        assert (code, out, len(err.splitlines())) == (2, "", 1), (code, out, err)
        lines += err.splitlines()
    assert not told["connected"]
    assert list(folder.iterdir()) == []
    return lines


def verbs(head: RayHead, run: Path) -> list[list[str]]:
    trials = ["--preset", "r3gan-gaussians", "--trials", "1", "--param", "optim.critic.lr=1e-4", "--kimg", "2"]
    return [
        [*words, "--address", head.address]
        for words in (["launch", "--kimg", "1"], ["tune", *trials], ["explain", str(run), "--method", "directions"])
    ]


def test_another_token_is_refused_by_every_verb_that_joins(head, run, tmp_path):
    (tmp_path / "token").write_text("0" * 64)
    (tmp_path / "here").mkdir()
    other = head.environment | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    for line in refusals(*verbs(head, run), environment=other, folder=tmp_path / "here"):
        assert line.startswith(f"error: the Ray token must be that of the cluster at {head.address}, got another one; ")
        assert "copy ~/.ray/auth_token from the head node" in line
        assert "0000" not in line


def test_another_server_than_a_ray_is_refused_once_it_has_not_answered(head, run, tmp_path):
    port = head.url.rpartition(":")[2]  # of the dashboard, which is easily taken for that of the cluster
    impatient = {"RAY_gcs_rpc_server_connect_timeout_s": "1", "RAY_py_gcs_connect_timeout_s": "1"}
    words = [*verbs(head, run)[0][:-1], f"127.0.0.1:{port}"]
    (line,) = refusals(words, environment=head.environment | impatient, folder=tmp_path)
    assert line.startswith(f"error: --address must be that of a running Ray cluster, got 127.0.0.1:{port}, where ")
    assert "ganscale submit" in line


@pytest.mark.parametrize(
    ("there", "names", "remedy"),
    [
        ({"ray_version": "2.1.0"}, ["Ray"], "install ray==2.1.0 here"),
        ({"python_version": "3.9.1"}, ["Python"], "ganscale submit"),
        ({"ray_version": "2.1.0", "python_version": "3.9.1"}, ["Ray", "Python"], "use ray==2.1.0 with Python 3.9.1"),
    ],
)
def test_another_ray_or_python_is_refused_with_both_versions(head, run, tmp_path, there, names, remedy):
    import platform
    from importlib import metadata

    ours = {"ray_version": metadata.version("ray"), "python_version": platform.python_version()}
    told = ours | there
    python(PRETEND, head.address, json.dumps(told), environment=head.environment, folder=tmp_path)
    (line,) = refusals(verbs(head, run)[0], environment=head.environment, folder=tmp_path)
    keys = [{"Ray": "ray_version", "Python": "python_version"}[name] for name in names]
    theirs, here = (" and ".join(versions[key] for key in keys) for versions in (told, ours))
    start = f"error: {' and '.join(names)} must be {theirs} as on the cluster at {head.address}, got {here}; "
    assert line.startswith(start), line
    assert remedy in line
