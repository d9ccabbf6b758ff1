"""Whether a worker sees what the driver sees: the run directory, and the data. Asked on every node, at every start.

A folder of the same path on another disk would train, and leave half a run on each. So the driver leaves a mark in the
run directory that no other folder has, and each worker looks for it before it does anything else.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path

from ganscale.errors import DataError, UserError
from ganscale.runtime.stopping import SCRATCH

PATIENCE_S = 10.0  # network file systems show a new file late
_LOOK_S = 0.2


def leave_mark(run_dir: Path) -> str:
    """Leave a new mark in ``run_dir`` and return its name."""
    name = f"mark-{uuid.uuid4().hex[:12]}"
    (run_dir / SCRATCH / name).touch()
    return name


def check_ground(run_dir: Path, mark: str, data: str, node: str, *, patience_s: float = PATIENCE_S) -> None:
    """Raise UserError where ``node``, this one, lacks ``mark``, DataError where it lacks the path of ``data``."""
    deadline = time.monotonic() + patience_s
    while not (run_dir / SCRATCH / mark).exists():
        if time.monotonic() > deadline:
            got = "a folder of the same name" if run_dir.is_dir() else "no such folder"
            remedy = "keep runs on storage that all nodes share, or use --runs-dir s3://BUCKET/PREFIX"
            raise UserError(f"run directory {run_dir}", "be the same on all nodes", f"{got} on node {node}", remedy)
        time.sleep(_LOOK_S)
    if Path(data).is_absolute() and not Path(data).exists():
        raise DataError(f"--data {data}", "be there on all nodes", f"nothing on node {node}", "share or copy it")
