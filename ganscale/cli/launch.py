"""``ganscale launch``: train a GAN here or on a Ray cluster; ``--dry-run`` says what would happen, and no more."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ganscale.cli.group import Verb
from ganscale.cli.output import note, result, result_json, table
from ganscale.cli.params import Amount, WholeNumber, WorkerCount, find_run, json_option
from ganscale.cli.progress import Progress
from ganscale.errors import UserError
from ganscale.files import name_for_users

if TYPE_CHECKING:
    from ganscale.config import RunConfig
    from ganscale.runtime import Plan, Run

RECIPE = (
    click.option("--preset", metavar="NAME", help="The recipe; see `ganscale list presets`."),
    click.option("--data", metavar="NAME|PATH", help="A data set of `ganscale list datasets`, a folder or a zip."),
    click.option(
        "--gpus",
        metavar="N|MIN:MAX",
        type=WorkerCount(0),
        help="One worker on each of N GPUs; 0: none. A range: elastic.",
    ),
    click.option("--cpus", metavar="N", type=WholeNumber(1), help="Train on the CPU, on N cores in all."),
    click.option(
        "--workers",
        metavar="N|MIN:MAX",
        type=WorkerCount(0),
        help="Ray workers (default 1); 0: this process, no Ray. A range: elastic, as many as there are.",
    ),
    click.option("--name", metavar="NAME", help="Name of the run (default: that of the preset)."),
    click.option(
        "--runs-dir",
        metavar="DIR",
        default="runs",
        show_default=True,
        help="Where runs are kept: a folder, or s3://BUCKET/PREFIX.",
    ),
    click.option("--kimg", metavar="X", type=Amount(), help="Train on X thousand images in all."),
    click.option(
        "--resume",
        metavar="RUN",
        help="Go on in RUN's own directory, from its newest checkpoint (RUN/checkpoints/kimg-NNNNNN: from that one).",
    ),
    click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Change one setting; may be repeated."),
    click.option("--dry-run", is_flag=True, help="Print config, data, placement and estimates; touch nothing."),
    click.option("--verbose", is_flag=True, help="Show what Ray logs."),
)
ADDRESS = click.option("--address", metavar="ADDR", help="The Ray cluster to join (default: a local one for this run).")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    """What the command line asked for, as ``runtime.launch`` takes it."""

    config: RunConfig
    resume: Path | str | None
    placement: dict[str, Any]
    where: dict[str, Any]


def recipe_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say what is trained and on how much, which ``launch`` and ``submit`` share."""
    for option in reversed(RECIPE):
        function = option(function)
    return function


@click.command(cls=Verb)
@recipe_options
@ADDRESS
@json_option
def launch(
    preset: str | None,
    data: str | None,
    gpus: str | None,
    cpus: int | None,
    workers: str | None,
    address: str | None,
    name: str | None,
    runs_dir: str,
    kimg: float | None,
    resume: str | None,
    settings: tuple[str, ...],
    dry_run: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Train a GAN, here or on a Ray cluster."""
    from ganscale.presets import compose

    resumed = _place_to_resume(resume, runs_dir, name)
    base = None
    if resumed is not None:
        from ganscale.runtime.resume import config_to_resume

        base = config_to_resume(resumed)
    config = compose(preset, base=base, data=data, kimg=kimg, settings=settings)
    request = _Request(
        config=config,
        resume=resumed,
        placement={"workers": 1 if workers is None else workers, "gpus": gpus, "cpus": cpus, "address": address},
        where={"name": name, "runs_dir": runs_dir},
    )
    if dry_run:
        _show_plan(request, as_json=as_json)
    else:
        _train(request, verbose=verbose, as_json=as_json)


def _place_to_resume(resume: str | None, runs_dir: str, name: str | None) -> Path | str | None:
    """Return the run directory, or the checkpoint in one, that ``--resume`` names; an address stays one."""
    if resume is None:
        return None
    if name is not None:
        raise UserError("--name", "be left out beside --resume", name, "a resumed run keeps its directory and name")
    if "://" in resume:
        return resume
    if "://" in runs_dir and not Path(resume).exists():
        from ganscale.runtime.storage import child

        return child(runs_dir, resume)
    path = Path(resume)
    if path.parent.name == "checkpoints":
        find_run(str(path.parent.parent))
        return path
    return find_run(resume, runs_dir=runs_dir)


def _show_plan(request: _Request, *, as_json: bool) -> None:
    from ganscale import ops
    from ganscale.config import settings_of
    from ganscale.data import scan
    from ganscale.runtime import plan

    found = scan(request.config.data)
    placed = plan(request.config, **request.placement, **request.where, resume=request.resume)
    with ops.using(request.config.ops.impl):
        kernels = ops.describe()
    if as_json:
        facts = {"data": found.to_dict(), "plan": placed.as_dict(), "kernels": kernels}
        result_json({"config": request.config, **facts})
    else:
        result(table(settings_of(request.config)))
        result()
        result(table([*found.table(), *placed.lines().items(), ("kernels", kernels)]))
    found.check()


def _train(request: _Request, *, verbose: bool, as_json: bool) -> None:
    from ganscale.runtime import launch as start

    with Progress(request.config.train.kimg) as progress:

        def begin(plan: Plan) -> None:
            _show_header(request.config, plan)
            progress.begin()

        run = start(
            request.config,
            **request.placement,
            **request.where,
            resume=request.resume,
            on_start=begin,
            on_tick=progress,
            on_event=progress.say,
            verbose=verbose,
            command=("ganscale", *sys.argv[1:]),
        )
    if as_json:
        result_json({"run": name_for_users(run.path), **what_was_written(run.path)})
    else:
        _say_what_next(run)


def _show_header(config: RunConfig, plan: Plan) -> None:
    from ganscale import ops
    from ganscale.losses import describe_penalty
    from ganscale.models import build_critic
    from ganscale.runtime.estimate import estimate

    height, width = config.data.resolution
    counted = dataclasses.replace(plan, estimate=estimate(config, plan, measure=False))
    with ops.using(config.ops.impl):
        how = {"kernels": ops.describe(), "penalty": describe_penalty(config, build_critic(config))}
    facts = {
        "device": plan.device,
        "data": f"{config.data.path}, {height}x{width}x{config.data.channels}",
        **counted.lines(),
        **how,
    }
    for name, value in facts.items():
        if name != "time":  # the ticks will tell
            note(f"{name}: {value}")


def what_was_written(path: Path) -> dict[str, list[str]]:
    """Return the checkpoints, sample grids and other files of the run directory ``path``, by kind."""
    return {
        "checkpoints": sorted(found.name for found in (path / "checkpoints").glob("kimg-*")),
        "samples": sorted(found.name for found in (path / "samples").glob("*.png")),
        "files": sorted(found.name for found in path.iterdir() if not found.name.startswith(".")),
    }


def _say_what_next(run: Run) -> None:
    written = what_was_written(run.path)
    shown = name_for_users(run.path)
    if Path(shown).is_absolute() and Path(shown).is_relative_to(Path.cwd()):
        shown = Path(shown).relative_to(Path.cwd())
    result(f"wrote {shown}: {', '.join(written['files'])}")
    result(f"next: ganscale generate {shown}")
    result(f"      ganscale explain {shown} --method kernel-shap")
    result(f"      ganscale dashboard {shown}")
