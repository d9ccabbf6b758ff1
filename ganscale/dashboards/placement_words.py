"""Where and when a run happened, in words: what ``config.json`` keeps as a plan, as rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from ganscale.progress import duration

_DEVICES = {"cpu": "CPU", "cuda": "GPU (CUDA)"}
#: How workers add their gradients up, by the backend of a plan; the header of a launch says it, too.
EXCHANGES = {
    "none": "nothing to exchange",
    "gloo": "sums through shared memory, between machines by gloo",
    "nccl": "sums by nccl",
}
_MIB = 2**20
#: Key of a plan -> what it is called, and how its value is said.
_FACTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "device": ("device", lambda name: _DEVICES.get(name, str(name))),
    "backend": ("exchange of gradients", lambda name: EXCHANGES.get(name, str(name))),
    "gpus_per_worker": ("GPUs of each worker", lambda count: str(count or "none")),
    "threads": ("CPU threads of each worker", str),
    "batch": ("images in a batch, all workers", str),
    "batch_per_worker": ("images in a batch, each worker at most", str),
    "where": ("trained on", str),
    "address": ("address of Ray", str),
    "run_dir": ("run directory", str),
    "beside": ("evaluation beside training", lambda kept: _cores(kept)),
}
_ESTIMATES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "parameters": ("parameters", lambda counts: ", ".join(f"{name} {count:,}" for name, count in counts.items())),
    "memory_bytes": ("estimated memory of a worker", lambda size: f"{size / _MIB:,.0f} MiB"),
    "disk_bytes": ("estimated disk, at most", lambda size: f"{size / _MIB:,.0f} MiB"),
    "seconds": ("estimated time", duration),
}


def placement_rows(placement: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return names and values of a plan in words; what is unknown is named by its key, what is None left out."""
    rest = dict(placement)
    estimate = rest.pop("estimate", None) or {}
    workers, least = rest.pop("workers", None), rest.pop("least", None)
    if workers in (0, 1) and "backend" in rest:
        rest["backend"] = "none"
    rows = [] if workers is None else [("workers", _workers(workers, workers if least is None else least))]
    for values, known in ((rest, _FACTS), (estimate, _ESTIMATES)):
        for key, value in values.items():
            if value is not None:
                title, say = known.get(key, (key.replace("_", " "), str))
                rows.append((title, say(value)))
    return rows


def _workers(count: int, least: int) -> str:
    if count == 0:
        return "one process, without Ray"
    return str(count) if least == count else f"{least} to {count}, as many as there are places for"


def _cores(kept: int) -> str:
    return f"on {kept} core{'s' if kept > 1 else ''} of its own" if kept else "on what training leaves"


def moment(stamp: object) -> str:
    """Return an ISO 8601 time as a person reads it, in UTC where it names a zone; anything else as it is."""
    try:
        at = datetime.fromisoformat(str(stamp))
    except ValueError:
        return str(stamp)
    if at.tzinfo is None:
        return str(stamp)
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
