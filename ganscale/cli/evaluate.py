"""``ganscale evaluate``: distances of a run's samples to held-out images, each beside its real-v-real floor."""

from __future__ import annotations

import click

from ganscale.cli.group import Verb
from ganscale.cli.output import note, result, result_json, table
from ganscale.cli.params import WholeNumber, find_run, json_option, run_argument


@click.command(cls=Verb)
@run_argument
@click.option("--data", metavar="NAME|PATH", help="The real images to compare with (default: those of the run).")
@click.option("--metrics", metavar="NAME,...", help="Which metrics; see `ganscale list metrics`.")
@click.option("--num", metavar="N", type=WholeNumber(100), help="How many images (default: evaluate.num of the run).")
@json_option
def evaluate(run: str, data: str | None, metrics: str | None, num: int | None, as_json: bool) -> None:
    """Measure how far a run's images are from real ones."""
    path = find_run(run)
    from ganscale.runtime import load

    names = tuple(name.strip() for name in metrics.split(",")) if metrics is not None else None
    found = load(path).evaluate(num=num, metrics=names, data=data)
    if as_json:
        result_json(found)
        return
    rows = [("metric", "value", "spread", "real v real", "better")]
    for value in found.values.values():
        spread = "" if value.spread is None else f"{value.spread:.3g}"
        rows.append((value.name, f"{value.value:.4g}", spread, f"{value.floor:.4g}", value.better))
    result(table(rows))
    stamp = next(iter(found.values.values())).stamp
    note(", ".join(f"{key} {stamp[key]}" for key in ("extractor", "split", "n_fake", "seed") if key in stamp))
