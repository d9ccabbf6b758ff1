"""Look at every file of a source once, decode it whole, and say which can be used and which are set aside.

The rule for how many may be bad is ``allowed_bad``: up to ``data.max_bad_fraction`` of all files, but always one, so
that a single broken file stops no small folder; a fraction of 0 means none at all.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np

from ganscale.data.convert import ENLARGED, EXTREME_ASPECT, BadImage, Conversion, ImageFacts
from ganscale.data.sources import Entry, Source, open_source
from ganscale.errors import DataError

DECODE_THREADS = 2
CACHE_BYTES = 512 * 2**20  # decoded images are kept in memory where all files fit into this


@dataclass(frozen=True, kw_only=True, slots=True)
class GoodFile:
    """A usable file: its entry, the SHA-256 of its bytes, what it was like, its place among all files, its class."""

    entry: Entry
    sha256: str
    facts: ImageFacts
    place: int
    label: int


class Inspection:
    """What looking at a source gave: ``good`` files, ``quarantine``, ``class_names``, and the pixels where they fit.

    ``pixels`` is uint8 ``[num_files, C, H, W]`` or None; a good file's row is its ``place``.
    """

    def __init__(self, source: Source, conversion: Conversion, *, max_bad_fraction: float) -> None:
        self.source, self.conversion = source, conversion
        self.num_files = len(source.entries)
        self.allowed_bad = allowed_bad(self.num_files, max_bad_fraction)
        self.max_bad_fraction = max_bad_fraction
        channels, height, width = conversion.shape
        fits = self.num_files * channels * height * width <= CACHE_BYTES
        self.pixels = np.empty((self.num_files, channels, height, width), dtype=np.uint8) if fits else None
        seen = self._look_at_all()
        self.quarantine = [
            {"path": entry.path, "reason": found}
            for entry, found in zip(source.entries, seen, strict=True)
            if isinstance(found, str)
        ]
        usable = [entry for entry, found in zip(source.entries, seen, strict=True) if not isinstance(found, str)]
        self.class_names, classes = _classes(usable)
        self.good: list[GoodFile] = []
        for place, (entry, found) in enumerate(zip(source.entries, seen, strict=True)):
            if not isinstance(found, str):
                sha256, facts = found
                label = classes[len(self.good)]
                self.good.append(GoodFile(entry=entry, sha256=sha256, facts=facts, place=place, label=label))

    def _look_at_all(self) -> list[str | tuple[str, ImageFacts]]:
        with warnings.catch_warnings(), ThreadPoolExecutor(DECODE_THREADS, "ganscale-scan") as pool:
            # Pillow warns about files that are judged here anyway (odd palettes, EXIF, size).
            warnings.simplefilter("ignore")
            return list(pool.map(self._look_at, range(self.num_files)))

    def _look_at(self, place: int) -> str | tuple[str, ImageFacts]:
        try:
            content = self.source.read(self.source.entries[place])
            pixels, facts = self.conversion.decode(content)
        except BadImage as error:
            return str(error)
        if self.pixels is not None:
            self.pixels[place] = pixels
        return hashlib.sha256(content).hexdigest(), facts

    def problem(self) -> DataError | None:
        """The error that stops a run before it trains, or None: nothing usable, or too many unusable files."""
        where = self.source.location
        if not self.good:
            got = f"{self.num_files} unusable in {where}: {list_some(self.quarantine)}"
            return DataError("data.path", "hold at least one usable image", got, "check the files, or the path")
        if len(self.quarantine) > self.allowed_bad:
            rule = (
                f"hold at most {self.allowed_bad} unusable of {self.num_files} files "
                f"(data.max_bad_fraction={self.max_bad_fraction:g})"
            )
            got = f"{len(self.quarantine)} in {where}: {list_some(self.quarantine)}"
            needed = len(self.quarantine) / self.num_files
            remedy = f"repair or remove them, or accept them with --set data.max_bad_fraction={needed + 0.0005:.3f}"
            return DataError("data.path", rule, got, remedy)
        return None

    def notes(self) -> list[str]:
        """One line for each thing that the user should know and that stops nothing."""
        lines = []
        if self.quarantine:
            lines.append(f"{len(self.quarantine)} of {self.num_files} files set aside: {list_some(self.quarantine)}")
        enlarged, extreme = self.enlarged(), self.extreme()
        if enlarged or extreme:
            lines.append(
                f"of {len(self.good)} images {enlarged} are enlarged more than {ENLARGED:g} times and {extreme} "
                f"have an aspect beyond {EXTREME_ASPECT:g}:1; they are used by the same rule as the others"
            )
        return lines

    def enlarged(self) -> int:
        """How many images are enlarged more than four times on an axis."""
        sizes = (file.facts for file in self.good)
        return sum(self.conversion.scale(height=size.height, width=size.width) > ENLARGED for size in sizes)

    def extreme(self) -> int:
        """How many images are more than eight times longer on one side than on the other."""
        sides = ((file.facts.width, file.facts.height) for file in self.good)
        return sum(max(side) > EXTREME_ASPECT * min(side) for side in sides)

    def content_groups(self) -> np.ndarray:
        """Return int64 [good]: files with the same bytes share a number."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(file.sha256, len(numbers)) for file in self.good], dtype=np.int64)


_alive: WeakValueDictionary[tuple, Inspection] = WeakValueDictionary()


def inspect(location: Path, conversion: Conversion, *, max_bad_fraction: float) -> Inspection:
    """Look at a folder or zip; shared with a data set that is still open on the same unchanged files.

    Raises ``DataError`` where it is missing, neither folder nor zip, or without files.
    """
    source = open_source(location)
    key = (str(location.resolve()), conversion, max_bad_fraction, tuple(source.entries))
    found = _alive.get(key)
    if found is None:
        found = Inspection(source, conversion, max_bad_fraction=max_bad_fraction)
        _alive[key] = found
    return found


def allowed_bad(num_files: int, max_bad_fraction: float) -> int:
    """How many of ``num_files`` may be unusable: the fraction, rounded down, but at least one; none where it is 0."""
    return max(1, int(num_files * max_bad_fraction)) if max_bad_fraction > 0 else 0


def list_some(quarantine: Sequence[dict[str, str]], limit: int = 5) -> str:
    """Return up to ``limit`` paths with reasons on one line, and how many more there are."""
    some = ", ".join(f"{bad['path']} ({bad['reason']})" for bad in quarantine[:limit])
    more = len(quarantine) - limit
    return f"{some} and {more} more" if more > 0 else some


def _classes(usable: Sequence[Entry]) -> tuple[tuple[str, ...], list[int]]:
    """Class names and each file's label: the first folder below the one that all usable files share; -1 without one."""
    below = [entry.folders for entry in usable]
    while below and below[0] and all(folders[:1] == below[0][:1] for folders in below):
        below = [folders[1:] for folders in below]
    names = tuple(sorted({folders[0] for folders in below if folders}))
    number = {name: index for index, name in enumerate(names)}
    return names, [number[folders[0]] if folders else -1 for folders in below]
