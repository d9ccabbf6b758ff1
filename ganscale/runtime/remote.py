"""Runs that are kept in an object store: their working copies on this machine, and how these come to be.

A run works in a folder below the cache, because files are written there in steps. The store gets what is finished. Who
goes on with the run, or reads it, on whatever machine, pulls what the folder lacks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import uuid
from pathlib import Path, PurePosixPath
from typing import Any

from ganscale.config import RunConfig
from ganscale.errors import CheckpointError, UserError
from ganscale.files import address_of, cache_dir, new_directory, set_address
from ganscale.runtime.mirror import Mirror, complete_checkpoints
from ganscale.runtime.run_lock import LOCK, is_locked
from ganscale.runtime.storage import ObjectStore, StorageError, child, last_name, parent

log = logging.getLogger(__name__)

CONFIG = "config.json"


def working_copy(address: str) -> Path:
    """Return the folder of this machine in which the run at ``address`` is worked on; it need not exist."""
    above = parent(address)
    readable = re.sub(r"[^A-Za-z0-9]+", "-", above.partition("://")[2].partition("?")[0]).strip("-")[:80]
    return cache_dir() / "runs" / f"{readable}-{hashlib.sha256(above.encode()).hexdigest()[:8]}" / last_name(address)


def split_address(address: str) -> tuple[str, str | None]:
    """Return the address of the run, and the name of the checkpoint where ``address`` is that of one."""
    above = parent(address)
    return (parent(above), last_name(address)) if last_name(above) == "checkpoints" else (address, None)


def read_remote_page(address: str) -> dict[str, Any]:
    """Return ``config.json`` of the run at ``address``; raises UserError where there is none."""
    try:
        return json.loads(ObjectStore(address).get(CONFIG))
    except StorageError:
        raise
    except (FileNotFoundError, ValueError):
        raise UserError("run", f"be one in the store, with a readable {CONFIG}", address, "list the bucket") from None


def open_run(address: str) -> Path:
    """Return the working copy of the run at ``address`` for reading, after pulling what it lacks."""
    address, checkpoint = split_address(address)
    run_dir = working_copy(address)
    if not is_locked(run_dir):  # else it is being trained right here, and nothing is newer
        pull(address, run_dir, checkpoint=checkpoint)
    return run_dir


def publish(run_dir: Path) -> None:
    """Send what was added to the working copy ``run_dir``; nothing to do for other folders, or while it trains here."""
    address = address_of(run_dir)
    if address is not None and not is_locked(run_dir):
        Mirror(run_dir, ObjectStore(address)).send()


def pull(address: str, run_dir: Path, *, checkpoint: str | None = None) -> None:
    """Make ``run_dir`` a working copy of the run at ``address``: all its files, and of the checkpoints the newest.

    ``checkpoint`` names another one. A working copy that is further than the store (its machine died before it had
    sent all) stays as it is. Raises UserError where there is no run; CheckpointError for a checkpoint that is missing
    or damaged, naming the object and the one before it.
    """
    store = ObjectStore(address)
    _set_foreign_aside(run_dir, read_remote_page(address))
    here, there = _newest_here(run_dir), complete_checkpoints(store)
    wanted = _choose(address, there, checkpoint)
    is_further = checkpoint is None and here is not None and (wanted is None or here >= wanted)
    _pull_files(store, run_dir, only_missing=is_further)
    if wanted is not None and not is_further:
        pull_checkpoint(store, run_dir, wanted, there)
    set_address(run_dir, address)


def pull_newest_good(address: str, run_dir: Path) -> tuple[Path | None, list[CheckpointError]]:
    """Pull as ``pull`` does; return the newest checkpoint that verifies, here or there, and the newer ones' errors."""
    from ganscale.training import checkpoint as checkpoints

    store = ObjectStore(address)
    _set_foreign_aside(run_dir, read_remote_page(address))
    here, there = _newest_here(run_dir), complete_checkpoints(store)
    _pull_files(store, run_dir, only_missing=here is not None and here >= max(there, default=""))
    set_address(run_dir, address)
    refused: list[CheckpointError] = []
    for name in sorted(there, reverse=True):
        if here is not None and here >= name:
            break
        try:
            return pull_checkpoint(store, run_dir, name, there), refused
        except CheckpointError as error:
            refused.append(error)
    good, damaged = checkpoints.newest_good(run_dir)
    return good, refused + damaged


