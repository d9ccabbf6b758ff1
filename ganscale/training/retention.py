"""Which checkpoint is the best one, by the scores that evaluations of the run have written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ganscale.training.checkpoint import names

READING = ".ray/reading"  # below the run directory, while a launch is under way: the checkpoint that is being evaluated


def spared(run_dir: Path, score: str | None, *, among: Iterable[str] | None = None) -> set[str]:
    """Return the names of the checkpoints to keep besides the newest: the best, and one that is being evaluated."""
    best = best_checkpoint(run_dir, score, among=among)
    return {best} - {None} | being_evaluated(run_dir)


def being_evaluated(run_dir: Path) -> set[str]:
    """Return the name of the checkpoint that an evaluation looks at right now, if there is one: it may be the best."""
    try:
        return {(run_dir / READING).read_text()}
    except OSError:
        return set()


def best_checkpoint(run_dir: Path, score: str | None, *, among: Iterable[str] | None = None) -> str | None:
    """Return the name of the checkpoint with the best ``score`` ("fd", "recall", ...), of those that are there.

    ``among`` names the candidates where they are elsewhere. Read from ``evaluations/kimg-*.json``. Only values measured
    in one way compare, so the newest evaluation's stamp decides which ones count. Equal scores: the newer one. None
    where no candidate has been evaluated by ``score``.
    """
    if score is None:
        return None
    candidates = [path.name for path in names(run_dir / "checkpoints")] if among is None else sorted(among)
    found = [(name, _entry(run_dir / "evaluations" / f"{name}.json", score)) for name in candidates]
    rated = [(name, entry) for name, entry in found if entry is not None]
    if not rated:
        return None
    reference = rated[-1][1]
    sign = -1.0 if reference["better"] == "lower" else 1.0
    comparable = [(name, entry) for name, entry in rated if entry["stamp"] == reference["stamp"]]
    return max(comparable, key=lambda pair: (sign * pair[1]["value"], pair[0]))[0]


def discard_evaluations(run_dir: Path, name: str) -> None:
    """Delete the evaluations of the checkpoints after ``name``: the run goes over that ground again."""
    for path in (run_dir / "evaluations").glob("kimg-*.json"):
        if path.name.removesuffix(".json") > name:
            path.unlink()


def score_name(label: str) -> str:
    """Return the name by which ``checkpoint.keep_best`` knows a score: "FD (in-domain CNN)" is ``fd``."""
    return label.partition(" (")[0].lower().replace(" ", "-")


def _entry(path: Path, score: str) -> dict[str, Any] | None:
    """Return the value of ``score`` in the evaluation at ``path`` with its stamp, or None: a file may be of any age."""
    try:
        values = json.loads(path.read_text())["values"]
        entry = next(entry for label, entry in values.items() if score_name(label) == score)
        return {"value": float(entry["value"]), "better": entry["better"], "stamp": entry["stamp"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return None
