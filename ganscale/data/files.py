"""Images from a folder or zip: split, read, refilled where a file breaks later; and the quarantine list on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ganscale.config import DataConfig
from ganscale.data.convert import BadImage, conversion_of
from ganscale.data.dataset import Dataset, Kind, Split, fingerprint, stratified_split
from ganscale.data.inspection import DECODE_THREADS, GoodFile, Inspection, inspect
from ganscale.data.keyed import keyed_index
from ganscale.errors import DataError, RunFailed
from ganscale.files import replace_text

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


class FileImages(Dataset):
    """One split of the usable images of a folder or zip.

    Decoded images come from memory where all of them fit (``inspection.CACHE_BYTES``), from the files otherwise. A file
    that is broken or changed when it is read again joins ``quarantine``, and a sample drawn by (seed, index) takes its
    place, the same for every reader.
    """

    kind: Kind = "image"

    def __init__(self, inspection: Inspection, split: Split, *, seed: int) -> None:
        super().__init__()
        labels = np.array([file.label for file in inspection.good], dtype=np.int64)
        train, held_out = stratified_split(labels, seed, groups=inspection.content_groups())
        chosen = train if split == "train" else held_out
        if not len(chosen):
            got = f"{len(labels)} in {inspection.source.location}"
            raise DataError(
                "data.path", "hold at least 10 different images so that a tenth can be held out", got, "add some"
            )
        self.name, self.split = inspection.source.location.resolve().name, split
        self.class_names, self.labels = inspection.class_names, labels[chosen]
        self.shape, self.num_files = inspection.conversion.shape, inspection.num_files
        self.policy = f"{inspection.conversion.policy}; a tenth held out, stratified, seed {seed}"
        self.quarantine = list(inspection.quarantine)
        self.allowed_bad = inspection.allowed_bad
        content = {file.entry.path: f"{file.entry.size}:{file.sha256}" for file in inspection.good}
        # The name is left out: a folder and its zip, or a moved folder, are the same data.
        self.fingerprint = fingerprint("files", split, content, self.policy)
        self._files: list[GoodFile] = [inspection.good[index] for index in chosen]
        self._inspection, self._seed = inspection, seed
        self._broken: set[int] = set()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(DECODE_THREADS, "ganscale-decode")

    def read(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return uint8 ``[n, C, H, W]`` and int64 ``[n]``; see ``Dataset.read``.

        Raises ``RunFailed`` once more files have broken than ``data.max_bad_fraction`` allows.
        """
        import torch

        if self._inspection.pixels is not None:
            places = np.array([self._files[index].place for index in indices], dtype=np.int64)
            return torch.from_numpy(self._inspection.pixels[places]), torch.from_numpy(self.labels[indices])
        read = list(self._pool.map(self._read_one, map(int, indices)))
        used = np.array([index for index, _ in read], dtype=np.int64)
        return torch.from_numpy(np.stack([pixels for _, pixels in read])), torch.from_numpy(self.labels[used])

    def _read_one(self, wanted: int) -> tuple[int, np.ndarray]:
        index, attempt = wanted, 0
        while True:
            if index not in self._broken:
                try:
                    return index, self._decode(self._files[index])
                except BadImage as error:
                    self._set_aside(index, str(error))
            attempt += 1
            index = keyed_index(len(self), self._seed, wanted, attempt, purpose="refill")

    def _decode(self, file: GoodFile) -> np.ndarray:
        content = self._inspection.source.read(file.entry)
        pixels, _ = self._inspection.conversion.decode(content)
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise BadImage("changed since it was first read")
        return pixels

    def _set_aside(self, index: int, reason: str) -> None:
        path = self._files[index].entry.path
        with self._lock:
            if index not in self._broken:
                self._broken.add(index)
                self.quarantine.append({"path": path, "reason": reason})
                log.warning("%s set aside while training: %s", path, reason)
            bad = len(self.quarantine)
        if bad > self.allowed_bad or len(self._broken) == len(self):
            raise RunFailed(
                f"{bad} files of {self._inspection.source.location} are unusable, {self.allowed_bad} are allowed "
                f"(data.max_bad_fraction); the last: {path} ({reason}); repair them and go on with --resume"
            )


def open_files(location: Path, config: DataConfig, *, split: Split) -> FileImages:
    """Open one split of a folder or zip; raises ``DataError`` where it is missing, empty, or too broken to train on."""
    found = inspect(location, conversion_of(config), max_bad_fraction=config.max_bad_fraction)
    problem = found.problem()
    if problem:
        raise problem
    dataset = FileImages(found, split, seed=config.seed)
    log.info("%s: %s", location, dataset.policy)
    for line in found.notes():
        log.warning("%s: %s", location, line)
    return dataset


def write_quarantine(run_dir: str | Path, dataset: Dataset) -> Path:
    """Write ``run_dir/quarantine.json``: the data set, its number of files, ``{"path", "reason"}`` of each set aside.

    The list is written for every data set, empty or not, so that its absence never means "none". Returns the path.
    """
    path = Path(run_dir) / "quarantine.json"
    page = {
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "files": dataset.num_files,
        "quarantined": list(dataset.quarantine),
    }
    replace_text(path, json.dumps(page, indent=2) + "\n")
    return path
