"""The report's section of explanations: each with its panels, its scores beside their controls, and how to read it."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ganscale.dashboards.comparison import comparison_figures
from ganscale.dashboards.explanation_parts import (
    about,
    everything_made,
    moving_part,
    panel_figures,
    reading,
    score_table,
    warnings,
)
from ganscale.dashboards.layout import method_title
from ganscale.dashboards.page import details, note
from ganscale.dashboards.panels import read_panels
from ganscale.dashboards.run_facts import RunFacts

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation


def explanations_section(facts: RunFacts) -> str:
    """Return every explanation of the run, or what to call where there is none."""
    if not facts.explanations:
        command = f"ganscale explain {facts.name_for_commands} --method integrated-gradients"
        return note("This run was not explained yet.", command)
    folder = facts.path / "explanations"
    parts = [_explanation(folder / name, explanation) for name, explanation in facts.explanations]
    return "\n".join(filter(None, [comparison_figures(folder), *parts]))


def _explanation(directory: Path, explanation: Explanation) -> str:
    key = f"x-{escape(directory.name)}"
    parts = [
        f'<article aria-labelledby="{key}"><h3 id="{key}">{escape(method_title(explanation.method))}</h3>',
        f'<p class="lead">{escape(directory.name)}: explains {escape(about(explanation))}.</p>',
        warnings(explanation),
        reading(explanation),
        panel_figures(explanation, read_panels(explanation, directory)),
        moving_part(explanation, directory),
        score_table(explanation),
        details("How it was made", everything_made(explanation)),
        "</article>",
    ]
    return "\n".join(part for part in parts if part)
