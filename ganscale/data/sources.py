"""A folder or a zip as the same thing: a sorted list of files, each of which can be read whole.

Nothing is unpacked and nothing is followed out of the zip. Order is by name, so that an index means the same file on
every machine.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ganscale.data.convert import MAX_FILE_BYTES, BadImage
from ganscale.errors import DataError

log = logging.getLogger(__name__)

_IGNORED = {"__MACOSX", "Thumbs.db", "desktop.ini"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A file of a source: ``path`` relative to its root with forward slashes, ``size`` in bytes.

    ``stamp`` is its modification time or checksum, by which a change is noticed without reading; ``problem`` says why
    it cannot even be read, or is empty.
    """

    path: str
    size: int
    stamp: int = 0
    problem: str = ""

    @property
    def folders(self) -> tuple[str, ...]:
        """The names of the folders it lies in, outermost first."""
        return PurePosixPath(self.path).parts[:-1]


class Source(ABC):
    """Files that may be images. ``location`` is what the user gave."""

    def __init__(self, location: Path) -> None:
        self.location = location
        self.entries: list[Entry] = []

    @abstractmethod
    def read(self, entry: Entry) -> bytes:
        """Return a file's bytes; raises ``BadImage`` where they cannot be had. Safe to call from several threads."""


class FolderSource(Source):
    """The regular files below a folder; links are followed, a folder met twice is entered once."""

    def __init__(self, location: Path) -> None:
        super().__init__(location)
        self._real: dict[str, str] = {}
        entered = {os.path.realpath(location)}

        def note_unlistable(error: OSError) -> None:
            self._add(error.filename, 0, f"folder cannot be listed: {error.strerror}")

        for folder, folders, files in os.walk(location, followlinks=True, onerror=note_unlistable):
            inside = [name for name in sorted(folders) if not _is_ignored(name)]
            folders.clear()  # os.walk enters what is put back
            for name in inside:
                real = os.path.realpath(os.path.join(folder, name))
                if real not in entered:
                    entered.add(real)
                    folders.append(name)
            for name in files:
                if not _is_ignored(name):
                    self._add_file(os.path.join(folder, name))
        self.entries.sort(key=lambda entry: entry.path)

    def _add_file(self, path: str) -> None:
        try:
            status = os.stat(path)
        except OSError as error:
            return self._add(path, 0, f"cannot be read: {error.strerror}")
        # A pipe or device would block or never end, so only regular files are ever opened.
        problem = "not a regular file" if not stat.S_ISREG(status.st_mode) else _size_problem(status.st_size)
        return self._add(path, status.st_size, problem, stamp=status.st_mtime_ns)

    def _add(self, path: str, size: int, problem: str, *, stamp: int = 0) -> None:
        name = _printable(Path(os.path.relpath(path, self.location)).as_posix())
        self._real[name] = path
        self.entries.append(Entry(path=name, size=size, stamp=stamp, problem=problem))

    def read(self, entry: Entry) -> bytes:
        """See ``Source.read``."""
        if entry.problem:
            raise BadImage(entry.problem)
        try:
            with open(self._real[entry.path], "rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror}") from error
        return _bounded(content)


class ZipSource(Source):
    """The members of a zip archive, read in place. Raises ``DataError`` for names that leave the archive."""

    def __init__(self, location: Path) -> None:
        super().__init__(location)
        self._lock = threading.Lock()
        try:
            self._archive = zipfile.ZipFile(location)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(
                "data.path", "be a folder or a readable zip", f"{location} ({error})", "make the zip again"
            ) from error
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in self._archive.infolist():
            _refuse_escape(location, member.filename)
            if member.is_dir() or any(_is_ignored(part) for part in PurePosixPath(member.filename).parts):
                continue
            self._members[_printable(PurePosixPath(member.filename).as_posix())] = member  # the last of a name counts
        for name, member in sorted(self._members.items()):
            problem = "encrypted in the zip" if member.flag_bits & 1 else _size_problem(member.file_size)
            self.entries.append(Entry(path=name, size=member.file_size, stamp=member.CRC, problem=problem))

    def read(self, entry: Entry) -> bytes:
        """See ``Source.read``."""
        if entry.problem:
            raise BadImage(entry.problem)
        try:
            with self._lock, self._archive.open(self._members[entry.path]) as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            # RuntimeError also covers compression methods that zipfile does not know (its subclass says so).
            raise BadImage(f"damaged in the zip: {type(error).__name__}") from error
        return _bounded(content)


def open_source(location: Path) -> Source:
    """Return the source at ``location``; raises ``DataError`` where it is missing, neither folder nor zip, or empty."""
    if location.is_dir():
        source: Source = FolderSource(location)
    elif location.is_file() and zipfile.is_zipfile(location):
        source = ZipSource(location)
    elif location.exists():
        raise DataError(
            "data.path", "be a folder of images or a whole zip", f"the file {location}", "put the images in a folder"
        )
    else:
        raise DataError("data.path", "be an existing folder or zip", str(location), "check the path given to --data")
    if not source.entries:
        raise DataError("data.path", "hold image files", f"{location} without any", "check the path given to --data")
    return source


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name in _IGNORED


def _printable(name: str) -> str:
    """Escape line breaks, control characters and bytes that are no text: a name must fit into one line of a message."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in name)


def _size_problem(size: int) -> str:
    return f"{size} bytes is more than the bound of {MAX_FILE_BYTES}" if size > MAX_FILE_BYTES else ""


def _bounded(content: bytes) -> bytes:
    if len(content) > MAX_FILE_BYTES:
        raise BadImage(f"more than the bound of {MAX_FILE_BYTES} bytes")
    return content


def _refuse_escape(location: Path, name: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or ":" in parts[0]:
        raise DataError(
            "data.path",
            "be a zip whose names stay inside it",
            f"{_printable(name)!r} in {location}",
            "make the zip again",
        )