def _pull_files(store: ObjectStore, run_dir: Path, *, only_missing: bool) -> None:
    """Bring every file that is no checkpoint's, unless it is here already, as far as sizes tell."""
    for name, entry in store.list().items():
        parts = PurePosixPath(name).parts
        if parts[0] == "checkpoints" or any(part.startswith(".") for part in parts):  # so no ".." either
            continue
        file = run_dir / name
        if file.is_file() and (only_missing or (file.stat().st_size == entry.bytes and file.suffix != ".json")):
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        store.get_file(name, file)


def pull_checkpoint(store: ObjectStore, run_dir: Path, name: str, there: set[str]) -> Path:
    """Bring one checkpoint here, verified; raises CheckpointError that names the object and offers the one before."""
    from ganscale.training import checkpoint as checkpoints

    target, prefix = run_dir / "checkpoints" / name, f"checkpoints/{name}"
    earlier = max((other for other in there if other < name), default=None)
    remedy = "there is no earlier one; start the run again under another name"
    if earlier is not None:
        remedy = f"the one before is there: ganscale launch --resume {child(store.uri, f'checkpoints/{earlier}')}"
    try:
        manifest = store.get(f"{prefix}/{checkpoints.MANIFEST}")
        if target.is_dir() and (target / checkpoints.MANIFEST).read_bytes() == manifest:
            checkpoints.verify(target)
            return target
    except (CheckpointError, FileNotFoundError):
        pass  # pulled again below
    with new_directory(target) as aside:
        try:
            store.get_file(f"{prefix}/{checkpoints.MANIFEST}", aside / checkpoints.MANIFEST)
            for file in json.loads((aside / checkpoints.MANIFEST).read_bytes())["files"]:
                store.get_file(f"{prefix}/{PurePosixPath(file).name}", aside / PurePosixPath(file).name)
            checkpoints.verify(aside)
        except CheckpointError as error:
            what, rule, got, _ = error.args
            raise CheckpointError(what.replace(str(aside), child(store.uri, prefix)), rule, got, remedy) from None
        except StorageError:  # says nothing of the checkpoint
            raise
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
            where = child(store.uri, prefix)
            raise CheckpointError(where, "be whole", f"{type(error).__name__}: {error}", remedy) from None
    return target


def new_place(config: RunConfig, runs_address: str, name: str | None) -> tuple[str, Path]:
    """Return address and working copy of a new run below ``runs_address``; raises UserError where it exists."""
    from ganscale.runtime.planner import new_run_dir

    store = ObjectStore(runs_address)
    store.check()
    taken = store.children()
    folder = working_copy(child(runs_address, "any")).parent
    run_dir = new_run_dir(config, folder, name, taken=taken)
    address = child(runs_address, run_dir.name)
    if run_dir.name in taken:
        refuse_taken(address)
    return address, run_dir


def refuse_taken(address: str) -> None:
    """Raise UserError where there is a run at ``address``; what only a launch that came to nothing left is none."""
    if any(not name.startswith(".") for name in ObjectStore(address).list()):
        remedy = f"go on with --resume {address} or use another --name"
        raise UserError(f"run {address}", "not exist yet", "one that does", remedy)


def _choose(address: str, there: set[str], checkpoint: str | None) -> str | None:
    if checkpoint is not None and checkpoint not in there:
        known = ", ".join(sorted(there)) or "none"
        raise CheckpointError("checkpoint", f"be one of {address}", checkpoint, f"it holds {known}")
    return checkpoint or max(there, default=None)


def _newest_here(run_dir: Path) -> str | None:
    from ganscale.training import checkpoint as checkpoints

    found = checkpoints.newest_good(run_dir)[0]
    return found.name if found is not None else None


def _set_foreign_aside(run_dir: Path, page: dict[str, Any]) -> None:
    """Make room where the folder holds another run, that once had this address."""
    try:
        mine = json.loads((run_dir / CONFIG).read_bytes())["created"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if mine != page.get("created"):
        aside = run_dir.with_name(f"{run_dir.name}-{uuid.uuid4().hex[:8]}")
        aside.mkdir()
        for path in run_dir.iterdir():
            if path.name != LOCK:  # which is ours
                path.rename(aside / path.name)
        log.warning("%s held an older run of the same address; it is in %s now", run_dir, aside)
