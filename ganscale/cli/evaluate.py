"""``ganscale evaluate``: distances of a run's samples to its training images, each beside its real-v-real floor.

FD is not FID: its features are those of a small CNN that was trained on those same images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ganscale.cli.group import Verb
from ganscale.cli.output import note, result, result_json, table
from ganscale.cli.params import WholeNumber, find_run, json_option, run_argument

if TYPE_CHECKING:
    from ganscale.runtime import Evaluation


@click.command(cls=Verb)
@run_argument
@click.option("--data", metavar="NAME|PATH", help="The real images to compare with (default: those of the run).")
@click.option("--metrics", metavar="NAME,...", help="Which metrics; see `ganscale list metrics`.")
@click.option("--num", metavar="N", type=WholeNumber(100), help="How many images (default: evaluate.num of the run).")
@click.option("--untrained", is_flag=True, help="Measure the run's generator with its first weights as well.")
@json_option
def evaluate(run: str, data: str | None, metrics: str | None, num: int | None, untrained: bool, as_json: bool) -> None:
    """Measure how far a run's images are from real ones.

    The real ones are of the training split, and the features those of a small CNN that was trained on that split. So
    FD is not FID: compare runs on the same data only. A generator that copies its training images scores well; ask
    `ganscale explain RUN --method membership` for that.
    """
    path = find_run(run)
    from ganscale.runtime import load

    names = tuple(name.strip() for name in metrics.split(",")) if metrics is not None else None
    found = load(path).evaluate(num=num, metrics=names, data=data, untrained=untrained)
    if as_json:
        result_json(found)
        return
    result(table(rows_of(found)))
    stamp = next(iter(found.values.values())).stamp
    note(", ".join(f"{key} {stamp[key]}" for key in ("extractor", "data", "split", "n_fake", "seed")))
    note(f"wrote {found.path}")


def rows_of(found: Evaluation) -> list[tuple[str, ...]]:
    """Return the table of an evaluation: a head, then a row a metric, beside it the untrained generator if measured."""
    first = found.untrained or {}
    rows = [("metric", "value", "spread", "real v real", *(["untrained"] if first else []), "better")]
    for name, value in found.values.items():
        spread = "" if value.spread is None else f"{value.spread:.3g}"
        untrained = [f"{first[name].value:.4g}"] if first else []
        rows.append((name, f"{value.value:.4g}", spread, f"{value.floor:.4g}", *untrained, value.better))
    return rows
