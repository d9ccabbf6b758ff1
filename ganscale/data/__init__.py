"""Real images in: sources, their hygiene, and sharded, resumable batches.

``open_dataset(config.data)`` gives indexed uint8 samples, ``ShardedBatches`` endless float batches of them, ``scan``
the table for ``--dry-run``. ``DATASETS`` holds the data sets that have a name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

from ganscale.config import DataConfig
from ganscale.data.batches import Batch, EpochOrder, ShardedBatches
from ganscale.data.dataset import Dataset, Split
from ganscale.data.files import open_files, write_quarantine
from ganscale.data.gaussians import GaussianPoints, open_gaussians_8, open_gaussians_25
from ganscale.data.known_idx import is_idx_folder, open_fashion, open_idx_folder, open_mnist, open_sample
from ganscale.data.pixels import image_grid, save_png, scatter_image, to_float, to_uint8
from ganscale.data.run_samples import SAMPLES_OF_A_RUN, RunSamples, open_run_samples, write_run_samples
from ganscale.data.scan import ScanReport, report_files, report_memory
from ganscale.data.shapes import Shapes, open_shapes
from ganscale.errors import DataError, unknown

__all__ = [
    "DATASETS",
    "SAMPLES_OF_A_RUN",
    "Batch",
    "Dataset",
    "EpochOrder",
    "GaussianPoints",
    "RunSamples",
    "ScanReport",
    "Shapes",
    "ShardedBatches",
    "image_grid",
    "open_dataset",
    "open_run_samples",
    "save_png",
    "scan",
    "scatter_image",
    "to_float",
    "to_uint8",
    "write_quarantine",
    "write_run_samples",
]

DATASETS: MappingProxyType[str, Callable[..., Dataset]] = MappingProxyType(
    {
        "fashion-mnist-10k": open_sample,
        "fashion-mnist": open_fashion,
        "mnist": open_mnist,
        "gaussians-25": open_gaussians_25,
        "gaussians-8": open_gaussians_8,
        "shapes": open_shapes,
    }
)


def open_dataset(config: DataConfig, *, split: Split = "train") -> Dataset:
    """Open one split of the data that ``config.path`` names: a name of ``DATASETS``, else a folder or a zip.

    A folder with a data set's name is reached as ``./NAME``. A folder of idx files is read as such. Raises
    ``DataError`` where there is no such name or path, and where the data is missing, empty, or too broken to train on.
    """
    if config.path in DATASETS:
        return DATASETS[config.path](config, split=split)
    if config.path.startswith(SAMPLES_OF_A_RUN):
        return open_run_samples(config, split=split)
    location = _location(config.path)
    if location.is_dir() and is_idx_folder(location):
        return open_idx_folder(location, config, split=split)
    return open_files(location, config, split=split)


def scan(config: DataConfig) -> ScanReport:
    """Look at everything that ``config.path`` names and report it, without training.

    Too many unusable files are reported (``ScanReport.problem``; ``check()`` raises it); a source that is missing or
    has no files raises ``DataError`` at once.
    """
    named = config.path in DATASETS or config.path.startswith(SAMPLES_OF_A_RUN)
    location = Path() if named else _location(config.path)
    if named or (location.is_dir() and is_idx_folder(location)):
        return report_memory(open_dataset(config, split="train"), open_dataset(config, split="held-out"))
    return report_files(location, config)


def _location(path: str) -> Path:
    location = Path(path).expanduser()
    if not path or (not location.exists() and os.sep not in path and "." not in path):
        raise unknown("data set", path or "an empty one", DATASETS, error=DataError)
    return location
