"""What every test run shares: one thread unless a test asks for more, and a closing list of what was skipped."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported: test machines are small, and a pool of threads a process slows them all down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

# A shell has what it starts in the background ignore SIGINT, and every child inherits that: no test could press Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest

# Files of minutes, the longest first: begun last, one of them would keep one core busy while the others have nothing.
LONG = ("test_emulator.py", "test_gaussians.py", "test_jobs.py", "test_interruption.py", "test_ranks.py")


@pytest.fixture(scope="module")
def short_dir() -> Iterator[Path]:
    """A folder with a short name, for one module: the paths of Ray's sockets in it may have 107 bytes in all."""
    folder = Path(tempfile.mkdtemp(prefix="gs-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first; skip what needs a GPU where there is none, with the reason."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the skips by reason: a green run says what it did not test."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        where = report.longrepr
        reasons[where[2].removeprefix("Skipped: ") if isinstance(where, tuple) else str(where)] += 1
    if not reasons:
        return
    terminalreporter.section("skipped, by reason")
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"{count:5d}  {reason}")
