"""Where a launch writes: a folder, and for a run that an object store keeps, its address as well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ganscale.config import RunConfig
from ganscale.files import address_of, set_address
from ganscale.runtime.planner import new_run_dir
from ganscale.runtime.run_lock import RunLock
from ganscale.runtime.stopping import Stop
from ganscale.runtime.storage import ObjectStore, is_uri


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """``run_dir`` is written to, ``address`` kept equal to it; ``resume`` is ``run_dir`` or a checkpoint in it."""

    run_dir: Path
    address: str | None
    resume: Path | None
    chosen: str | None = None  # the checkpoint to pull, where it is not the newest one

    @property
    def store(self) -> ObjectStore | None:
        """The object store that keeps the run."""
        return ObjectStore(self.address) if self.address is not None else None


def find_place(config: RunConfig, runs_dir: str | Path, name: str | None, resume: str | Path | None) -> Place:
    """Return where a launch with these arguments writes. Leaves nothing behind; raises the UserError family."""
    if resume is None and not is_uri(runs_dir):
        return Place(run_dir=new_run_dir(config, runs_dir, name), address=None, resume=None)
    if resume is not None and not is_uri(resume):
        place = Path(resume).absolute()
        run_dir, chosen = (place.parent.parent, place.name) if place.parent.name == "checkpoints" else (place, None)
        return Place(run_dir=run_dir, address=address_of(run_dir), resume=place, chosen=chosen)
    from ganscale.runtime.remote import new_place, split_address, working_copy  # it loads torch

    if resume is None:
        address, run_dir = new_place(config, str(runs_dir), name)
        return Place(run_dir=run_dir, address=address, resume=None)
    address, chosen = split_address(str(resume))
    run_dir = working_copy(address)
    place = run_dir if chosen is None else run_dir / "checkpoints" / chosen
    return Place(run_dir=run_dir, address=address, resume=place, chosen=chosen)


@contextmanager
def held(place: Place, stop: Stop) -> Iterator[None]:
    """Hold ``place`` for this process alone, and bring a run that goes on here from its store."""
    with ExitStack() as stack:
        lock = stack.enter_context(RunLock(place.run_dir))
        stop.guard(lock.check)
        if place.address is not None:
            from ganscale.runtime.remote import pull
            from ganscale.runtime.remote_lock import RemoteLock

            remote = stack.enter_context(RemoteLock(place.store))
            stop.guard(remote.check)
            if place.resume is not None:
                pull(place.address, place.run_dir, checkpoint=place.chosen)
            set_address(place.run_dir, place.address)
        yield
