"""Checkpoints: safetensors and a JSON manifest, written aside, hashed, renamed. No pickle anywhere.

A directory ``checkpoints/kimg-000064`` exists only whole: parts and manifest are written and synced under a temporary
name, then renamed once. The manifest holds the size and SHA-256 of every part, and reading verifies both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ganscale.errors import CheckpointError
from ganscale.files import full_disk, is_full_disk, new_directory, remove_directory, sha256_of
from ganscale.progress import checkpoint_name

SCHEMA = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One verified checkpoint: ``parts`` maps a part's name to its named CPU tensors."""

    path: Path
    images: int
    meta: dict[str, Any]
    parts: dict[str, dict[str, Tensor]]


def commit(root: Path, images: int, parts: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> Path:
    """Write a checkpoint below ``root`` in one visible step and return its path.

    ``parts`` holds CPU tensors, each with storage of its own. A checkpoint of the same name is replaced. Where the disk
    is full it raises RunFailed and leaves nothing half-written.
    """
    target = root / checkpoint_name(images)
    try:
        with new_directory(target) as aside:
            for part, tensors in parts.items():
                save_file(dict(tensors), aside / f"{part}.safetensors")
            files = {file.name: _describe(file) for file in sorted(aside.iterdir())}
            manifest = {"schema": SCHEMA, "images": images, **meta, "files": files}
            (aside / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    except Exception as error:
        if not is_full_disk(error):
            raise
        way_on = f"earlier checkpoints are whole; free some and go on with ganscale launch --resume {root.parent}"
        raise full_disk(root, f"checkpoint {target.name} was not written; {way_on}") from error
    return target


def names(root: Path) -> list[Path]:
    """Return the checkpoints below ``root``, oldest first, without reading them."""
    return sorted(path for path in root.glob("kimg-*") if path.is_dir()) if root.is_dir() else []


def verify(path: Path) -> dict[str, Any]:
    """Return the manifest of ``path`` after checking every file's size and hash; CheckpointError names a bad file."""
    remedy = _offer_previous(path)
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files, schema = manifest["files"], manifest["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(str(path / MANIFEST), "be a readable manifest", type(error).__name__, remedy) from None
    if schema != SCHEMA:
        raise CheckpointError(str(path / MANIFEST), f"have schema {SCHEMA}", schema, "use the ganscale that wrote it")
    for name, expected in files.items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != expected["bytes"]:
            raise CheckpointError(str(file), f"have {expected['bytes']} bytes", size, remedy)
        if sha256_of(file) != expected["sha256"]:
            raise CheckpointError(str(file), "match the SHA-256 in its manifest", "other content", remedy)
    return manifest


def load(path: Path) -> Checkpoint:
    """Verify and read one checkpoint; raises CheckpointError naming the bad file and offering the one before."""
    manifest = verify(path)
    parts = {Path(name).stem: load_file(path / name) for name in manifest["files"]}
    meta = {key: value for key, value in manifest.items() if key not in ("schema", "files", "images")}
    return Checkpoint(path=path, images=manifest["images"], meta=meta, parts=parts)


def newest(run_dir: Path) -> Path:
    """Return the newest checkpoint of a run, verified; raises CheckpointError where there is none or it is damaged."""
    found = names(run_dir / "checkpoints")
    if not found:
        raise CheckpointError(str(run_dir), "hold a checkpoint", "none", "let it train at least checkpoint.every_kimg")
    try:
        verify(found[-1])
    except CheckpointError:
        if found[-1].exists():
            raise
        return newest(run_dir)  # the run trains, and has deleted it in favour of a newer one
    return found[-1]


def newest_good(run_dir: Path) -> tuple[Path | None, list[CheckpointError]]:
    """Return the newest checkpoint that verifies and the errors of the newer ones: for automatic recovery."""
    refused: list[CheckpointError] = []
    for path in reversed(names(run_dir / "checkpoints")):
        try:
            verify(path)
        except CheckpointError as error:
            refused.append(error)
        else:
            return path, refused
    return None, refused


def prune(root: Path, keep: int, *, spare: Collection[str] = ()) -> None:
    """Delete all but the newest ``keep`` checkpoints and those whose names are in ``spare``."""
    for path in names(root)[:-keep]:
        if path.name not in spare:
            remove_directory(path)


def set_newer_aside(root: Path, images: int) -> None:
    """Rename the checkpoints after ``images`` to ``aside-kimg-...``, which counts as none.

    A run goes on before them where they could not be read. By their names they would be the newest ones, and each that
    is saved now be pruned as an old one. Perhaps it was the disk that was away, so they are not deleted.
    """
    for path in names(root):
        if path.name > checkpoint_name(images):
            target = root / f"aside-{path.name}"
            remove_directory(target)
            path.rename(target)


def digest(parts: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Return a short hash of all weights, to compare ranks and runs."""
    found = hashlib.sha256()
    for net in ("generator", "critic", "ema"):
        for name, value in sorted(parts[net].items()):
            found.update(name.encode())
            found.update(value.contiguous().view(-1).view(torch.uint8).numpy() if value.numel() else b"")
    return found.hexdigest()[:16]


def _offer_previous(path: Path) -> str:
    earlier = [other for other in names(path.parent) if other.name < path.name]
    if earlier:
        return f"the one before is there: ganscale launch --resume {earlier[-1]} goes on from it"
    return "there is no earlier one; start the run again under another name"


def _describe(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
