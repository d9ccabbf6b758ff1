"""``ganscale list``: what can be named on the command line, a line each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import click

from ganscale.cli.group import Verb
from ganscale.cli.output import result, result_json, table
from ganscale.cli.params import Name, json_option


def _presets() -> dict[str, str]:
    from ganscale.presets import DEFAULT_PRESET, PRESETS

    lines = {}
    for name, build in PRESETS.items():
        config = build()
        objective = config.loss.name + (f" + {config.penalty.name}" if config.penalty.name != "none" else "")
        networks = " and ".join(dict.fromkeys((config.model.generator, config.model.critic)))
        size = "x".join(map(str, (config.data.channels, *config.data.resolution)))
        default = " (the default)" if name == DEFAULT_PRESET else ""
        lines[name] = f"{networks}, {objective}, {config.data.path} at {size}, {config.train.kimg:g} kimg{default}"
    return lines


def _losses() -> dict[str, str]:
    from ganscale.losses import ADVERSARIAL, AUTOENCODING

    return {**_summaries(ADVERSARIAL), **AUTOENCODING}


def _penalties() -> dict[str, str]:
    from ganscale.losses import PENALTIES

    return {"none": "no gradient penalty", **_summaries(PENALTIES)}


def _models() -> dict[str, str]:
    from ganscale.models import MODELS

    return _summaries(MODELS)


def _datasets() -> dict[str, str]:
    from ganscale.data import DATASETS

    return _summaries(DATASETS)


def _explainers() -> dict[str, str]:
    from ganscale.explain import EXPLAINERS

    return _summaries(EXPLAINERS)


def _metrics() -> dict[str, str]:
    from ganscale.metrics import METRICS

    return _summaries(METRICS)


KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "presets": _presets,
    "losses": _losses,
    "penalties": _penalties,
    "models": _models,
    "datasets": _datasets,
    "explainers": _explainers,
    "metrics": _metrics,
}


def _summaries(registry: Mapping[str, object]) -> dict[str, str]:
    lines = {name: _summary(entry) for name, entry in registry.items()}
    # a docstring that names its subject first would say the name twice
    return {name: line.removeprefix(name).lstrip(",: ") for name, line in lines.items()}


def _summary(entry: object) -> str:
    """Return an entry's ``summary``, or the first sentence of its docstring."""
    summary = getattr(entry, "summary", None)
    text = summary if isinstance(summary, str) else inspect.getdoc(entry) or ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


@click.command("list", cls=Verb)
@click.argument("kind", metavar="KIND", type=Name("kind", KINDS))
@json_option
def list_names(kind: str, as_json: bool) -> None:
    """Name the presets, losses, models and so on.

    KIND is one of presets, losses, penalties, models, datasets, explainers, metrics.
    """
    lines = KINDS[kind]()
    if as_json:
        result_json(lines)
    else:
        result(table(list(lines.items())))
