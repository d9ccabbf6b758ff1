"""The report's section of explanations: a list of all, and each with its panels, scores and controls, opened on demand.

Of several explanations of the same by one method the newest whole one is shown; the others are linked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ganscale.dashboards.comparison import comparison_figures
from ganscale.dashboards.explanation_index import INDEX
from ganscale.dashboards.explanation_page import PAGE
from ganscale.dashboards.explanation_parts import (
    about,
    everything_made,
    moving_part,
    panel_figures,
    reading,
    said_of_all,
    score_table,
    warnings,
)
from ganscale.dashboards.layout import decides, method_title, number, score_title
from ganscale.dashboards.page import details, link, note
from ganscale.dashboards.panels import read_panels
from ganscale.dashboards.run_facts import RunFacts

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

MOST_OPEN = 6  # more than these are closed at first
_CHOOSES = ("of", "by", "map", "network", "layer", "layers", "judge", "assess")  # options that say what is looked at


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shown:
    """An explanation that is shown in full, and the names of those that it stands for."""

    name: str
    explanation: Explanation
    title: str
    others: list[tuple[str, Explanation]]


def explanations_section(facts: RunFacts) -> str:
    """Return every explanation of the run, or what to call where there is none."""
    if not facts.explanations:
        command = f"ganscale explain {facts.name_for_commands} --method integrated-gradients"
        return note("This run was not explained yet.", command)
    folder = facts.path / "explanations"
    shown = _chosen(facts.explanations)
    index = link(f"explanations/{INDEX}", "All explanations of this run, with their pictures")
    entries = "".join(
        f"<li>{link(f'#x-{one.name}', one.title)}<small>{_score(one.explanation)}</small>"
        f"{_verdict(one.explanation)}</li>"
        for one in shown
    )
    parts = [f'<p>{index}</p>\n<ul class="methods" aria-label="Explanations below">{entries}</ul>']
    parts.append(comparison_figures(folder))
    parts += [_explanation(folder, one, is_open=len(shown) <= MOST_OPEN) for one in shown]
    return "\n".join(filter(None, parts))


def _chosen(explanations: Sequence[tuple[str, Explanation]]) -> list[_Shown]:
    """Return the newest whole explanation of each method, target and choice; ``explanations`` are oldest first."""
    groups: dict[tuple[str, ...], list[tuple[str, Explanation]]] = {}
    for name, explanation in explanations:
        groups.setdefault((explanation.method, *_choice(explanation)), []).append((name, explanation))
    shown = []
    for (method, *choice), members in groups.items():
        whole = [member for member in members if not member[1].meta.get("interim")]
        name, explanation = (whole or members)[-1]
        siblings = [other[1:] for other in groups if other[0] == method]
        differs = [words for words, *same in zip(choice, *siblings, strict=True) if len(set(same)) > 1 and words]
        title = ": ".join(filter(None, (method_title(method), ", ".join(differs))))
        others = [member for member in members if member[0] != name]
        shown.append(_Shown(name=name, explanation=explanation, title=title, others=others))
    return shown


def _choice(explanation: Explanation) -> list[str]:
    options = explanation.meta.get("options", {})
    return [str(explanation.target), *(f"{key} {options[key]}" if key in options else "" for key in _CHOOSES)]


def _explanation(folder: Path, one: _Shown, *, is_open: bool) -> str:
    directory, explanation = folder / one.name, one.explanation
    key = escape(one.name)
    own = link(f"explanations/{one.name}/{PAGE}", "a page of its own")
    summary = f'<h3 id="h-{key}">{escape(one.title)}</h3> <small>{_score(explanation)}</small>{_verdict(explanation)}'
    parts = [  # the anchor lies inside, so that a link to it opens what is closed
        f'<details class="explanation"{" open" if is_open else ""}><summary>{summary}</summary>',
        f'<article id="x-{key}" aria-labelledby="h-{key}">',
        f'<p class="lead">{key}: explains {escape(about(explanation))}. It has {own}.</p>',
        _others(one),
        warnings(explanation),
        reading(explanation),
        panel_figures(explanation, read_panels(explanation, directory)),
        moving_part(explanation, directory),
        score_table(explanation),
        details("How it was made", everything_made(explanation)),
        "</article></details>",
    ]
    return "\n".join(part for part in parts if part)


def _others(one: _Shown) -> str:
    linked = [f"{link(f'explanations/{name}/{PAGE}', name)} ({_score(other)})" for name, other in one.others]
    return f"<p>The same, explained at other times: {'; '.join(linked)}.</p>" if linked else ""


def _score(explanation: Explanation) -> str:
    """Return the first of the scores that decide, beside its control."""
    name = next(name for name in explanation.scores if decides(explanation, name))
    score = explanation.scores[name]
    return escape(f"{score_title(name)} {number(score.value)}, control {number(score.control)}")


def _verdict(explanation: Explanation) -> str:
    said = said_of_all(explanation.verdict, explanation.meta.get("banner", ""))
    interim = explanation.meta.get("interim")
    more = f" <small>{escape(str(interim))}</small>" if interim else ""
    return f" {said}{more}"
