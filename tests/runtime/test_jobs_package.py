"""What a job takes along: code and notes, never data, runs, secrets or what can be built again."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest

from ganscale.errors import UserError
from ganscale.runtime.jobs_package import LIMIT_BYTES, collect

pytestmark = pytest.mark.distributed
STAYS = (
    *(".git/HEAD", ".venv/bin/python", ".env", ".cache/x", "runs/demo/config.json", "data/faces/1.png", "build/a.o"),
    *("dist/x.whl", "env/pyvenv.cfg", "mine/pyvenv.cfg", "x.egg-info/PKG-INFO", "__pycache__/a.pyc", "sub/a.pyc"),
    *("weights.pt", "sub/weights.safetensors", "archive.tar.gz", "set.zip", "lib.so", "node_modules/a/b.js"),
    *("kept/demo/config.json", "kept/demo/metrics.jsonl", "kept/demo/samples/1.png"),
    *("ganscale/__main__.py", "ganscale/runtime/__init__.py"),
)
GOES = ("train.sh", "sub/model.py", "sub/deep/notes.md", "picture.png", "settings.json", "ganscale.txt")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    for name in (*STAYS, *GOES):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def test_only_what_cannot_be_had_over_there_goes_along(project):
    package = collect(project)
    assert set(package.files) == set(GOES)
    assert package.size == sum(len(name) for name in GOES)


def test_what_stays_is_named_once_at_its_top(project):
    left_out = collect(project).left_out
    for name in ("runs", "data", ".git", ".env", "kept/demo", "ganscale", "weights.pt"):
        assert name in left_out
    assert not any(name.startswith("runs/") for name in left_out)
    assert all(name in "\n".join(collect(project).lines()) for name in left_out)


def test_patterns_and_the_data_of_the_run_stay_too(project):
    (project / "faces").mkdir()
    (project / "faces" / "1.jpg").write_text("a face")
    package = collect(project, exclude=("*.md", "sub/model.py"), keep_out=[project / "faces"])
    assert set(package.files) == set(GOES) - {"sub/model.py", "sub/deep/notes.md"}


@pytest.mark.parametrize("pattern", ["sub", "sub/"])
def test_a_pattern_takes_a_whole_folder_out(project, pattern):
    assert not [name for name in collect(project, exclude=(pattern,)).files if name.startswith("sub/")]


def test_a_link_goes_only_where_it_points_to_a_file_inside(project, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("not yours")
    (project / "inside").symlink_to(project / "train.sh")
    (project / "sub" / "up").symlink_to(project / "train.sh")
    (project / "outside").symlink_to(secret)
    (project / "round").symlink_to(project)
    (project / "broken").symlink_to(project / "nothing")
    package = collect(project)
    assert set(package.files) == {*GOES, "inside", "sub/up"}
    assert {"outside", "round", "broken"} <= set(package.left_out)


def test_the_zip_holds_the_files_and_depends_on_them_alone(project):
    name, content = collect(project).zip()
    archive = zipfile.ZipFile(io.BytesIO(content))
    assert {entry: archive.read(entry).decode() for entry in archive.namelist()} == {entry: entry for entry in GOES}
    os.utime(project / "train.sh", (0, 0))
    assert collect(project).zip() == (name, content)
    (project / "train.sh").write_text("other")
    assert collect(project).zip()[0] != name


def test_the_mode_of_a_script_survives(project):
    (project / "train.sh").chmod(0o755)
    archive = zipfile.ZipFile(io.BytesIO(collect(project).zip()[1]))
    assert archive.getinfo("train.sh").external_attr >> 16 & 0o777 == 0o755


def sparse(path: Path, size: int) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as stream:
        stream.truncate(size)


def test_the_limit_itself_is_allowed_and_a_byte_more_is_not(tmp_path):
    sparse(tmp_path / "big.bin", LIMIT_BYTES)
    collect(tmp_path).check()
    (tmp_path / "drop").write_text("x")
    with pytest.raises(UserError, match=r"be at most 95\.0 MiB, got 95\.0 MiB: big\.bin 95\.0 MiB, drop 1 B"):
        collect(tmp_path).check()


def test_too_much_names_the_largest_files_largest_first(tmp_path):
    for size, name in enumerate(("e", "d", "c", "b", "a"), 20):
        sparse(tmp_path / f"{name}.bin", size << 20)
    with pytest.raises(UserError, match=r"110\.0 MiB: a\.bin 24\.0 MiB, b\.bin 23\.0 MiB, c\.bin 22\.0 MiB; leave"):
        collect(tmp_path).check()


def test_many_small_files_are_named_by_their_folder(tmp_path):
    for number in range(50):
        sparse(tmp_path / "frames" / f"{number:02}.bin", 2 << 20)
    with pytest.raises(UserError, match=r"frames/ 100\.0 MiB in 50 files"):
        collect(tmp_path).check()


def test_a_home_folder_by_mistake_is_noticed_before_all_of_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("ganscale.runtime.jobs_package.MOST_FILES", 20)
    for number in range(30):
        sparse(tmp_path / "photos" / f"{number:02}.jpg", 1)
    sparse(tmp_path / "zebra.txt", 1)
    with pytest.raises(
        UserError, match="be at most 20 files, got more, of which at least 21 in photos; name a smaller"
    ):
        collect(tmp_path)
    assert set(collect(tmp_path, exclude=("photos",)).files) == {"zebra.txt"}


def test_an_empty_directory_and_a_missing_one(tmp_path):
    assert collect(tmp_path).files == {}
    with pytest.raises(UserError, match="--working-dir must be a directory"):
        collect(tmp_path / "nothing")
