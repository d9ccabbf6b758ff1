"""The official download of a published idx set: asked for by ``data.download=true`` only, checked before it counts."""

from __future__ import annotations

import fcntl
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ganscale.data import idx
from ganscale.errors import DataError
from ganscale.files import written_aside

log = logging.getLogger(__name__)

MAX_DOWNLOAD_BYTES = 100 * 2**20
TIMEOUT_S = 60.0  # of one network operation
WAIT_S = 600.0  # for another process on this machine that fetches the same files


def download_idx(name: str, url: str, sha256: Mapping[str, str], *, into: Path) -> Path:
    """Fetch ``<url>/<file>.gz`` for every file of ``sha256`` and return the folder.

    Each file goes to a temporary name, its decompressed bytes are checked, and only then is it renamed. One process per
    folder fetches; the others wait. Raises ``DataError`` where the network, the hash or the disk says no.
    """
    try:
        into.mkdir(parents=True, exist_ok=True)
        with _alone(into / ".lock", wait_s=WAIT_S):
            for stem, expected in sha256.items():
                if not (into / f"{stem}.gz").is_file():
                    _fetch(f"{url}/{stem}.gz", into / f"{stem}.gz", expected)
    except (OSError, urllib.error.URLError) as error:
        remedy = "check the network, or install the files by hand and give their folder with --data"
        raise DataError(f"data set {name}", f"be downloadable from {url}", f"{error}", remedy) from error
    return into


def _fetch(url: str, target: Path, expected: str) -> None:
    log.info("fetching %s", url)
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
        content = response.read(MAX_DOWNLOAD_BYTES + 1)
    if len(content) > MAX_DOWNLOAD_BYTES:
        raise OSError(f"{url} is larger than {MAX_DOWNLOAD_BYTES} bytes")
    with written_aside(target) as aside:  # it keeps the .gz ending, by which idx files are read
        aside.write_bytes(content)
        _, found = idx.read_idx(aside)
        if found != expected:
            raise DataError(url, f"have the published SHA-256 {expected}", found, "fetch it from another place")


@contextmanager
def _alone(path: Path, *, wait_s: float) -> Iterator[None]:
    deadline = time.monotonic() + wait_s
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another process has held {path} for {wait_s:.0f} s") from None
                time.sleep(0.2)
        yield
