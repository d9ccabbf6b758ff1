"""``ganscale list``: what can be named on the command line, a line each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import click

from ganscale.cli.group import Verb
from ganscale.cli.output import result, result_json, table
from ganscale.cli.params import Name, json_option
from ganscale.errors import UserError


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


OPTIONS = "options"
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


def options_of(method: str) -> dict[str, dict[str, Any]]:
    """Return what ``ganscale explain --method METHOD --set`` takes: name -> default, values, description.

    Raises ExplainOptionError for an unknown method.
    """
    from ganscale.explain import EXPLAINERS, find_explainer

    schema = find_explainer(method, EXPLAINERS).Options.model_json_schema()["properties"]
    return {
        name: {"default": entry["default"], "values": _values(entry), "description": entry.get("description", "")}
        for name, entry in schema.items()
    }


def _values(schema: Mapping[str, Any]) -> str:
    """Return in words what a JSON schema allows."""
    if "anyOf" in schema:
        return ", ".join(map(_values, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(schema.get("enum", [schema.get("const")]))
    if schema["type"] not in ("integer", "number"):
        return {"boolean": "true, false", "array": "numbers, with commas between"}.get(schema["type"], "a name")
    low, high = _bound(schema, "Minimum", "above"), _bound(schema, "Maximum", "below")
    if low and high:
        return f"{low} to {high}"
    return f"{low} or more" if "minimum" in schema else low or high or "a number"


def _bound(schema: Mapping[str, Any], which: str, words: str) -> str:
    if f"exclusive{which}" in schema:
        return f"{words} {schema[f'exclusive{which}']:.12g}"
    return f"{schema[which.lower()]:.12g}" if which.lower() in schema else ""


def _shown(default: Any) -> str:
    if isinstance(default, (list, tuple)):
        return ",".join(f"{number:g}" for number in default) or "none"
    return str(default).lower() if isinstance(default, bool) else str(default)


@click.command("list", cls=Verb)
@click.argument("kind", metavar="KIND", type=Name("kind", (*KINDS, OPTIONS)))
@click.argument("method", metavar="[METHOD]", required=False)
@json_option
def list_names(kind: str, method: str | None, as_json: bool) -> None:
    """Name the presets, losses, models and so on.

    KIND is one of presets, losses, penalties, models, datasets, explainers, metrics; or options, of the METHOD behind
    it: what `ganscale explain --method METHOD --set` takes.
    """
    if (method is not None) != (kind == OPTIONS):
        rule = "be given behind options" if kind == OPTIONS else f"not be given behind {kind}"
        raise UserError("METHOD", rule, method, "for example ganscale list options kernel-shap")
    if kind == OPTIONS:
        found = options_of(method)
        head = ("option", "default", "values", "what it is")
        rows = [
            (name, _shown(entry["default"]), entry["values"], entry["description"]) for name, entry in found.items()
        ]
    else:
        found = KINDS[kind]()
        head, rows = None, list(found.items())
    if as_json:
        result_json(found)
    else:
        result(table(rows if head is None else [head, *rows]))
