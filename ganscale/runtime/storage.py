"""Object stores (``s3://bucket/prefix``, ``gs://``) by pyarrow: whole objects put, got, listed, deleted; with patience.

What fails now and then is tried again, a bounded number of times, and named in the log. What would fail for ever (no
bucket, no permission) raises at once. An object is whole or absent, but a store knows no directories and no renames.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ganscale.errors import RunFailed, UserError
from ganscale.files import written_aside

log = logging.getLogger(__name__)
Result = TypeVar("Result")

SCHEMES = ("s3", "gs")
TRIES, FIRST_WAIT_S = 6, 0.5  # each wait is twice the one before: 15 s in all, beside what the client itself does
CHUNK_BYTES = 1 << 20
_DENIED = "give this process the right to list, read, write and delete there (for S3: AWS_ACCESS_KEY_ID or a role)"
_FOR_EVER = {  # what stores answer, as pyarrow spells it -> what to do
    "NO_SUCH_BUCKET": "create the bucket, or name another one",
    "INVALID_BUCKET": "name a bucket that can exist",
    "ACCESS_DENIED": _DENIED,
    "INVALID_ACCESS_KEY_ID": _DENIED,
    "SIGNATURE_DOES_NOT_MATCH": _DENIED,
    "UNRECOGNIZED_CLIENT": _DENIED,
    "MISSING_AUTHENTICATION_TOKEN": _DENIED,
    "EXPIRED_TOKEN": "renew the credentials",
    "HTTP status 401": _DENIED,
    "HTTP status 403": _DENIED,
}


class StorageError(UserError):
    """A store that will never do what was asked of it."""


class StorageAway(RunFailed):
    """A store that did not do what was asked of it for now, however often it was tried."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object: its size, and when it was put by the clock of the store, in seconds since 1970."""

    bytes: int
    put_at: float


def is_uri(place: object) -> bool:
    """Whether ``place`` names an object store rather than a path."""
    return isinstance(place, str) and "://" in place


