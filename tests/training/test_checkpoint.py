"""Laws of checkpoints: whole or absent, verified before use, the previous one offered."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from ganscale.errors import CheckpointError, RunFailed
from ganscale.training import checkpoint as cp


def parts() -> dict[str, dict[str, torch.Tensor]]:
    return {"generator": {"w": torch.arange(1000.0)}, "critic": {"b": torch.ones(3)}}


def commit(root: Path, images: int) -> Path:
    return cp.commit(root, images, parts(), {"note": "x"})


def test_names_sort_as_numbers_do():
    images = [0, 999, 8000, 8192, 9000, 100_000, 1_000_000]
    names = [cp.checkpoint_name(n) for n in images]
    assert names == sorted(names)
    assert cp.checkpoint_name(64_000) == "kimg-000064"


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


def test_a_commit_that_dies_at_any_file_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "checkpoints"
    commit(root, 8000)
    real_sync = cp._sync
    for dies_at in range(4):
        calls = 0

        def sync(path: Path, dies_at: int = dies_at) -> None:
            nonlocal calls
            calls += 1
            if calls > dies_at:
                raise KeyboardInterrupt  # as abrupt as Python can be: the cleanup for errors does not run
            real_sync(path)

        monkeypatch.setattr(cp, "_sync", sync)
        with pytest.raises(KeyboardInterrupt):
            commit(root, 16000)
    assert [path.name for path in cp.names(root)] == ["kimg-000008"]
    assert cp.newest(tmp_path).name == "kimg-000008"


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
