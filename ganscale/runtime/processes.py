"""Which processes belong to a Ray of ours, and their end. Found by open files and descent, never by a name (Linux)."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

TERMINATE_S = 0.5  # until those that are still there are asked to end
KILL_S = 5.0  # until they are ended: some of Ray's agents ignore the asking


def processes_below(home: Path) -> set[int]:
    """Return the other processes that have a file below ``home`` open."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # another user's, or gone meanwhile
            if any(os.readlink(link).startswith(f"{home}/") for link in (process / "fd").iterdir()):
                found.add(int(process.name))
    return found - {os.getpid()}


def tree_of(home: Path) -> dict[int, str]:
    """Return the processes with files below ``home`` and their descendants: pid -> start time (a pid may return)."""
    facts = {pid: fact for pid in _all_pids() if (fact := _parent_and_start(pid))}
    found = processes_below(home) & facts.keys()
    grown = set(found)
    while grown:
        grown = {pid for pid, (parent, _) in facts.items() if parent in grown} - found
        found |= grown
    return {pid: facts[pid][1] for pid in found}


def end_all(tree: dict[int, str], home: Path) -> None:
    """Wait until all of ``tree`` and all that use ``home`` are gone; ask, then make, those end that are not."""
    began = time.monotonic()
    steps = [(TERMINATE_S, signal.SIGTERM), (KILL_S, signal.SIGKILL)]
    while survivors := {pid for pid, start in tree.items() if _is_alive(pid, start)} | processes_below(home):
        waited = time.monotonic() - began
        if steps and waited > steps[0][0]:
            _send(steps.pop(0)[1], survivors)
        elif waited > 2 * KILL_S:  # in the kernel's hands: nothing more can be done
            return
        elif not steps:  # one that was forked just as the others were ended
            _send(signal.SIGKILL, survivors)
        time.sleep(0.05)


def _send(number: signal.Signals, pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _all_pids() -> list[int]:
    return [int(process.name) for process in Path("/proc").glob("[0-9]*")]


def _is_alive(pid: int, start: str) -> bool:
    fact = _parent_and_start(pid)
    return fact is not None and fact[1] == start


def _parent_and_start(pid: int) -> tuple[int, str] | None:
    """Return the parent and the start time of a process; None where there is none, or only its exit code."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else (int(fields[1]), fields[19])
