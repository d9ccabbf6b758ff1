"""The table that ``--dry-run`` shows: what a data source holds and what would be done with it. Trains nothing."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ganscale.config import DataConfig
from ganscale.data.convert import EXTREME_ASPECT, conversion_of
from ganscale.data.dataset import ArrayImages, Dataset, stratified_split
from ganscale.data.inspection import Inspection, inspect
from ganscale.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanReport:
    """Counts of a data source.

    ``files`` all files (0 for generated data), ``usable`` samples, of which ``train`` and ``held_out``; ``classes`` and
    ``modes`` map a name to its count; ``sizes`` are the commonest ``WIDTHxHEIGHT`` with counts, ``smallest`` and
    ``largest`` by area; ``rotated``, ``animated``, ``enlarged`` (more than 4 times), ``extreme`` (aspect beyond 8 to 1)
    and ``duplicates`` (exact copies of an earlier sample) count usable samples; ``quarantine`` lists
    ``{"path", "reason"}``; ``notes`` are lines for the user; ``error`` is what would stop the run before training.
    """

    source: str
    kind: str
    shape: tuple[int, int, int]
    policy: str
    files: int
    usable: int
    train: int
    held_out: int
    classes: dict[str, int]
    modes: dict[str, int]
    sizes: dict[str, int]
    smallest: str
    largest: str
    rotated: int
    animated: int
    enlarged: int
    extreme: int
    duplicates: int
    allowed_bad: int
    quarantine: list[dict[str, str]]
    notes: list[str]
    error: DataError | None = None

    @property
    def problem(self) -> str:
        """What would stop the run before training, or an empty string."""
        return str(self.error) if self.error else ""

    def check(self) -> None:
        """Raise the ``DataError`` that a launch would stop with, if there is one."""
        if self.error:
            raise self.error

    def to_dict(self) -> dict[str, object]:
        """Return plain data for ``--json``."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "error"}
        return {**fields, "shape": list(self.shape), "problem": self.problem}

    def table(self) -> list[tuple[str, str]]:
        """Return (name, value) rows in reading order, without rows that say nothing."""
        rows = [
            ("data", self.source),
            (
                "files",
                f"{self.files}, {self.usable} usable, {len(self.quarantine)} set aside ({self.allowed_bad} allowed)",
            )
            if self.files
            else ("points" if self.kind == "points" else "images", f"{self.usable}, generated"),
            ("split", f"{self.train} to train on, {self.held_out} held out"),
            ("classes", f"{len(self.classes)}: {_counts(self.classes)}" if self.classes else "none"),
            ("modes", _counts(self.modes)),
            ("sizes", f"{_counts(self.sizes)}; from {self.smallest} to {self.largest}" if self.sizes else ""),
            ("exact duplicates", str(self.duplicates or "")),
            ("EXIF-rotated", str(self.rotated or "")),
            ("animated", f"{self.animated}, first frame used" if self.animated else ""),
            ("enlarged > 4x", str(self.enlarged or "")),
            (f"aspect > {EXTREME_ASPECT:g}:1", str(self.extreme or "")),
            ("becomes", self.policy),
            *(("set aside", f"{bad['path']}: {bad['reason']}") for bad in self.quarantine[:20]),
            ("set aside", f"and {len(self.quarantine) - 20} more" if len(self.quarantine) > 20 else ""),
            ("would stop", self.problem),
        ]
        return [(name, value) for name, value in rows if value]


def report_files(location: Path, config: DataConfig) -> ScanReport:
    """Scan a folder or zip; raises ``DataError`` where it is missing, neither, or without files."""
    found = inspect(location, conversion_of(config), max_bad_fraction=config.max_bad_fraction)
    facts = [file.facts for file in found.good]
    sizes = Counter(f"{fact.width}x{fact.height}" for fact in facts)
    by_area = sorted(facts, key=lambda fact: (fact.width * fact.height, fact.width))
    groups = found.content_groups()
    train, held_out = _split_sizes(found, config.seed)
    named = Counter(found.class_names[file.label] for file in found.good if file.label >= 0)
    unlabelled = sum(file.label < 0 for file in found.good)
    return ScanReport(
        source=str(location),
        kind="image",
        shape=found.conversion.shape,
        policy=found.conversion.policy,
        files=found.num_files,
        usable=len(found.good),
        train=train,
        held_out=held_out,
        classes=dict(sorted(named.items())) | ({"(none)": unlabelled} if named and unlabelled else {}),
        modes=dict(Counter(fact.mode for fact in facts).most_common()),
        sizes=dict(sizes.most_common(5)),
        smallest=f"{by_area[0].width}x{by_area[0].height}" if facts else "",
        largest=f"{by_area[-1].width}x{by_area[-1].height}" if facts else "",
        rotated=sum(fact.rotated for fact in facts),
        animated=sum(fact.frames > 1 for fact in facts),
        enlarged=found.enlarged(),
        extreme=found.extreme(),
        duplicates=len(groups) - len(np.unique(groups)),
        allowed_bad=found.allowed_bad,
        quarantine=found.quarantine,
        notes=found.notes(),
        error=found.problem(),
    )


def report_memory(train: Dataset, held_out: Dataset) -> ScanReport:
    """Scan a built-in data set, given both of its splits."""
    labels = np.concatenate([train.labels, held_out.labels])
    images = isinstance(train, ArrayImages) and isinstance(held_out, ArrayImages)
    size = train.source_size if images else ""
    enlarged = len(labels) if images and train.enlarged else 0
    return ScanReport(
        source=train.name,
        kind=train.kind,
        shape=train.shape,
        policy=train.policy,
        files=len(labels) if images else 0,
        usable=len(labels),
        train=len(train),
        held_out=len(held_out),
        classes={name: int((labels == index).sum()) for index, name in enumerate(train.class_names)},
        modes={"L": len(labels)} if images else {},
        sizes={size: len(labels)} if images else {},
        smallest=size,
        largest=size,
        rotated=0,
        animated=0,
        enlarged=enlarged,
        extreme=0,
        duplicates=_copies([train, held_out]) if images else 0,
        allowed_bad=0,
        quarantine=[],
        notes=[],
    )


def _split_sizes(found: Inspection, seed: int) -> tuple[int, int]:
    if not found.good:
        return 0, 0
    labels = np.array([file.label for file in found.good], dtype=np.int64)
    train, held_out = stratified_split(labels, seed, groups=found.content_groups())
    return len(train), len(held_out)


def _copies(datasets: list[ArrayImages]) -> int:
    distinct = {image.tobytes() for dataset in datasets for image in dataset.images_NHW}
    return sum(len(dataset) for dataset in datasets) - len(distinct)


def _counts(counts: dict[str, int]) -> str:
    some = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:12])
    return f"{some}, ..." if len(counts) > 12 else some
