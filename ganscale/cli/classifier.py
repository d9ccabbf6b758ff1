"""``ganscale classifier``: train a small classifier on a data set, keep it, and say how good it is."""

from __future__ import annotations

from pathlib import Path

import click

from ganscale.cli.group import Verb
from ganscale.cli.output import note, result, result_json, table
from ganscale.cli.params import WholeNumber, json_option


@click.command(cls=Verb)
@click.option("--data", metavar="NAME|PATH", help="The labelled images (default: those of the default preset).")
@click.option("--out", metavar="DIR", help="Save it in this new directory too (it is kept in the cache anyway).")
@click.option("--seed", type=WholeNumber(0), default=0, show_default=True, help="Seed of weights and batches.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="A data.* key; may be repeated.")
@json_option
def classifier(data: str | None, out: str | None, seed: int, settings: tuple[str, ...], as_json: bool) -> None:
    """Train a classifier on labelled images, and say how good it is."""
    from ganscale.presets import compose

    config = compose(data=data, settings=settings).data
    from ganscale.runtime.classifiers import accuracy_by_class, train_classifier_of

    network, dataset = train_classifier_of(config, out=Path(out) if out else None, seed=seed, say=note)
    shares = accuracy_by_class(network, config)
    if as_json:
        facts = {"data": dataset.name, "held_out_accuracy": network.held_out_accuracy, "objective": network.objective}
        more = {"classes": shares, "recipe": network.recipe, "sha256": network.sha256, "saved": out}
        result_json(facts | more)
        return
    if shares:
        result(table([("class", "held-out accuracy"), *((name, f"{share:.3f}") for name, share in shares.items())]))
    learned = "" if network.objective == "classes" else " of quarter turns, as the data has no labels"
    result(f"held-out accuracy{learned} {network.held_out_accuracy:.3f}, weights {network.sha256[:12]}")
    if out:
        note(f"wrote {out}")
    note(f"next: ganscale explain RUN --method kernel-shap --target class:0 --classifier {out or config.path}")
