"""One page for one explanation: an HTML file that holds its pictures and numbers and needs no network and no script."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ganscale.dashboards.cost_part import cost_part
from ganscale.dashboards.explanation_parts import (
    about,
    made_in_parts,
    moving_part,
    panel_figures,
    reading,
    score_table,
    warnings,
)
from ganscale.dashboards.explanation_words import BETTER
from ganscale.dashboards.layout import decides, method_title, number, score_title, verdict
from ganscale.dashboards.page import code, details, document, link, section, table
from ganscale.dashboards.thumbnails import write_thumbnail
from ganscale.files import replace_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from ganscale.explain.types import Explanation

PAGE = "explanation.html"


def write_explanation_page(
    explanation: Explanation,
    directory: str | Path,
    name: str | None = None,
    panels: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write ``directory/explanation.html``, and the small picture that stands for it in the index; return its path.

    ``directory`` holds the walks' GIF already where there is one. ``name`` is what the directory will be called, where
    it is still a temporary one. ``panels`` are those of ``draw_panels``; without them those in ``directory`` are shown.
    """
    from ganscale.dashboards.panels import read_panels

    directory = Path(directory)
    panels = read_panels(explanation, directory) if panels is None else panels
    write_thumbnail(panels, directory)
    target = directory / PAGE
    replace_text(target, render(explanation, directory, name or directory.name, panels))
    return target


def render(explanation: Explanation, directory: Path, name: str, panels: Mapping[str, np.ndarray]) -> str:
    """Return the page as text; ``panels`` are those without scores."""
    pictures = panel_figures(explanation, panels) + "\n" + moving_part(explanation, directory)
    sections = {
        "Answer": reading(explanation),
        "Pictures": pictures.strip(),
        "Scores": score_table(explanation),
        "Cost": cost_part(explanation),
        "Making": _making(explanation, name),
    }
    titles = {"Answer": "What it answers", "Cost": "What it cost", "Making": "How it was made"}
    shown = {key: text for key, text in sections.items() if text}
    contents = [link(f"#{key.lower()}", titles.get(key, key)) for key in shown]
    title = method_title(explanation.method)
    run = explanation.meta.get("run")
    head = (
        f'<header><nav aria-label="This run">{link("../index.html", "All explanations of this run")}</nav>\n'
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(name)} explains {escape(about(explanation))}'
        f"{escape(_whose(run))}.</p>\n{_cards(explanation)}\n{warnings(explanation)}\n"
        f'<nav aria-label="Contents"><ul>{"".join(f"<li>{a}</li>" for a in contents)}</ul></nav></header>'
    )
    body = "\n".join(section(key.lower(), titles.get(key, key), text) for key, text in shown.items())
    version = explanation.meta.get("versions", {}).get("ganscale", "")
    foot = f"<footer>Written by ganscale {escape(str(version))}</footer>"
    where = f" · {run['name']}" if run else ""
    return document(f"{title} · {name}{where}", f'{head}\n<main id="main">\n{body}\n</main>\n{foot}')


def _whose(run: dict[str, Any] | None) -> str:
    return "" if run is None else f", of the run {run['name']} after {run['images'] / 1000:g} kimg"


def _cards(explanation: Explanation) -> str:
    """Return the deciding scores in large, each beside its control."""
    cards = "".join(
        f'<div class="card"><dt>{escape(score_title(name))}</dt><dd>{number(score.value)}'
        f"<small>control {number(score.control)}, {BETTER.get(score.better, score.better)} is better; "
        f"{verdict(score)}</small></dd></div>"
        for name, score in explanation.scores.items()
        if decides(explanation, name)
    )
    return f'<dl class="cards">{cards}</dl>'


def _making(explanation: Explanation, name: str) -> str:
    kept = [
        (
            f"{group}: {key}",
            " × ".join(map(str, tensor.shape)) or "one number",
            str(tensor.dtype).removeprefix("torch."),
        )
        for group, tensors in (("values", explanation.values), ("inputs", explanation.inputs))
        for key, tensor in sorted(tensors.items())
    ]
    numbers = table(("what", "shape", "type"), kept, caption="Tensors in values.safetensors")
    load = code(f'Explanation.load("explanations/{name}")')
    return (
        f"<p>All numbers lie beside this page, in {code('values.safetensors')} and {code('explanation.json')}; "
        f"in Python, {load} of {code('ganscale.explain')} reads them from the run's directory.</p>\n"
        + details("Options, seed, weights, cost and versions", made_in_parts(explanation))
        + details(f"{len(kept)} tensors", numbers)
    )
