"""One run, one writer: a lock file in the run directory, on a local disk as on a shared folder.

``flock`` alone would not do: on shared folders it may hold on one machine only, without saying so. So the lock is a
file that is created in one step or not at all, and says who holds it. Those of one machine who want it try one after
the other, by a ``flock`` on the directory. A holder on this machine is dead when its process is. One
elsewhere shows that it lives by touching the file; ages are differences between times of the file server alone, so
clocks need not agree. A dead holder's lock is taken over. A holder that was taken for dead (a machine that slept) finds
that out at its next touch, and stops.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import logging
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType

from ganscale.errors import RunFailed, UserError

log = logging.getLogger(__name__)

LOCK = ".lock"
BEAT_S = 10.0  # between two touches
STALE_S = 60.0  # without one a holder elsewhere counts as dead: six missed touches


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Who holds a lock. ``machine`` tells whether a pid means anything here, ``started`` whether it is the same one."""

    token: str
    host: str
    pid: int
    started: str  # of the process, in the kernel's clock ticks since boot; "" where there is no /proc
    machine: str  # boot id and pid namespace
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self)) + "\n"


def ourselves() -> Holder:
    """Return this process as a holder, with a token of its own."""
    return Holder(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        pid=os.getpid(),
        started=started_at(os.getpid()),
        machine=this_machine(),
        since=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def parse_holder(text: str) -> Holder | None:
    """Return the holder that a lock names, or None where the text is none (cut short, or of another version)."""
    try:
        page = json.loads(text)
        return Holder(**{field.name: page[field.name] for field in fields(Holder)})
    except (ValueError, KeyError, TypeError):
        return None


def is_alive(holder: Holder | None, age_s: float) -> bool:
    """Whether ``holder``, last touched ``age_s`` ago, still runs."""
    if holder is not None and holder.machine and holder.machine == this_machine():
        return bool(holder.started) and started_at(holder.pid) == holder.started
    return age_s < STALE_S


def in_use(where: object, holder: Holder | None, age_s: float) -> UserError:
    """Return the refusal of a second writer."""
    remedy = "wait until it has ended, or use another --name"
    if holder is None or holder.machine != this_machine():
        remedy += f"; if it is dead, try again in {max(1, round(STALE_S - age_s))} s"
    return UserError(f"run {where}", "be written by one launch at a time", f"one by {holder or 'somebody'}", remedy)


def is_locked(run_dir: Path) -> bool:
    """Whether a living process of this machine or another one writes ``run_dir``."""
    lock = RunLock(run_dir)
    try:
        return is_alive(lock._read(), lock._age_s())
    except OSError:
        return False


def is_ours(run_dir: Path) -> bool:
    """Whether this process holds the lock of ``run_dir`` now: who has slept learns from ``check`` too late."""
    try:
        return is_this_process(parse_holder((run_dir / LOCK).read_text()))
    except OSError:
        return False


def is_this_process(holder: Holder | None) -> bool:
    """Whether ``holder`` is this process, by whichever of its locks."""
    return holder is not None and replace(ourselves(), token=holder.token, since=holder.since) == holder


class RunLock:
    """A context in which this process alone writes ``run_dir``, which is made where it is missing.

    Entering raises UserError that names the process that holds it. ``check`` raises RunFailed once it was lost.
    """

    def __init__(self, run_dir: Path, *, beat_s: float = BEAT_S) -> None:
        self._run_dir, self._path, self._beat_s = run_dir, run_dir / LOCK, beat_s
        self.holder = ourselves()
        self._done = threading.Event()
        self._lost: str | None = None
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)

    def __enter__(self) -> RunLock:
        self._run_dir.mkdir(parents=True, exist_ok=True)
        while True:
            with _one_at_a_time(self._run_dir):
                if self._create():
                    break
                self._clear()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self._read() == self.holder:
                self._path.unlink()

    def check(self) -> None:
        """Raise RunFailed where another process has taken the run over: nothing may be written any more."""
        if self._lost is not None:
            raise RunFailed(
                f"{self._run_dir} was taken over by {self._lost}, as this process gave no sign of life for "
                f"{STALE_S:g} s; nothing more is written from here"
            )

    def _create(self) -> bool:
        """Make the lock ours if there is none. A link shows the whole content at once, which a new file does not."""
        aside = self._path.with_name(f".tmp-{self.holder.token}")
        try:
            aside.write_text(self.holder.to_json())
            try:
                os.link(aside, self._path)
            except FileExistsError:
                return False
            except OSError:  # no hard links here
                return self._create_in_place()
        finally:
            aside.unlink(missing_ok=True)
        return True

    def _create_in_place(self) -> bool:
        try:
            with self._path.open("x") as stream:
                stream.write(self.holder.to_json())
        except FileExistsError:
            return False
        return True

    def _clear(self) -> None:
        """Remove a dead holder's lock; raise UserError where the holder is alive."""
        try:
            holder, age_s = self._read(), self._age_s()
        except FileNotFoundError:
            return  # released meanwhile
        if is_alive(holder, age_s):
            raise in_use(self._run_dir, holder, age_s)
        taken = self._path.with_name(f".tmp-taken-{self.holder.token}")
        try:
            self._path.rename(taken)
        except FileNotFoundError:
            return  # somebody else has taken it over
        try:
            # somebody else was faster, and this is their new lock: of another machine, or where there is no flock
            if parse_holder(taken.read_text()) != holder:
                with contextlib.suppress(FileExistsError):
                    os.link(taken, self._path)
            else:
                log.warning("took over the lock of %s, which has died", holder or self._run_dir)
        finally:
            taken.unlink()

    def _beat(self) -> None:
        while not self._done.wait(self._beat_s):
            try:
                found = self._read()
                if found != self.holder:
                    self._lost = str(found or "another process")
                    return
                os.utime(self._path)
            except FileNotFoundError:
                self._lost = "another process, which has ended"
                return
            except OSError as error:  # a shared folder that is away for a moment
                log.warning("the lock of %s could not be touched: %s", self._run_dir, error)

    def _read(self) -> Holder | None:
        return parse_holder(self._path.read_text())

    def _age_s(self) -> float:
        """Return the seconds since the last touch, both times by the clock of the file server."""
        probe = self._path.with_name(f".tmp-clock-{self.holder.token}")
        try:
            probe.touch()
            return probe.stat().st_mtime - self._path.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)


@contextlib.contextmanager
def _one_at_a_time(run_dir: Path) -> Iterator[None]:
    """Hold a flock on ``run_dir``, where the file system has one: a lock that is read there is renamed as it was read.

    Without it a third one could find the place empty while the new lock of a second one, renamed in the place of the
    dead one's, is put back.
    """
    handle = os.open(run_dir, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # a child that was forked meanwhile has the handle, too
        os.close(handle)


def this_machine() -> str:
    """Return what makes a pid unique, "" where it cannot be told: the boot of the kernel and the pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""  # not Linux: only touches tell


def started_at(pid: int) -> str:
    """Return when process ``pid`` started, in the kernel's clock ticks since boot; "" where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]  # field 22 of proc(5); these begin with the third
