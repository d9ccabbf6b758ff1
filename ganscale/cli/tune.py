"""``ganscale tune``: a sweep over configuration keys; trials are ordinary runs, the best one can be gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ganscale.cli.group import Verb
from ganscale.cli.output import note, result, result_json, show_table
from ganscale.cli.params import Amount, Name, WholeNumber, json_option
from ganscale.errors import UserError

if TYPE_CHECKING:
    from ganscale.runtime.sweep import Sweep, Trial


@click.command(cls=Verb)
@click.option("--preset", metavar="NAME", help="The recipe that is varied; see `ganscale list presets`.")
@click.option("--data", metavar="NAME|PATH", help="A data set of `ganscale list datasets`, a folder or a zip.")
@click.option(
    "--param",
    "params",
    metavar="KEY=VALUES",
    multiple=True,
    help="A key to vary: KEY=log:1e-5:1e-3, uniform:0:1, int:1:5, or 1,10,100. May be repeated.",
)
@click.option(
    "--trials", metavar="N", type=WholeNumber(0), help="How many variants (default: every combination, or 8)."
)
@click.option(
    "--scheduler",
    metavar="NAME",
    type=Name("--scheduler", ("asha", "pbt")),
    help="asha (default): the worse ones end early; pbt: they copy better ones and go on.",
)
@click.option("--kimg", metavar="X", type=Amount(), help="Length of a whole trial, in thousands of images.")
@click.option("--every", metavar="X", type=Amount(), help="asha: kimg to the first score; pbt: between two scores.")
@click.option("--objective", metavar="NAME", help="The score: fd (default), recall, within-4-sigma, fd:min, ...")
@click.option("--workers", metavar="N", type=WholeNumber(1), help="Trials at a time, one worker each (default: all).")
@click.option("--address", metavar="ADDR", help="The Ray cluster to join; trials need a folder that all nodes share.")
@click.option("--name", metavar="SWEEP", help="Name of the sweep (default: sweep-PRESET).")
@click.option("--runs-dir", metavar="DIR", help="The folder where runs are kept (default: runs).")
@click.option("--resume", metavar="SWEEP", help="Go on with a sweep; nothing that was scored is trained again.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Change one setting of all trials.")
@click.option("--verbose", is_flag=True, help="Show what Ray logs.")
@json_option
def tune(resume: str | None, runs_dir: str | None, verbose: bool, as_json: bool, **asked: Any) -> None:
    """Search for better settings in many short runs."""
    watch = {"on_start": _begin, "on_score": _say, "verbose": verbose}
    if resume is not None:
        _refuse_beside_resume(asked)
        from ganscale.runtime.tune import resume_sweep

        sweep = resume_sweep(_find_sweep(resume, runs_dir or "runs"), **watch)
    else:
        from ganscale.presets import compose
        from ganscale.runtime.tune import tune as start

        config = compose(asked["preset"], data=asked["data"], kimg=asked["kimg"], settings=asked["settings"])
        sweep = start(
            config,
            asked["params"],
            trials=asked["trials"],
            scheduler=asked["scheduler"] or "asha",
            every_kimg=asked["every"],
            objective=asked["objective"],
            workers=asked["workers"],
            address=asked["address"],
            name=asked["name"],
            runs_dir=runs_dir or "runs",
            **watch,
        )
    if as_json:
        result_json({"sweep": sweep.path, **sweep.as_dict(), "next": next_command(sweep)})
    else:
        show_table(rows_of(sweep))
        result(f"next: {next_command(sweep)}")


def _refuse_beside_resume(asked: dict[str, Any]) -> None:
    given = [name for name, value in asked.items() if value not in (None, ())]
    if given:
        option = {"params": "--param", "settings": "--set"}.get(given[0], f"--{given[0]}")
        raise UserError(option, "be left out beside --resume", "it", "a resumed sweep keeps what it was begun with")


def _find_sweep(text: str, runs_dir: str) -> Path:
    return next((path for path in (Path(text), Path(runs_dir) / text) if path.is_dir()), Path(text))


def _begin(sweep: Sweep) -> None:
    going = sum(not trial.is_over for trial in sweep.trials)
    note(f"sweep: {sweep.path}")
    note(f"trials: {going} of {len(sweep.trials)}, {sweep.at_once} at a time, {sweep.scheduler} by {sweep.objective}")
    note(f"scored at: {', '.join(f'{images / 1000:g}' for images in sweep.milestones)} kimg")


def _say(sweep: Sweep, trial: Trial) -> None:
    if trial.words:
        note(f"{trial.name} failed: {trial.words}")
        return
    best = sweep.best
    more = "" if best is trial or best is None else f" (best {best.last:.4g}, {best.name})"
    note(f"{trial.name} at {trial.images / 1000:g} kimg: {sweep.objective} {trial.last:.4g}{more}")


def rows_of(sweep: Sweep) -> list[tuple[str, ...]]:
    """Return the table of a sweep: a head, then a row a trial, the best first and those that failed last."""
    sign = 1.0 if sweep.better == "lower" else -1.0
    best = sweep.best

    def order(trial: Trial) -> tuple[Any, ...]:
        scored = trial.last is not None and trial.state != "failed"
        return (trial is not best, not scored, -trial.images, sign * trial.last if scored else 0.0, trial.name)

    seeds = ["train.seed"] if any("train.seed" in trial.settings for trial in sweep.trials) else []
    keys = list(dict.fromkeys([*sweep.params, *seeds]))
    rows = [("trial", "state", "kimg", sweep.objective, *keys)]
    for trial in sorted(sweep.trials, key=order):
        score = "" if trial.last is None else f"{trial.last:.4g}"
        values = (trial.settings.get(key, sweep.config.train.seed) for key in keys)  # only a seed may be that of all
        shown = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)
        rows.append((trial.name, trial.state, f"{trial.images / 1000:g}", score, *shown))
    return rows


def next_command(sweep: Sweep) -> str:
    """Return the command that goes on with the best trial."""
    best, folder = sweep.best, sweep.path
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    return f"ganscale launch --resume {shown / best.name} --kimg {2 * sweep.milestones[-1] / 1000:g}"
