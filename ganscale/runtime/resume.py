"""Going on in a run's own directory: from which checkpoint, and which settings may differ."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ganscale.config import RunConfig, flat, from_mapping, matches
from ganscale.errors import CheckpointError, ConfigError, UserError
from ganscale.files import remove_directory
from ganscale.progress import to_images
from ganscale.runtime.storage import is_uri

# what may change without the run becoming another one: how long, how often, where
MAY_CHANGE = (
    "train.kimg",
    "train.tick_kimg",
    "train.cuda_graphs",  # how the same numbers are computed
    "data.path",  # the same images at another place: the trainer compares fingerprints
    "data.download",
    "checkpoint.",
    "sample.",
    "evaluate.",
    "explain.",
    "runtime.",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumption:
    """A run that goes on: from ``checkpoint`` at ``images``; ``page`` is config.json, ``changes`` key -> [old, new]."""

    run_dir: Path
    checkpoint: Path
    images: int
    page: dict[str, Any]
    changes: dict[str, list[Any]]

    def discard_newer(self) -> None:
        """Delete the checkpoints after the chosen one, and their evaluations: the run goes over that ground again."""
        from ganscale.training.checkpoint import names
        from ganscale.training.retention import discard_evaluations

        for path in names(self.run_dir / "checkpoints"):
            if path.name > self.checkpoint.name:
                remove_directory(path)
        discard_evaluations(self.run_dir, self.checkpoint.name)


def read_page(run_dir: Path) -> dict[str, Any]:
    """Return ``config.json`` of a run directory; raises UserError where it is missing or unreadable."""
    path = run_dir / "config.json"
    if not run_dir.is_dir():
        raise UserError("run", "be a run directory", f"{run_dir}, which does not exist", "look into runs/")
    try:
        page = json.loads(path.read_text())
        page["config"], page["created"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            "run", "be a run directory with a readable config.json", str(run_dir), "look into runs/"
        ) from None
    return page


def config_to_resume(place: str | Path) -> RunConfig:
    """Return the config of the run whose directory, or one of whose checkpoints, is ``place``; raises UserError.

    ``place`` may be an address in an object store.
    """
    if is_uri(place):
        from ganscale.runtime.remote import read_remote_page, split_address

        return from_mapping(read_remote_page(split_address(str(place))[0])["config"])
    return from_mapping(read_page(_split(place)[0])["config"])


def _split(place: str | Path) -> tuple[Path, Path | None]:
    """Return the run directory, and the checkpoint where ``place`` is one."""
    place = Path(place).absolute()
    return (place.parent.parent, place) if place.parent.name == "checkpoints" else (place, None)


def prepare_resume(place: str | Path, config: RunConfig, also: Collection[str] = ()) -> Resumption:
    """Choose where to go on with ``config``; ``place`` is a run directory or one of its checkpoints. Changes nothing.

    ``also`` names keys that may change besides the usual ones.

    Raises CheckpointError that names the damaged file and offers the checkpoint before it, ConfigError for a setting
    that must not change or a length that is already reached.
    """
    from ganscale.training import checkpoint as checkpoints

    run_dir, chosen = _split(place)
    page = read_page(run_dir)
    if chosen is not None and not chosen.is_dir():
        raise CheckpointError(
            "checkpoint", "be a directory", f"{chosen}, which does not exist", f"use --resume {run_dir}"
        )
    checkpoint = chosen or checkpoints.newest(run_dir)
    images = checkpoints.verify(checkpoint)["images"]
    changes = compare_settings(from_mapping(page["config"]), config, also)
    if images >= to_images(config.train.kimg):
        remedy = f"ask for more than {images / 1000:g} in all, as with --kimg {2 * images / 1000:g}"
        raise ConfigError("train.kimg", f"exceed the {images / 1000:g} kimg already trained", config.train.kimg, remedy)
    return Resumption(run_dir=run_dir, checkpoint=checkpoint, images=images, page=page, changes=changes)


def compare_settings(old: RunConfig, new: RunConfig, also: Collection[str] = ()) -> dict[str, list[Any]]:
    """Return key -> [old, new] of what differs; raises ConfigError naming a key that must stay, unless in ``also``."""
    before, after = flat(old), flat(new)
    changes = {key: [before[key], after[key]] for key in before if before[key] != after[key]}
    for key, (was, now) in changes.items():
        if not matches(key, (*MAY_CHANGE, *also)):
            raise ConfigError(key, f"stay {was} when a run is resumed", now, "leave it out, or start a new run")
    return changes
