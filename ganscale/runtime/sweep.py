"""``sweep.json``: what a sweep tries, how far each trial is, and the best. One writer, whole or not at all."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ganscale.config import RunConfig, from_mapping, override
from ganscale.errors import UserError
from ganscale.files import replace_text

if TYPE_CHECKING:
    from ganscale.runtime.run import Run

SCHEMA = 1
PAGE = "sweep.json"
OBJECTIVES = {
    "fd": "lower",
    "kd": "lower",
    "precision": "higher",
    "recall": "higher",
    "density": "higher",
    "coverage": "higher",
    "modes-hit": "higher",
    "within-4-sigma": "higher",
    "spread": "lower",
    "worst-spread": "lower",
}
OF_POINTS = ("modes-hit", "within-4-sigma", "spread", "worst-spread")
WAITING, STOPPED, DONE, FAILED = "waiting", "stopped", "done", "failed"


@dataclass(kw_only=True, slots=True)
class Trial:
    """One trial: its run directory's name, its settings now, and each score with the settings that led to it."""

    name: str
    settings: dict[str, Any]
    scores: list[dict[str, Any]] = field(default_factory=list)  # images, value, settings, copied_from
    state: str = WAITING
    words: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in (STOPPED, DONE, FAILED)

    @property
    def last(self) -> float | None:
        """The newest score."""
        return self.scores[-1]["value"] if self.scores else None

    @property
    def images(self) -> int:
        """How far it was scored."""
        return self.scores[-1]["images"] if self.scores else 0


@dataclass(kw_only=True, slots=True)
class Sweep:
    """A sweep below ``path``; every trial is an ordinary run directory in it."""

    path: Path
    config: RunConfig  # what all trials share
    params: dict[str, str]  # key -> as --param gives it
    scheduler: str
    objective: str
    better: str  # lower or higher
    milestones: list[int]  # images
    cpus: int  # of a trial
    gpus: int
    at_once: int
    created: str
    trials: list[Trial]

    @property
    def best(self) -> Trial | None:
        """The trial whose newest score is the best one, of those that did not fail; None where none was scored.

        A trial that went further counts first: a score after more images is another thing.
        """
        scored = [trial for trial in self.trials if trial.state != FAILED and trial.last is not None]
        furthest = max((trial.images for trial in scored), default=0)
        # a batch may overshoot a milestone: who passed the same one went equally far
        reached = max((at for at in self.milestones if at <= furthest), default=0)
        sign = -1.0 if self.better == "lower" else 1.0
        return max((t for t in scored if t.images >= reached), key=lambda t: sign * t.last, default=None)

    def best_run(self) -> Run:
        """Open the run of the best trial; raises UserError where no trial was scored."""
        from ganscale.runtime.run import Run

        if self.best is None:
            raise UserError("the sweep", "hold a trial that was scored", f"none in {self.path}", "look into its trials")
        return Run(self.path / self.best.name)

    @property
    def is_over(self) -> bool:
        """Whether every trial is."""
        return all(trial.is_over for trial in self.trials)

    def run_config(self, settings: dict[str, Any]) -> RunConfig:
        """Return the config of a trial with these settings; it trains where Tune has put it."""
        return override(self.config, {**settings, "runtime.address": None})

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        page = {name: getattr(self, name) for name in _PLAIN}
        best = self.best
        return {
            "schema": SCHEMA,
            **page,
            "config": self.config.model_dump(mode="json"),
            "trials": [asdict(trial) for trial in self.trials],
            "best": None if best is None else {"trial": best.name, "images": best.images, "value": best.last},
        }

    def write(self) -> None:
        """Bring ``sweep.json`` up to date."""
        replace_text(self.path / PAGE, json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n")


_PLAIN = tuple(f.name for f in fields(Sweep) if f.name not in ("path", "config", "trials"))


def read_sweep(path: Path) -> Sweep:
    """Read the sweep in the folder ``path``; raises UserError where there is none."""
    path = Path(path).absolute()
    try:
        page = json.loads((path / PAGE).read_text())
        if page["schema"] != SCHEMA:
            raise UserError(str(path / PAGE), f"have schema {SCHEMA}", page["schema"], "use the ganscale that wrote it")
        known = {name: page[name] for name in _PLAIN}
        trials = [Trial(**trial) for trial in page["trials"]]
        return Sweep(path=path, config=from_mapping(page["config"]), trials=trials, **known)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError("--resume", f"be a sweep (it holds {PAGE})", str(path), "look into runs/") from None


def trial_name(index: int) -> str:
    """Return the name of trial ``index``, which is that of its run directory."""
    return f"trial-{index:03d}"
