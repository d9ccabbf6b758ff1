"""Train generative adversarial networks on one machine or a cluster, and explain what they learned.

Importing the package is free: torch, Ray and TensorBoard are loaded when a name that needs them is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from ganscale import data, explain, losses, metrics, models, ops
    from ganscale.config import RunConfig
    from ganscale.presets import PRESETS
    from ganscale.runtime import Run
    from ganscale.runtime.sweep import Sweep

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "Run",
    "RunConfig",
    "__version__",
    "data",
    "explain",
    "launch",
    "load",
    "losses",
    "metrics",
    "models",
    "ops",
    "tune",
]

_HOME = {"PRESETS": "ganscale.presets", "Run": "ganscale.runtime", "RunConfig": "ganscale.config"}


def launch(
    preset: str | None = None,
    *,
    data: str | None = None,
    kimg: float | None = None,
    settings: Mapping[str, Any] | Iterable[str] = (),
    workers: int | str | tuple[int, int] = 1,
    gpus: int | str | tuple[int, int] | None = None,
    cpus: int | None = None,
    address: str | None = None,
    name: str | None = None,
    runs_dir: str | Path = "runs",
    resume: str | Path | None = None,
    on_tick: Callable[[Mapping[str, Any]], None] | None = None,
    verbose: bool = False,
) -> Run:
    """Train a GAN as the command ``ganscale launch`` does, and return the finished run.

    ``preset`` is the recipe (default: ``presets.DEFAULT_PRESET``; with ``resume`` the run's own), ``data`` a built-in
    name or a path, ``kimg`` the total training length in thousands of real images, ``settings`` dotted keys
    (``{"train.batch": 32}`` or ``["train.batch=32"]``). ``workers=0`` trains in this process without Ray,
    ``workers=(1, 4)`` with as many as find a place, which may change on the way. ``resume`` is a run directory or one
    of its checkpoints. ``on_tick`` is called with each line of ``metrics.jsonl``. Raises
    ``UserError`` before anything is started or written, ``RunFailed`` where a run could not go on.
    """
    from ganscale import runtime

    base = None
    if resume is not None:
        from ganscale.runtime.resume import config_to_resume

        base = config_to_resume(resume)
    config = _compose(preset, base=base, data=data, kimg=kimg, settings=settings)
    return runtime.launch(
        config,
        name=name,
        runs_dir=runs_dir,
        workers=workers,
        gpus=gpus,
        cpus=cpus,
        address=address,
        resume=resume,
        on_tick=on_tick,
        verbose=verbose,
    )


def tune(
    params: Iterable[str],
    *,
    preset: str | None = None,
    data: str | None = None,
    kimg: float | None = None,
    settings: Mapping[str, Any] | Iterable[str] = (),
    trials: int | None = None,
    scheduler: str = "asha",
    every_kimg: float | None = None,
    objective: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    name: str | None = None,
    runs_dir: str | Path = "runs",
    verbose: bool = False,
) -> Sweep:
    """Try variants of a recipe as the command ``ganscale tune`` does, and return the finished sweep.

    ``params`` name keys and their values (``"optim.critic.lr=log:1e-5:1e-3"``, ``"penalty.weight=1,10,100"``);
    ``trials`` is by default every combination where each key has a few values, else 8; ``scheduler`` is ``asha`` or
    ``pbt``, ``objective`` a score of ``ganscale evaluate``, ``workers`` how many trials train at a time.
    The sweep has ``trials``, ``best`` and ``best_run()``. Raises ``UserError`` before anything is started or written,
    ``RunFailed`` where no trial could be scored.
    """
    from ganscale.runtime.tune import tune as start

    return start(
        _compose(preset, data=data, kimg=kimg, settings=settings),
        tuple(params),
        trials=trials,
        scheduler=scheduler,
        every_kimg=every_kimg,
        objective=objective,
        workers=workers,
        address=address,
        name=name,
        runs_dir=runs_dir,
        verbose=verbose,
    )


def _compose(preset: str | None, *, data: str | None, kimg: float | None, **more: Any) -> RunConfig:
    """Return what ``presets.compose`` does, or raise its error in the words of a call."""
    from ganscale.errors import ConfigError, in_python
    from ganscale.presets import compose

    try:
        return compose(preset, data=data, kimg=kimg, **more)
    except ConfigError as error:
        passed = {"train.kimg": ("kimg", kimg), "data.path": ("data", data)}
        raise in_python(error, {key: name for key, (name, value) in passed.items() if value is not None}) from None


def load(path: str | Path) -> Run:
    """Open the run directory ``path`` (as ``runs/demo``); raises ``UserError`` where it is none."""
    from ganscale import runtime

    return runtime.load(path)


def __getattr__(name: str) -> Any:
    """Load the module that holds ``name`` on first use (PEP 562), and remember what it gave."""
    if name not in __all__:
        raise AttributeError(f"module 'ganscale' has no attribute {name!r}")
    home = _HOME.get(name)
    value = (
        importlib.import_module(f"ganscale.{name}") if home is None else getattr(importlib.import_module(home), name)
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
