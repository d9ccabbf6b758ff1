"""The smallest run that is still one: 512 images of a width-8 DCGAN, checkpoints on the way."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from ganscale.config import RunConfig, override
from ganscale.presets import preset

SETTINGS = {
    "train.kimg": 0.512,
    "train.batch": 32,
    "train.tick_kimg": 0.128,
    "model.width": 8,
    "model.latent": 8,
    "checkpoint.every_kimg": 0.256,
    "sample.every_kimg": 0.256,
    "sample.num": 4,
}


def tiny_config(**changes: object) -> RunConfig:
    """Return the tiny config; ``changes`` are dotted keys with ``__`` for the dot."""
    return override(preset("dcgan-fashion"), SETTINGS | {key.replace("__", "."): v for key, v in changes.items()})


def write_pictures(folder, number):
    """Write gray pictures of two classes: bars that lie, bars that stand."""
    rng = np.random.default_rng(0)
    for index in range(number):
        pixels = rng.integers(0, 90, (16, 16), dtype=np.uint8)
        at = int(rng.integers(2, 12))
        pixels[at : at + 3] += 150
        path = folder / ("lying" if index % 2 else "standing") / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels if index % 2 else pixels.T.copy()).save(path)


def descendants(pid: int) -> set[int]:
    """Return the pids of all living descendants of ``pid`` (Linux)."""
    parents = {int(process.name): _parent(int(process.name)) for process in Path("/proc").glob("[0-9]*")}
    found: set[int] = set()
    grown = {pid}
    while grown:
        grown = {child for child, parent in parents.items() if parent in grown} - found
        found |= grown
    return found - {os.getpid()}


def is_alive(pid: int) -> bool:
    """Whether ``pid`` runs; one that has ended and only waits for init to collect its exit code does not."""
    return _parent(pid) is not None


def _parent(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # ended meanwhile
        return None
    return None if fields[0] in "ZX" else int(fields[1])
