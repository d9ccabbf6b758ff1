"""A disk that is too small is refused before anything is written; one that fills up stops the run with the way on."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from calls import TINY, call

from ganscale.config import override
from ganscale.errors import RunFailed
from ganscale.presets import preset
from ganscale.runtime import launch
from ganscale.training.checkpoint import newest

pytestmark = pytest.mark.distributed
MIB = 1 << 20
PATIENCE_S = 60  # only where all else fails


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Return a function: MiB -> the mount point of a file system of that size."""
    mounted: list[Path] = []

    def mount(mebibytes: int) -> Path:
        place = tmp_path / f"disk-{mebibytes}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "none", str(place)]
        if os.geteuid() != 0 or subprocess.run(command).returncode:
            pytest.skip("a tiny tmpfs needs the right to mount")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(small_disk, expect_refused):
    disk = small_disk(1)
    done = call("launch", "--workers", 0, "--name", "tiny", "--runs-dir", disk, "--kimg", 1, *TINY)
    expect_refused(done, str(disk), "MiB free", "--runs-dir")
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.ray)])
def test_a_disk_that_fills_up_in_mid_run_stops_it_with_what_was_saved_and_the_way_on(small_disk, workers):
    disk = small_disk(80)  # room for the run and for the spare that is asked for beforehand
    config = override(preset("dcgan-fashion"), TINY[1::2])

    def fill(tick: dict) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not any((disk / "filled" / "checkpoints").glob("kimg-*")):  # a tick is told before its save has begun
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)
        free = os.statvfs(disk)
        with (disk / "filler").open("ab") as stream:
            stream.write(b"x" * max(0, free.f_bavail * free.f_frsize - 4096))

    with pytest.raises(RunFailed, match=r"no space left.*go on with ganscale launch --resume") as caught:
        launch(override(config, {"train.kimg": 50}), name="filled", runs_dir=disk, workers=workers, on_tick=fill)
    assert caught.value.exit_code == 1
    assert newest(disk / "filled").name.startswith("kimg-")  # what was saved before is whole
    assert not list((disk / "filled" / "checkpoints").glob(".tmp-*"))
