"""Any picture becomes one tensor by the stated rule, and what is no picture is set aside with a reason."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hygiene_cases import BAD, GOOD, encode, gradient, solid, write_files, write_zip
from PIL import Image

from ganscale.config import DataConfig
from ganscale.data import open_dataset, scan, write_quarantine
from ganscale.data.convert import Conversion
from ganscale.data.inspection import allowed_bad, inspect
from ganscale.errors import RunFailed


def config(path: Path, **keys: object) -> DataConfig:
    return DataConfig(path=str(path), **{"max_bad_fraction": 0.5, **keys})


def everything(path: Path, **keys: object) -> dict[str, np.ndarray]:
    """Each usable file's pixels by name."""
    found = inspect(
        path, Conversion(**{"height": 28, "width": 28, "channels": 1, "fit": "crop", **keys}), max_bad_fraction=1
    )
    return {file.entry.path: found.pixels[file.place] for file in found.good}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_folder_and_zip_give_the_same_tensors_and_quarantine(hygiene_folder, hygiene_zip, channels, fit):
    keys = {"channels": channels, "fit": fit, "resolution": (20, 28)}
    for split in ("train", "held-out"):
        folder = open_dataset(config(hygiene_folder, **keys), split=split)
        zipped = open_dataset(config(hygiene_zip, **keys), split=split)
        indices = np.arange(len(folder))
        assert len(folder) == len(zipped) > 0
        assert folder.shape == zipped.shape == (channels, 20, 28)
        for ours, theirs in zip(folder.read(indices), zipped.read(indices), strict=True):
            assert torch.equal(ours, theirs)
        assert folder.quarantine == zipped.quarantine
        assert folder.fingerprint == zipped.fingerprint
        assert folder.class_names == zipped.class_names == ("cats", "dogs")


def test_every_unusable_file_is_listed_with_its_reason_and_nothing_else(hygiene_folder):
    quarantine = open_dataset(config(hygiene_folder)).quarantine
    assert [bad["path"] for bad in quarantine] == sorted(BAD)
    for bad in quarantine:
        assert bad["reason"].startswith(BAD[bad["path"]]), bad


def test_modes_become_pixels_by_the_stated_rule(hygiene_folder):
    gray = everything(hygiene_folder)
    assert (gray["cats/gray.png"] == 100).all()
    assert (gray["cats/gray alpha.png"] == 255).all(), "transparent shows the white below"
    assert (gray["dogs/rgba.png"] == 127).all(), "black at 128/255 on white is 255 - 128"
    assert (gray["dogs/cmyk.jpg"] == 0).all()
    assert (gray["dogs/deep.png"][0, :, :14] == 255).all()
    assert (gray["dogs/deep.png"][0, :, 14:] == 0).all()
    assert (gray["dogs/sideways.png"][0, :14] == 0).all()
    assert (gray["dogs/sideways.png"][0, 14:] == 255).all()
    assert (gray["transparent colour.png"] == 255).all()
    luma = round(0.299 * 10 + 0.587 * 200 + 0.114 * 30)
    assert (gray["dogs/one.png"] == luma).all()
    assert set(np.unique(gray["cats/bilevel.png"])) > {0, 255}, "black and white, smoothed by the resizer"

    color = everything(hygiene_folder, channels=3)
    assert (color["cats/gray.png"] == 100).all()
    assert (color["dogs/one.png"] == np.array([10, 200, 30])[:, None, None]).all()
    first_frame = np.asarray(gradient(28, 28, seed=5)).transpose(2, 0, 1).astype(int)
    error = np.abs(color["dogs/animated.gif"].astype(int) - first_frame).mean()
    assert error < 12, "a GIF keeps 256 colours; the other frames differ by more than 50 on average"

    alpha = everything(hygiene_folder, channels=4)
    assert (alpha["dogs/rgba.png"] == np.array([0, 0, 0, 128])[:, None, None]).all()
    assert (alpha["cats/gray.png"] == np.array([100, 100, 100, 255])[:, None, None]).all()


def test_crop_keeps_the_centre_pad_adds_white_stretch_keeps_all(tmp_path):
    wide = solid("L", (84, 28), 0)
    wide.paste(200, (28, 0, 56, 28))  # the middle third
    write_files(tmp_path, {"wide.png": encode(wide, "PNG")})
    assert (everything(tmp_path, fit="crop")["wide.png"] == 200).all()
    stretched = everything(tmp_path, fit="stretch")["wide.png"][0]
    assert (stretched[:, 0] == 0).all()
    assert (stretched[:, 14] == 200).all()
    padded = everything(tmp_path, fit="pad")["wide.png"][0]
    assert (padded[:9] == 255).all()
    assert (padded[-9:] == 255).all()
    assert (padded[11:17, 14] == 200).all()
    assert (everything(tmp_path, fit="pad", channels=4)["wide.png"][3, :9] == 0).all(), "padding is transparent"


