"""What a job takes along: the files of a directory, less data, runs and everything that can be made again.

The sizes are summed and checked before anything is sent, because the cluster says no only after the upload. The zip is
the same for the same files, and is named by its content: the cluster asks for it once.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from ganscale.errors import UserError

LIMIT_BYTES = 95 << 20  # the server takes 100 MiB; zip headers and a margin are within the rest
MOST_FILES = 20_000  # a folder with more is somebody's home or data, and looking through it would take minutes
LARGEST = 3  # files that a refusal names

# everything whose name begins with a dot (.git, .venv, .env, caches) stays as well
LEFT_OUT_FOLDERS = (
    *("runs", "data", "datasets", "checkpoints", "outputs", "wandb", "mlruns"),
    *("build", "dist", "venv", "env", "node_modules", "__pycache__", "*.egg-info"),
)
LEFT_OUT_FILES = (
    *("*.pyc", "*.so", "*.o", "*.a", "*.whl", "*.log", "core.*", "events.out.tfevents.*"),
    *("*.safetensors", "*.pt", "*.pth", "*.ckpt", "*.onnx", "*.npy", "*.npz", "*.h5", "*.hdf5"),
    *("*.zip", "*.tar", "*.tar.*", "*.tgz", "*.gz", "*.parquet", "*.tfrecord", "*.lmdb", "*.mdb"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """The files of ``root`` that are sent: names relative to it -> bytes; and the names of what is not."""

    root: Path
    files: dict[str, int]
    left_out: tuple[str, ...]

    @property
    def size(self) -> int:
        """The sum of all files, in bytes."""
        return sum(self.files.values())

    def check(self) -> None:
        """Raise UserError that names the largest files where all of them together are too large."""
        if self.size <= LIMIT_BYTES:
            return
        largest = sorted(self.files, key=lambda name: (-self.files[name], name))[:LARGEST]
        named = ", ".join(f"{name} {mebibytes(self.files[name])}" for name in largest)
        top, top_size = max(self.by_entry().items(), key=lambda entry: entry[1][1])
        if top not in self.files and top_size[1] > self.size // 2:
            named = f"{top}/ {mebibytes(top_size[1])} in {top_size[0]} files, the largest {named}"
        raise UserError(
            f"the upload of {self.root}",
            f"be at most {mebibytes(LIMIT_BYTES)}",
            f"{mebibytes(self.size)}: {named}",
            "leave files out with --exclude, or keep them on storage that every node sees",
        )

    def by_entry(self) -> dict[str, tuple[int, int]]:
        """Return entry of ``root`` -> (files, bytes)."""
        found: dict[str, tuple[int, int]] = {}
        for name, size in self.files.items():
            top = name.split("/")[0]
            count, total = found.get(top, (0, 0))
            found[top] = count + 1, total + size
        return found

    def lines(self) -> list[str]:
        """Return what is sent and what is not, in words."""
        count = f"{len(self.files)} file{'' if len(self.files) == 1 else 's'}"
        said = [f"{count}, {mebibytes(self.size)}, from {self.root}" if self.files else "nothing"]
        for name, (number, size) in sorted(self.by_entry().items()):
            said.append(f"  {name}" + ("" if name in self.files else f"/ ({number})") + f"  {mebibytes(size)}")
        if self.left_out:
            said.append(f"  left out: {', '.join(self.left_out)}")
        return said

    def zip(self) -> tuple[str, bytes]:
        """Return the name and the content of the zip; equal files make an equal one, whatever their times."""
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(self.files):
                entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = ((self.root / name).stat().st_mode & 0o777) << 16
                archive.writestr(entry, (self.root / name).read_bytes())
        content = held.getvalue()
        return f"_ray_pkg_{hashlib.sha256(content).hexdigest()[:32]}.zip", content


def collect(root: Path, *, exclude: Sequence[str] = (), keep_out: Iterable[Path] = ()) -> Package:
    """Collect what a job takes along from ``root``; writes nothing.

    ``exclude`` holds patterns of names or of paths relative to ``root`` (``*.png``, ``notes/old``); ``keep_out`` files
    or folders, such as the data of the run. Links that lead out of ``root`` stay. Raises UserError where ``root`` is no
    directory.
    """
    root = root.absolute()
    if not root.is_dir():
        raise UserError("--working-dir", "be a directory", str(root), "leave it out to take the current one")
    kept_out = {os.path.realpath(path) for path in keep_out}
    files: dict[str, int] = {}
    left_out: list[str] = []
    for name, path in _walk(root, "", tuple(p.rstrip("/") for p in exclude), kept_out, left_out):
        files[name] = path.stat().st_size
        if len(files) > MOST_FILES:
            top, (count, _) = max(
                Package(root=root, files=files, left_out=()).by_entry().items(), key=lambda e: e[1][0]
            )
            raise UserError(
                f"the upload of {root}",
                f"be at most {MOST_FILES} files",
                f"more, of which at least {count} in {top}",
                "name a smaller --working-dir, or leave files out with --exclude",
            )
    return Package(root=root, files=files, left_out=tuple(left_out))


def _walk(
    folder: Path, prefix: str, exclude: tuple[str, ...], kept_out: set[str], left_out: list[str]
) -> Iterator[tuple[str, Path]]:
    try:
        entries = sorted(folder.iterdir())
    except PermissionError:
        left_out.append(f"{prefix}(unreadable)")
        return
    for path in entries:
        name = prefix + path.name
        if os.path.realpath(path) in kept_out or _stays(path, name, exclude):
            if "__pycache__" not in name:  # of no interest to anybody
                left_out.append(name)
        elif path.is_dir():
            yield from _walk(path, f"{name}/", exclude, kept_out, left_out)
        elif path.is_file():  # neither sockets nor pipes
            yield name, path


def _stays(path: Path, name: str, exclude: tuple[str, ...]) -> bool:
    if path.name.startswith(".") or any(fnmatch(name, p) or fnmatch(path.name, p) for p in exclude):
        return True
    if path.is_symlink():  # a folder could lead round in circles, and a file out of what was meant
        return path.is_dir() or not path.exists() or not _is_below(path.resolve(), name, path)
    if path.is_dir():
        is_run = (path / "config.json").is_file() and (path / "metrics.jsonl").is_file()
        is_environment = (path / "pyvenv.cfg").is_file()
        # a copy of our sources would take the place of the cluster's ganscale, and comes without its compiled core
        is_ours = path.name == "ganscale" and (path / "__main__.py").is_file() and (path / "runtime").is_dir()
        named = any(fnmatch(path.name, pattern) for pattern in LEFT_OUT_FOLDERS)
        return named or is_run or is_environment or is_ours
    return not os.access(path, os.R_OK) or any(fnmatch(path.name, pattern) for pattern in LEFT_OUT_FILES)


def _is_below(target: Path, name: str, path: Path) -> bool:
    root = path.parents[name.count("/")].resolve()
    return target.is_relative_to(root)


def mebibytes(size: int) -> str:
    """Write a number of bytes in MiB with one digit, a small one in KiB or B."""
    if size < 2**10:
        return f"{size} B"
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 / 10 else f"{size / 2**10:.1f} KiB"
