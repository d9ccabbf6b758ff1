"""Where a launch writes: a folder, and for a run that an object store keeps, its address as well."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ganscale.config import RunConfig
from ganscale.files import address_of, set_address
from ganscale.runtime import remote_lock, run_lock
from ganscale.runtime.planner import new_run_dir, refuse_existing
from ganscale.runtime.stopping import Stop
from ganscale.runtime.storage import ObjectStore, StorageAway, StorageError, is_uri

log = logging.getLogger(__name__)

_TRAINED = ("metrics.jsonl", "checkpoints")


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

    def has_trained(self) -> bool:
        """Whether anything lies here, or in the store, that training has made; also where the store does not say."""
        try:
            there = [*self.store.list()] if self.address is not None else []
        except (StorageError, StorageAway):
            return True
        return any(name.startswith(_TRAINED) for name in [*(path.name for path in self.run_dir.glob("*")), *there])

    def delete(self, folder: str) -> None:
        """Delete all below ``folder`` ("" is the whole run), but nothing of another launch that has the run by now."""
        if run_lock.is_ours(self.run_dir):
            shutil.rmtree(self.run_dir / folder, ignore_errors=True)
        if self.address is None:
            return
        try:
            store = self.store
            if remote_lock.is_ours(store):
                store.delete([name for name in store.list() if name.startswith(folder)])
        except (StorageError, StorageAway) as failure:
            log.warning("what this launch has left in %s is still there: %s", self.address, failure)


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
    """Hold ``place`` for this process alone, and bring a run that goes on here from its store.

    Raises UserError where another launch holds it, or has made the run that was to be a new one.
    """
    with ExitStack() as stack:
        lock = stack.enter_context(run_lock.RunLock(place.run_dir))
        stop.guard(lock.check)
        if place.resume is None:
            refuse_existing(place.run_dir)
        if place.address is not None:
            from ganscale.runtime.remote import pull, refuse_taken

            remote = stack.enter_context(remote_lock.RemoteLock(place.store))
            stop.guard(remote.check)
            if place.resume is not None:
                pull(place.address, place.run_dir, checkpoint=place.chosen)
            else:
                refuse_taken(place.address)
            set_address(place.run_dir, place.address)
        yield