class ObjectStore:
    """The objects below one prefix, to which names are relative. ``uri`` may end in options (``?region=...``)."""

    def __init__(self, uri: str, *, tries: int = TRIES, first_wait_s: float = FIRST_WAIT_S) -> None:
        from pyarrow import ArrowInvalid
        from pyarrow.fs import FileSystem

        self.uri, self._tries, self._first_wait_s = uri, tries, first_wait_s
        scheme = uri.partition("://")[0]
        if scheme not in SCHEMES:
            raise StorageError("storage", f"be a path or begin with {' or '.join(f'{s}://' for s in SCHEMES)}", uri,
                               "copy it there, or mount it as a folder")  # fmt: skip
        try:
            self._fs, self._base = FileSystem.from_uri(uri)
        except (ArrowInvalid, OSError) as error:
            raise StorageError("storage", f"be a {scheme}:// address", uri, _first_line(error)) from None
        self._base = self._base.rstrip("/")

    def check(self) -> float:
        """Write, read and delete an object, and return the store's clock; raises StorageError, where it cannot work."""
        name, content = f".probe-{uuid.uuid4().hex}", uuid.uuid4().bytes
        try:
            self.put(name, content)
            if self.get(name) != content:
                raise StorageError(f"storage {self.uri}", "give back what was put", "something else", "use another one")
            found = self.entry(name)
            self.delete([name])
        except StorageAway as error:
            remedy = "check the address and the network"
            raise StorageError(f"storage {self.uri}", "answer", str(error), remedy) from None
        return found.put_at if found is not None else 0.0

    def put(self, name: str, content: bytes) -> None:
        """Make ``content`` the object ``name``."""

        def put() -> None:
            with self._fs.open_output_stream(self._path(name)) as stream:
                stream.write(content)

        self._patiently(f"write {name}", put)

    def put_file(self, name: str, file: Path) -> None:
        """Make the content of ``file`` the object ``name``; raises FileNotFoundError where the file is gone."""

        def put() -> None:
            with file.open("rb") as source, self._fs.open_output_stream(self._path(name)) as stream:
                shutil.copyfileobj(source, stream, CHUNK_BYTES)

        file.stat()  # the error of a file that is gone must not look like the store's
        self._patiently(f"write {name}", put)

    def get(self, name: str) -> bytes:
        """Return the object ``name``; raises FileNotFoundError where there is none."""
        return self._patiently(f"read {name}", lambda: self._open(name).readall())

    def get_file(self, name: str, file: Path) -> None:
        """Make the object ``name`` the content of ``file``, in one visible step; raises FileNotFoundError."""

        def get() -> None:
            with written_aside(file) as aside, aside.open("wb") as target, self._open(name) as stream:
                shutil.copyfileobj(stream, target, CHUNK_BYTES)

        self._patiently(f"read {name}", get)

    def list(self) -> dict[str, Entry]:
        """Return name -> entry of every object below the prefix."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(self._base, recursive=True, allow_not_found=True)
        found = self._patiently("list", lambda: self._fs.get_file_info(selector))
        start = len(self._base) + 1
        return {info.path[start:]: _entry(info) for info in found if info.is_file}

    def children(self) -> set[str]:
        """Return the first parts of the names below the prefix."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(self._base, recursive=False, allow_not_found=True)
        return {info.base_name for info in self._patiently("list", lambda: self._fs.get_file_info(selector))}

    def entry(self, name: str) -> Entry | None:
        """Return the entry of one object, or None where there is none."""
        info = self._patiently(f"find {name}", lambda: self._fs.get_file_info(self._path(name)))
        return _entry(info) if info.is_file else None

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects, in this order; those that are not there are no error."""
        for name in names:
            try:
                self._patiently(f"delete {name}", lambda name=name: self._fs.delete_file(self._path(name)))
            except FileNotFoundError:
                continue

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"

    def _open(self, name: str) -> Any:
        return self._fs.open_input_stream(self._path(name))

    def _patiently(self, doing: str, action: Callable[[], Result]) -> Result:
        began = time.monotonic()
        for tried in range(1, self._tries + 1):
            try:
                return action()
            except FileNotFoundError:
                raise
            except OSError as error:
                words = _first_line(error)
                for sign, remedy in _FOR_EVER.items():
                    if sign in words:
                        raise StorageError(f"storage {self.uri}", "exist and be ours to use", words, remedy) from None
                if tried == self._tries:
                    waited = time.monotonic() - began
                    raise StorageAway(
                        f"storage {self.uri} did not {doing} in {tried} tries over {waited:.0f} s: {words}"
                    ) from error
                wait_s = self._first_wait_s * 2 ** (tried - 1)
                log.warning("storage %s did not %s: %s; trying again in %.1f s", self.uri, doing, words, wait_s)
                time.sleep(wait_s)
        raise AssertionError("the loop returns or raises")


def child(uri: str, name: str) -> str:
    """Return the address of ``name`` below ``uri``, whose options stay at the end."""
    base, mark, options = uri.partition("?")
    return f"{base.rstrip('/')}/{name}{mark}{options}"


def parent(uri: str) -> str:
    """Return the address one level above ``uri``."""
    base, mark, options = uri.partition("?")
    return f"{base.rstrip('/').rpartition('/')[0]}{mark}{options}"


def last_name(uri: str) -> str:
    """Return the last part of the address, without its options."""
    return uri.partition("?")[0].rstrip("/").rpartition("/")[2]


def _entry(info: Any) -> Entry:
    return Entry(info.size, info.mtime.timestamp() if info.mtime else 0.0)


def _first_line(error: BaseException) -> str:
    words = str(error).strip().splitlines()
    return re.sub(r" ?\(Request ID: [^)]*\)", "", words[0]) if words else type(error).__name__