def test_reduction_is_antialiased(tmp_path):
    board = np.indices((280, 280)).sum(axis=0) % 2 * 255
    write_files(tmp_path, {"board.png": encode(Image.fromarray(board.astype(np.uint8)), "PNG")})
    reduced = everything(tmp_path)["board.png"].astype(int)
    assert np.abs(reduced - 127.5).max() < 2, "a fine chequerboard must become even gray, not a coarse pattern"


def test_scan_counts_what_is_there_and_writes_nothing(hygiene_folder):
    before = sorted(os.walk(hygiene_folder))
    report = scan(config(hygiene_folder))
    assert sorted(os.walk(hygiene_folder)) == before
    assert (report.files, report.usable, len(report.quarantine)) == (GOOD + len(BAD), GOOD, len(BAD))
    assert report.train + report.held_out == GOOD
    assert report.classes == {"cats": 6, "dogs": 11, "(none)": 2}
    assert (report.duplicates, report.animated, report.rotated) == (1, 1, 1)
    assert (report.enlarged, report.extreme) == (2, 1), "1 x 1 and 20000 x 3; the latter is long as well"
    assert report.smallest == "1x1"
    assert report.largest == "20000x3"
    assert {"L", "LA", "P", "1", "RGB", "RGBA", "CMYK", "I;16"} <= report.modes.keys()
    assert len(report.notes) == 2, "one line for the files set aside, one for the odd sizes"
    assert json.loads(json.dumps(report.to_dict()))["problem"] == ""
    assert "broken/empty.png: empty file" in dict.fromkeys(value for _, value in report.table())


def test_scan_of_a_source_with_too_many_bad_files_names_the_error_that_a_launch_would_raise(hygiene_folder):
    report = scan(config(hygiene_folder, max_bad_fraction=0.01))
    assert "must hold at most 1 unusable of 27 files (data.max_bad_fraction=0.01), got 8" in report.problem
    with pytest.raises(type(report.error), match="unusable of 27 files"):
        report.check()


def test_only_the_fraction_or_one_file_may_be_bad():
    assert allowed_bad(20, 0.01) == 1
    assert allowed_bad(99, 0.01) == 1
    assert allowed_bad(250, 0.01) == 2
    assert allowed_bad(10_000, 0) == 0


def test_one_broken_file_among_good_ones_is_set_aside_and_the_rest_is_used(tmp_path):
    files = {f"{n:02}.png": encode(gradient(seed=n), "PNG") for n in range(19)}
    dataset = open_dataset(DataConfig(path=str(write_files(tmp_path, {**files, "bad.png": b"bad"}))))
    assert [bad["path"] for bad in dataset.quarantine] == ["bad.png"]
    assert len(dataset) == 18, "one of 19 usable images is held out"
    assert dataset.num_classes == 0
    assert (dataset.labels == -1).all()


def test_copies_never_stand_on_both_sides_of_the_split(tmp_path):
    write_files(tmp_path, {f"{n:03}.png": encode(gradient(seed=n % 15), "PNG") for n in range(60)})
    parts = [open_dataset(DataConfig(path=str(tmp_path)), split=split) for split in ("train", "held-out")]
    pixels = [{image.numpy().tobytes() for image in part.read(np.arange(len(part)))[0]} for part in parts]
    assert len(pixels[0]) + len(pixels[1]) == 15
    assert not pixels[0] & pixels[1]
    assert len(parts[0]) + len(parts[1]) == 60


def test_quarantine_json_holds_the_list(hygiene_folder, tmp_path):
    dataset = open_dataset(config(hygiene_folder))
    page = json.loads(write_quarantine(tmp_path, dataset).read_text())
    assert page["quarantined"] == dataset.quarantine
    assert page["files"] == GOOD + len(BAD)
    assert page["fingerprint"] == dataset.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["quarantine.json"]


def test_reading_from_files_equals_reading_from_memory(hygiene_folder, monkeypatch):
    kept = open_dataset(config(hygiene_folder))
    wanted = np.array([3, 0, 3, 7])
    pixels, labels = kept.read(wanted)
    del kept
    monkeypatch.setattr("ganscale.data.inspection.CACHE_BYTES", 0)
    fresh = open_dataset(config(hygiene_folder))
    assert fresh._inspection.pixels is None
    assert torch.equal(fresh.read(wanted)[0], pixels)
    assert torch.equal(fresh.read(wanted)[1], labels)


