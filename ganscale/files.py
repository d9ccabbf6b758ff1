"""Files and directories that are there whole or not at all: written aside, brought to the disk, renamed.

Whoever stores something uses these functions, so that a crash at any moment leaves either the old content or the new,
and a full disk is recognised and worded in one place.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ganscale.errors import RunFailed

_FULL = (errno.ENOSPC, errno.EDQUOT)
_ASIDE, _OLD = ".tmp-", ".old-"  # what carries these names is unfinished or done with
_ADDRESS = ".address"  # in a working copy of a run that is kept in an object store: where


def cache_dir() -> Path:
    """``$GANSCALE_CACHE`` where it is set, else ``~/.cache/ganscale``: for what can be made or fetched again."""
    return Path(os.environ.get("GANSCALE_CACHE") or Path.home() / ".cache" / "ganscale")


def address_of(run_dir: Path) -> str | None:
    """Return the address of the object store that keeps the run of which ``run_dir`` is a working copy, or None."""
    try:
        return (run_dir / _ADDRESS).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def set_address(run_dir: Path, address: str) -> None:
    """Make ``run_dir`` a working copy of the run at ``address``."""
    run_dir.mkdir(parents=True, exist_ok=True)
    replace_text(run_dir / _ADDRESS, address + "\n")


def name_for_users(run_dir: Path) -> str:
    """Return what a user calls the run in ``run_dir``: its address in an object store, or its path."""
    return address_of(run_dir) or str(run_dir)


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of the content of ``file`` in hexadecimal."""
    import hashlib  # here: it takes ten milliseconds, for which `--help` need not wait

    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's list of names, to the disk before returning."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # some shared folders have no fsync for folders; their renames are as durable as they get
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(handle)


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Yield a free name beside ``target`` with its ending; a file written there becomes ``target`` at the end.

    Where the block raises, ``target`` stays as it was and nothing else is left. Not brought to the disk: a crash of the
    machine, not of the process, may lose the file.
    """
    aside = target.with_name(f"{_ASIDE}{os.urandom(4).hex()}-{target.name}")
    try:
        yield aside
        os.replace(aside, target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def replace_text(target: Path, text: str) -> None:
    """Make ``text`` the whole content of ``target``, in one visible step."""
    with written_aside(target) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory beside ``target``; what is written into it becomes ``target`` in one visible step.

    Every file and the directory are on the disk before the rename. An older ``target`` is replaced. Where the block
    raises, nothing is left and an older ``target`` stays as it was.
    """
    aside = target.with_name(f"{_ASIDE}{target.name}-{os.urandom(4).hex()}")
    try:
        aside.mkdir(parents=True)
        yield aside
        for file in sorted(aside.iterdir()):
            sync(file)
        sync(aside)
        remove_directory(target)
        aside.rename(target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def remove_directory(path: Path) -> None:
    """Delete the directory ``path``, if it is there, so that nobody ever sees half of it under its name."""
    old = path.with_name(f"{_OLD}{path.name}-{os.urandom(4).hex()}")
    try:
        path.rename(old)
    except FileNotFoundError:
        return
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(root: Path) -> None:
    """Delete what writers that were killed left below ``root``. Only for the one process that writes there."""
    for path in root.iterdir() if root.is_dir() else ():
        if path.name.startswith((_ASIDE, _OLD)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_full_disk(error: BaseException) -> bool:
    """Whether ``error`` says that a disk, or the user's share of it, is full."""
    # safetensors reports it as an exception of its own, with the system's words inside
    return getattr(error, "errno", None) in _FULL or "No space left" in str(error)


def full_disk(where: object, more: str = "free some") -> RunFailed:
    """Return the error for a full disk: ``where`` is the place that was written to, ``more`` what is left and to do."""
    return RunFailed(f"no space left on the disk of {where}; {more}")
