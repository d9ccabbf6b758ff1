"""What the user got wrong: exit code 2, one line in the form of the contract, nothing written."""

from __future__ import annotations

import re
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hygiene_cases import encode, gradient, write_files, write_zip

from ganscale.config import DataConfig
from ganscale.data import open_dataset, scan
from ganscale.errors import UserError

PICTURES = {f"{n:02}.png": encode(gradient(seed=n), "PNG") for n in range(12)}
CONTRACT = re.compile(r"^[^;\n]+ must [^\n]+, got [^\n]+; [^\n]+$")


def _truncated_zip(root: Path) -> dict[str, object]:
    path = write_zip(root / "data.zip", PICTURES)
    path.write_bytes(path.read_bytes()[:-100])
    return {"path": path}


def _too_many_bad(root: Path, fraction: float = 0.01) -> dict[str, object]:
    return {"path": write_files(root, {**PICTURES, "a.png": b"", "b\nc.png": b"x"}), "max_bad_fraction": fraction}


CASES: dict[str, tuple[Callable[[Path], dict[str, object]], str]] = {
    "a name with a slip": (lambda root: {"path": "fashion-mnst"}, "did you mean fashion-mnist or fashion-mnist-10k"),
    "a name far from all": (lambda root: {"path": "qqqq"}, "choose one of fashion-mnist, fashion-mnist-10k"),
    "no name at all": (lambda root: {"path": ""}, "choose one of"),
    "a missing folder": (lambda root: {"path": root / "nowhere"}, "must be an existing folder or zip"),
    "a missing zip": (lambda root: {"path": "nowhere.zip"}, "must be an existing folder or zip"),
    "an empty folder": (lambda root: {"path": root}, "must hold image files"),
    "a folder of hidden files": (lambda root: {"path": write_files(root, {".a.png": b""})}, "must hold image files"),
    "an empty zip": (lambda root: {"path": write_zip(root / "data.zip", {})}, "must hold image files"),
    "only broken files": (
        lambda root: {"path": write_files(root, {"a.png": b"", "b.png": b"x"}), "max_bad_fraction": 1.0},
        r"must hold at least one usable image, got 2 unusable in .*: a.png \(empty file\), b.png \(not an image",
    ),
    "too many broken files": (_too_many_bad, r"at most 1 unusable of 14 files .* got 2 in .*: a.png \(empty file\)"),
    "one broken where none may be": (
        lambda root: {"path": write_files(root, {**PICTURES, "a.png": b""}), "max_bad_fraction": 0},
        r"at most 0 unusable of 13 files",
    ),
    "one picture instead of a folder": (
        lambda root: {"path": write_files(root, PICTURES) / "00.png"},
        "must be a folder of images or a whole zip",
    ),
    "a zip cut short": (_truncated_zip, "must be a folder of images or a whole zip"),
    "a zip that climbs out": (
        lambda root: {"path": write_zip(root / "data.zip", {**PICTURES, "../../etc/x.png": b""})},
        "must be a zip whose names stay inside it",
    ),
    "a zip with an absolute name": (
        lambda root: {"path": write_zip(root / "data.zip", {**PICTURES, "/etc/x.png": b""})},
        "must be a zip whose names stay inside it",
    ),
    "a zip with a drive": (
        lambda root: {"path": write_zip(root / "data.zip", {**PICTURES, r"C:\x.png": b""})},
        "must be a zip whose names stay inside it",
    ),
    "two channels for pictures": (lambda root: {"path": write_files(root, PICTURES), "channels": 2}, "be 1, 3 or 4"),
    "two channels for garments": (lambda root: {"channels": 2}, "be 1, 3 or 4"),
    "a damaged idx folder": (
        lambda root: {"path": write_files(root, {f"train-{x}-ubyte": b"?" for x in ("images-idx3", "labels-idx1")})},
        "must be a whole idx file",
    ),
}


def _contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_in_the_form_of_the_contract_and_nothing_is_written(case, tmp_path, monkeypatch):
    make, message = CASES[case]
    root, elsewhere = tmp_path / "data", tmp_path / "cwd"
    root.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    keys = make(root)
    config = DataConfig(**{**keys, "path": str(keys.get("path", "fashion-mnist-10k"))})
    before = _contents(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(config)
    assert CONTRACT.match(str(caught.value)), str(caught.value)
    assert caught.value.exit_code == 2
    with pytest.raises(UserError, match=message):
        scan(config).check()
    assert _contents(tmp_path) == before


def test_the_remedy_for_too_many_bad_files_works(tmp_path):
    with pytest.raises(UserError) as caught:
        open_dataset(DataConfig(path=str(_too_many_bad(tmp_path)["path"])))
    fraction = float(str(caught.value).rpartition("=")[2])
    assert len(open_dataset(DataConfig(path=str(tmp_path), max_bad_fraction=fraction)).quarantine) == 2


def test_too_few_images_to_hold_some_out_is_an_error_only_for_that_part(tmp_path):
    config = DataConfig(path=str(write_files(tmp_path, {"one.png": PICTURES["00.png"]})))
    assert len(open_dataset(config)) == 1
    with pytest.raises(UserError, match="at least 10 different images"):
        open_dataset(config, split="held-out")


def test_images_of_1x1_and_20000x3_are_used_and_mentioned_once(tmp_path, caplog):
    odd = {"one.png": encode(gradient(1, 1), "PNG"), "long.png": encode(gradient(3, 20000), "PNG")}
    for fit in ("crop", "pad", "stretch"):
        caplog.clear()
        dataset = open_dataset(DataConfig(path=str(write_files(tmp_path, {**PICTURES, **odd})), fit=fit))
        assert dataset.quarantine == []
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(warnings) == 1
        assert "enlarged more than 4 times" in warnings[0]


def _member_reasons(path: Path) -> dict[str, str]:
    return {bad["path"]: bad["reason"] for bad in scan(DataConfig(path=str(path))).quarantine}


def test_a_damaged_zip_member_is_set_aside_and_the_others_are_used(tmp_path):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in PICTURES.items():
            archive.writestr(name, content)
        offset = archive.getinfo("05.png").header_offset
    content = bytearray(path.read_bytes())
    content[offset + 200] ^= 0xFF
    path.write_bytes(content)
    assert _member_reasons(path) == {"05.png": "damaged in the zip: BadZipFile"}


def test_an_encrypted_zip_member_is_set_aside(tmp_path):
    path = write_zip(tmp_path / "data.zip", PICTURES)
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # the last record of the central directory
    content[entry + 8] |= 1
    path.write_bytes(content)
    assert list(_member_reasons(path).values()) == ["encrypted in the zip"]


def test_what_a_file_may_unpack_to_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("ganscale.data.sources.MAX_FILE_BYTES", 100_000)
    files = {**PICTURES, "zeros.png": b"\0" * 100_001}
    reasons = {"zeros.png": "100001 bytes is more than the bound of 100000"}
    assert _member_reasons(write_zip(tmp_path / "data.zip", files)) == reasons
    assert _member_reasons(write_files(tmp_path / "data", files)) == reasons


def test_an_unreadable_file_is_set_aside(tmp_path):
    root = write_files(tmp_path, PICTURES)
    (root / "00.png").chmod(0)
    try:
        (root / "00.png").read_bytes()
        readable = True  # as root, who may read everything
    except PermissionError:
        readable = False
    reasons = _member_reasons(root)
    (root / "00.png").chmod(stat.S_IRUSR)
    assert reasons == ({} if readable else {"00.png": "cannot be read: Permission denied"})
