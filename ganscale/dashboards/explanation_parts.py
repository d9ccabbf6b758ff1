"""Parts of a page that shows an explanation: warnings, pictures, what moves, scores, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ganscale.dashboards.animation import MOVING
from ganscale.dashboards.enlarging import DENSITY
from ganscale.dashboards.explanation_words import BETTER, READING, alt_of, caption_of, subject_of
from ganscale.dashboards.layout import (
    BANNER,
    MARKS,
    decides,
    is_meant,
    margin_words,
    method_title,
    number,
    score_title,
    target_words,
    verdict,
)
from ganscale.dashboards.page import Html, details, figure, note, picture_array, picture_file, table, warning

if TYPE_CHECKING:
    import numpy as np

    from ganscale.explain.types import Explanation, Score

_MARGIN = (
    "A value beats its control where it is better by more than the margin: 1.96 standard errors (more where pairs are "
    "few) of what chance reaches (chance), of the mean difference from the control of the same samples (difference), "
    "or of the value (value). "
    "Without a margin a difference says nothing by itself. R² and infidelity must be better than a constant's as well."
)
_SHOWN_ELSEWHERE = ("warnings", "summary", "banner", "interim", "widest_by_rows")
_DRAWN = "timeline"  # of the cost
_MOVES = {"traversal": "walks", "counterfactuals": "pictures", "ways": "ways", "attributes": "attributes"}
_PARTS_OF_MADE = {"Options": "options", "Cost": "cost", "Versions": "versions"}


def about(explanation: Explanation) -> str:
    """Return in words what was explained."""
    return subject_of(explanation.method, explanation.meta) or target_words(explanation)


def warnings(explanation: Explanation) -> str:
    """Return what must not be overlooked: the banner where nothing was shown, and the method's own warnings."""
    said_already = explanation.meta.get("warnings", [])
    parts = [warning(str(words)) for words in said_already]
    meant = explanation.meta.get("banner", "")
    if explanation.not_better_than_random and meant:
        parts[:0] = [] if meant in said_already else [note(f"{meant[0].upper()}{meant[1:]}.")]
    elif explanation.not_better_than_random:
        parts.insert(0, warning(f"{BANNER}: a deciding score does not beat its control"))
    return "\n".join(parts)


def reading(explanation: Explanation) -> str:
    """Return a paragraph that says what the method answers and how far to trust it."""
    words = READING.get(explanation.method) or explanation.meta.get("summary", "")
    return f"<p>{escape(str(words))}</p>" if words else ""


def panel_figures(explanation: Explanation, panels: Mapping[str, np.ndarray]) -> str:
    """Return panels, drawn without their table of scores, as figures: the page has the table as text."""
    return "\n".join(
        figure(
            picture_array(pixels, alt_of(panel, explanation), density=DENSITY),
            caption_of(panel, explanation),
            kind="panel",
        )
        for panel, pixels in panels.items()
    )


def moving_part(explanation: Explanation, directory: Path) -> str:
    """Return the GIFs of ``directory``, each playing only once it is asked for; nothing where there are none."""
    title = method_title(explanation.method)
    parts = []
    for name, moving in MOVING.items():
        path = directory / f"{name}.gif"
        if path.is_file():
            alt = f"{title}, moving: {moving.caption} The panel above has the same pictures standing still."
            shown = figure(picture_file(path, alt), moving.caption, kind="panel")
            parts.append(details(f"Watch the {_MOVES[name]} move (closing this stops them)", shown))
    return "\n".join(parts)


def score_table(explanation: Explanation) -> str:
    """Return every score beside the control that was measured with it."""
    rows = [
        (
            Html(f"<b>{escape(score_title(name))}</b> (decides)") if decides(explanation, name) else score_title(name),
            number(score.value),
            margin_words(score),
            number(score.control),
            BETTER.get(score.better, score.better),
            score.n,
            said(score, is_fault=not is_meant(explanation, score)),
        )
        for name, score in explanation.scores.items()
    ]
    head = ("score", "value", "margin (95 %)", "control", "better", "n", "verdict")
    scored = table(head, rows, caption="Scores beside controls measured in the same call", numeric=(1, 2, 3, 5))
    return f"{scored}\n<p>{escape(_MARGIN)}</p>"


def said(score: Score, *, is_fault: bool = True) -> Html:
    """Return the verdict on a score, by words, and where it is good or a fault by sign and colour too."""
    if score.verdict == "no margin" or (score.verdict == "not better" and not is_fault):
        return Html(f"<span>{verdict(score)}</span>")
    kind = "good" if score.beats_control else "bad"
    return Html(f'<span class="{kind}"><span aria-hidden="true">{MARKS[score.verdict]} </span>{verdict(score)}</span>')


def said_of_all(verdict: str, meant: str = "") -> Html:
    """Return what the deciding scores of an explanation say together, by sign, words and colour.

    ``meant``: what the banner means, where it is no failure.
    """
    if verdict == "not better" and meant:
        return Html(f"<span>{escape(meant)}</span>")
    if verdict == "no margin":
        return Html("<span>no margin to judge by</span>")
    kind, words = ("good", "better than random") if verdict == "better" else ("bad", BANNER)
    return Html(f'<span class="{kind}"><span aria-hidden="true">{MARKS[verdict]} </span>{words}</span>')


def everything_made(explanation: Explanation) -> str:
    """Return request, plan, cost and versions as one table."""
    rows = [(key, _words(value)) for key, value in explanation.meta.items() if key not in _SHOWN_ELSEWHERE]
    return table(("what", "value"), rows, caption="Request, plan, cost and versions")


def made_in_parts(explanation: Explanation) -> str:
    """Return options, cost and versions as tables of their own, and one of all the rest with seed and weights' hash."""
    meta, parts = explanation.meta, []
    rest = {key: value for key, value in meta.items() if key not in (*_SHOWN_ELSEWHERE, *_PARTS_OF_MADE.values())}
    rest = {"method": explanation.method, "target": str(explanation.target), **rest}
    parts.append(table(("what", "value"), [(key, _words(value)) for key, value in rest.items()], caption="Request"))
    for title, key in _PARTS_OF_MADE.items():
        rows = [(name, _words(value)) for name, value in meta.get(key, {}).items() if name != _DRAWN]
        if rows:
            parts.append(table(("what", "value"), rows, caption=title))
    return "\n".join(parts)


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_words(entry)}" for key, entry in value.items() if key != _DRAWN)
    if isinstance(value, (list, tuple)):
        return ", ".join(_words(entry) for entry in value)
    if isinstance(value, float):
        return number(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
