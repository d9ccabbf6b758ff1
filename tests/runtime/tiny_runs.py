"""The smallest run that is still one: 512 images of a width-8 DCGAN, checkpoints on the way."""

from __future__ import annotations

import os
from pathlib import Path

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


def descendants(pid: int) -> set[int]:
    """Return the pids of all living descendants of ``pid`` (Linux)."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # ended meanwhile
            continue
    found: set[int] = set()
    grown = {pid}
    while grown:
        grown = {child for child, parent in parents.items() if parent in grown} - found
        found |= grown
    return found - {os.getpid()}
