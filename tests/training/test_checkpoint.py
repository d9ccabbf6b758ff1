"""Laws of checkpoints: whole or absent, verified before use, the previous one offered."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from ganscale import files
from ganscale.errors import CheckpointError, RunFailed
from ganscale.progress import checkpoint_name
from ganscale.training import checkpoint as cp

pytestmark = pytest.mark.distributed
FORK = multiprocessing.get_context("fork")  # a start that costs nothing: some thirty processes die here


def parts(value: float = 1.0) -> dict[str, dict[str, torch.Tensor]]:
    return {"generator": {"w": torch.arange(1000.0)}, "critic": {"b": torch.full((3,), value)}}


def commit(root: Path, images: int, value: float = 1.0) -> Path:
    return cp.commit(root, images, parts(value), {"note": "x"})


def test_names_sort_as_numbers_do():
    images = [0, 999, 8000, 8192, 9000, 100_000, 1_000_000]
    names = [checkpoint_name(n) for n in images]
    assert names == sorted(names)
    assert checkpoint_name(64_000) == "kimg-000064"


def test_what_is_loaded_is_what_was_committed(tmp_path: Path):
    loaded = cp.load(commit(tmp_path / "checkpoints", 8000))
    assert loaded.images == 8000
    assert loaded.meta == {"note": "x"}
    assert torch.equal(loaded.parts["generator"]["w"], torch.arange(1000.0))


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "manifest-gone"])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_offered(tmp_path: Path, damage: str):
    root = tmp_path / "checkpoints"
    before, newest = commit(root, 8000), commit(root, 16000)
    victim = newest / ("manifest.json" if damage.startswith("manifest") else "generator.safetensors")
    content = bytearray(victim.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
        victim.write_bytes(content)
    elif damage in ("truncate", "manifest"):
        victim.write_bytes(content[: len(content) // 2])
    else:
        victim.unlink()
    with pytest.raises(CheckpointError) as caught:
        cp.newest(tmp_path)
    assert str(victim) in str(caught.value)
    assert str(before) in str(caught.value)
    good, refused = cp.newest_good(tmp_path)
    assert good == before
    assert len(refused) == 1


def commit_and_die(root: Path, limit: int, told: Connection) -> None:
    """In a process of its own: replace a checkpoint, and be killed at the file operation number ``limit``."""
    seen = 0

    def step() -> None:
        nonlocal seen
        seen += 1
        if seen == limit:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and str(root) in str(arguments[0]):
            step()

    sync = files.sync
    files.sync = lambda path: (step(), sync(path), step())
    sys.addaudithook(watch)
    commit(root, 16000, value=2.0)
    told.send(seen)


def run_until(root: Path, limit: int) -> int | None:
    """Return how many file operations the commit took, None where it was killed."""
    commit(root, 8000)
    commit(root, 16000, value=1.0)
    mine, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=commit_and_die, args=(root, limit, theirs))
    process.start()
    theirs.close()
    process.join()
    assert process.exitcode == (-signal.SIGKILL if limit else 0)
    return None if limit else mine.recv()


def test_a_commit_that_is_killed_at_any_step_leaves_the_old_checkpoint_or_the_new_one(tmp_path: Path):
    steps = run_until(tmp_path / "whole" / "checkpoints", limit=0)
    assert steps > 10  # folders, parts, manifest, each synced; the old one renamed and deleted
    values = []
    for limit in range(1, steps + 1):
        root = tmp_path / str(limit) / "checkpoints"
        run_until(root, limit)
        good, refused = cp.newest_good(root.parent)
        assert not refused  # nobody ever sees half of one under a checkpoint's name
        found = cp.load(good)
        values.append(found.parts["critic"]["b"][0].item() if found.images == 16000 else 1.5)
        files.remove_leftovers(root)
        assert {path.name for path in root.iterdir()} <= {"kimg-000008", "kimg-000016"}
    assert values[0] == 1.0
    assert values[-1] == 2.0
    assert values == sorted(values)  # the old one; between two renames the one before it; the new one


def test_only_the_newest_are_kept(tmp_path: Path):
    for images in (1000, 2000, 3000, 4000):
        commit(tmp_path, images)
    cp.prune(tmp_path, 2)
    assert [path.name for path in cp.names(tmp_path)] == ["kimg-000003", "kimg-000004"]


def test_an_unknown_schema_is_refused(tmp_path: Path):
    path = commit(tmp_path, 1000)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    with pytest.raises(CheckpointError, match="schema"):
        cp.load(path)


def test_a_full_disk_stops_with_the_way_on_and_leaves_no_half_checkpoint(tmp_path: Path):
    mount = tmp_path / "small"
    mount.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", mount]).returncode:
        pytest.skip("a tiny tmpfs needs the right to mount")
    try:
        root = mount / "run" / "checkpoints"
        cp.commit(root, 1000, {"generator": {"w": torch.ones(100)}}, {})
        with pytest.raises(RunFailed, match=r"no space left .* --resume"):
            cp.commit(root, 2000, {"generator": {"w": torch.ones(1_000_000)}}, {})
        assert [path.name for path in root.iterdir()] == ["kimg-000001"]
        assert cp.newest(mount / "run").name == "kimg-000001"
    finally:
        subprocess.run(["umount", mount], check=True)