def _folder_of(tmp_path: Path, count: int) -> Path:
    return write_files(tmp_path / "data", {f"{n:03}.png": encode(gradient(seed=n), "PNG") for n in range(count)})


def test_a_file_that_breaks_later_is_set_aside_and_its_slot_refilled_alike_for_every_reader(tmp_path, monkeypatch):
    monkeypatch.setattr("ganscale.data.inspection.CACHE_BYTES", 0)
    root = _folder_of(tmp_path, 40)
    datasets = [open_dataset(config(root, seed=3)) for _ in range(2)]
    broken = datasets[0]._files[5].entry.path
    (root / broken).write_bytes(b"gone")
    changed = datasets[0]._files[6].entry.path
    (root / changed).write_bytes(encode(gradient(seed=99), "PNG"))
    indices = np.arange(len(datasets[0]))
    first, second = (dataset.read(indices)[0] for dataset in datasets)
    assert torch.equal(first, second)
    assert sorted(bad["path"] for bad in datasets[0].quarantine) == [broken, changed]
    assert any(torch.equal(first[5], first[other]) for other in indices if other not in (5, 6))
    assert torch.equal(datasets[1].read(indices[::-1].copy())[0], first.flip(0)), "the refill does not depend on order"


def test_every_broken_slot_gets_a_refill_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("ganscale.data.inspection.CACHE_BYTES", 0)
    root = _folder_of(tmp_path, 40)
    dataset = open_dataset(config(root))
    for index in range(12):
        (root / dataset._files[index].entry.path).write_bytes(b"gone")
    refills = {image.numpy().tobytes() for image in dataset.read(np.arange(12))[0]}
    assert len(refills) > 4, "12 draws from 24 files that are left: about 10 different ones"


def test_a_run_stops_when_more_files_break_than_are_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr("ganscale.data.inspection.CACHE_BYTES", 0)
    root = _folder_of(tmp_path, 20)
    dataset = open_dataset(DataConfig(path=str(root)))
    for path in root.iterdir():
        path.unlink()
    with pytest.raises(RunFailed, match=r"1 are allowed .*cannot be read: No such file"):
        dataset.read(np.arange(4))


def test_fingerprint_follows_names_contents_and_policy_and_not_time_or_place(tmp_path):
    files = {f"{n:02}.png": encode(gradient(seed=n), "PNG") for n in range(12)}
    mark = open_dataset(config(write_files(tmp_path / "a", files))).fingerprint
    moved = write_files(tmp_path / "b", files)
    os.utime(moved / "03.png", (0, 0))
    assert open_dataset(config(moved)).fingerprint == mark
    assert open_dataset(config(moved), split="held-out").fingerprint != mark
    assert open_dataset(config(moved, fit="pad")).fingerprint != mark
    assert open_dataset(config(moved, seed=1)).fingerprint != mark
    renamed = {("x" + name if name == "03.png" else name): content for name, content in files.items()}
    assert open_dataset(config(write_files(tmp_path / "c", renamed))).fingerprint != mark
    edited = {**files, "03.png": encode(gradient(seed=77), "PNG")}
    assert open_dataset(config(write_files(tmp_path / "d", edited))).fingerprint != mark


def test_a_folder_that_wraps_everything_is_no_class(tmp_path):
    files = {f"photos/{kind}/{n}.png": encode(gradient(seed=n), "PNG") for kind in "ab" for n in range(6)}
    assert open_dataset(config(write_zip(tmp_path / "x.zip", files))).class_names == ("a", "b")


def test_pipes_dead_links_and_linked_loops_neither_block_nor_repeat(tmp_path):
    root = write_files(tmp_path / "data", {f"{n:02}.png": encode(gradient(seed=n), "PNG") for n in range(12)})
    os.mkfifo(root / "pipe.png")
    (root / "dead.png").symlink_to(root / "nowhere.png")
    (root / "loop").symlink_to(root)
    (root / "again").symlink_to(write_files(tmp_path / "other", {"x.png": encode(gradient(seed=50), "PNG")}))
    (root / "and again").symlink_to(tmp_path / "other")
    report = scan(config(root))
    assert report.usable == 13, "a folder that two links lead to counts once"
    reasons = {bad["path"]: bad["reason"] for bad in report.quarantine}
    assert reasons == {"pipe.png": "not a regular file", "dead.png": "cannot be read: No such file or directory"}
