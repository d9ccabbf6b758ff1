"""Laws of the files that are there whole or not at all."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from ganscale import files
from ganscale.errors import RunFailed


def test_a_file_that_fails_half_way_leaves_the_old_one_and_nothing_else(tmp_path: Path):
    target = tmp_path / "page.json"
    files.replace_text(target, "old")

    def fail() -> None:
        with files.written_aside(target) as aside:
            aside.write_text("half")
            assert aside.suffix == ".json"  # writers that go by the ending are not misled
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["page.json"]
    files.replace_text(target, "new")
    assert target.read_text() == "new"


def test_a_directory_that_fails_half_way_leaves_the_old_one_and_nothing_else(tmp_path: Path):
    target = tmp_path / "thing"
    with files.new_directory(target) as aside:
        (aside / "a").write_text("old")

    def fail() -> None:
        with files.new_directory(target) as aside:
            (aside / "a").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (target / "a").read_text() == "old"
    with files.new_directory(target) as aside:
        (aside / "b").write_text("new")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_removing_what_is_not_there_is_no_error(tmp_path: Path):
    files.remove_directory(tmp_path / "gone")
    files.remove_leftovers(tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []


def test_leftovers_go_and_nothing_else_does(tmp_path: Path):
    (tmp_path / ".tmp-kimg-000008-ab").mkdir()
    (tmp_path / ".tmp-kimg-000008-ab" / "x").touch()
    (tmp_path / ".old-kimg-000008-ab").mkdir()
    (tmp_path / ".tmp-ab-config.json").touch()
    (tmp_path / "kimg-000008").mkdir()
    (tmp_path / ".lock").touch()
    files.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "kimg-000008"]


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (ValueError("x"), False),
    ],
)
def test_a_full_disk_is_told_from_other_failures(error: Exception, is_full: bool):
    assert files.is_full_disk(error) is is_full


def test_a_full_disk_has_one_wording():
    error = files.full_disk("/runs/x")
    assert type(error) is RunFailed
    assert str(error) == "no space left on the disk of /runs/x; free some"


def test_the_module_loads_nothing_heavy():
    code = "import sys, ganscale.files; sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
