"""Ends a local Ray whose driver has died: ``python -m ganscale.runtime.guard HOME``, started beside it by ``local``.

A driver that is killed cannot tidy up. Ray's head processes end with it, but some of its agents live on, and workers
until they notice. The guard waits for the end of its stdin, whose other end the driver holds as long as it lives, and
then ends what has files open below HOME. It takes no notice of signals to the driver's group.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ganscale.runtime.processes import end_all, tree_of


@contextlib.contextmanager
def guarded(home: Path) -> Iterator[None]:
    """Have the processes that use ``home`` ended, and ``home`` deleted, where this process dies inside the block."""
    command = [sys.executable, "-m", "ganscale.runtime.guard", str(home)]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            guard.communicate(b"all is tidy")


def main() -> None:
    """Wait for the driver's end."""
    said, home = sys.stdin.buffer.read(), Path(sys.argv[1])
    if said:
        return
    end_all(tree_of(home), home)
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
