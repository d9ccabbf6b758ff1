"""The idx files of MNIST and its relatives: reading one, and finding the four of a set in a folder.

An idx file is a big-endian header (two zero bytes, type 0x08 for uint8, number of axes, one uint32 an axis), then the
raw bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

from ganscale.errors import DataError

Part = Literal["train", "t10k"]
MAX_IDX_BYTES = 2**30  # decompressed; the full MNIST is 47 MB

_UBYTE = 0x08


def read_idx(path: Path) -> tuple[np.ndarray, str]:
    """Return the uint8 array of an idx file, raw or gzipped, and the SHA-256 of its decompressed bytes.

    Raises ``DataError`` naming the file where it is cut short, damaged, larger than its bound, or something else.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MAX_IDX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, f"{type(error).__name__} {error}") from error
    if len(content) > MAX_IDX_BYTES:
        raise _damaged(path, f"more than {MAX_IDX_BYTES} bytes")
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UBYTE or content[3] not in (1, 3):
        raise _damaged(path, f"the header {content[:4].hex()}" if content else "an empty file")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise _damaged(path, f"{len(content)} bytes")
    shape = tuple(int(side) for side in np.frombuffer(content[4:start], dtype=">u4"))
    if len(content) - start != math.prod(shape):
        raise _damaged(path, f"{len(content)} bytes for the shape {list(shape)}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape), hashlib.sha256(content).hexdigest()


def find_pair(folder: Path, part: Part) -> tuple[Path, Path] | None:
    """Return the paths of a part's images and labels below ``folder``, or None.

    Both common spellings are known (``train-images-idx3-ubyte`` and ``train-images.idx3-ubyte``), raw or ``.gz``.
    """
    images, labels = (_find(folder, part, kind) for kind in ("images-idx3", "labels-idx1"))
    return (images, labels) if images and labels else None


def read_pair(pair: tuple[Path, Path]) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Return images ``[N, H, W]``, labels ``[N]`` (both uint8) and {file stem: SHA-256}; raises ``DataError``."""
    (images, images_sha), (labels, labels_sha) = read_idx(pair[0]), read_idx(pair[1])
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or images.size == 0:
        raise _damaged(pair[0], f"images {list(images.shape)} beside labels {list(labels.shape)}")
    return images, labels, {stem(pair[0]): images_sha, stem(pair[1]): labels_sha}


def stem(path: Path) -> str:
    """Return the official name of an idx file: ``train-images-idx3-ubyte`` for any spelling."""
    return path.name.removesuffix(".gz").replace(".idx", "-idx")


def _find(folder: Path, part: Part, kind: str) -> Path | None:
    official = f"{part}-{kind}-ubyte"
    names = [spelling + ending for ending in ("", ".gz") for spelling in (official, official.replace("-idx", ".idx"))]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _damaged(path: Path, got: str) -> DataError:
    return DataError(str(path), "be a whole idx file of uint8 images or labels", got, "fetch the file again")
