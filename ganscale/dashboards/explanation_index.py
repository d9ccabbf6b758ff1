"""The index of a run's explanations: one row each, with picture, target, deciding score and a link to its page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ganscale.dashboards.comparison import comparison_figures, write_comparisons
from ganscale.dashboards.explanation_page import PAGE
from ganscale.dashboards.explanation_parts import said_of_all
from ganscale.dashboards.explanation_words import subject_of
from ganscale.dashboards.layout import BANNER, method_title, number, score_title
from ganscale.dashboards.page import Html, document, link, note, picture_file, section, table
from ganscale.dashboards.thumbnails import THUMBNAIL
from ganscale.errors import RunFailed
from ganscale.files import is_full_disk, replace_text

INDEX = "index.html"
RECORD = "all.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """What ``explanation.json`` says."""

    directory: Path
    page: dict[str, Any]

    @property
    def title(self) -> str:
        return method_title(self.page["method"])

    @property
    def meta(self) -> dict[str, Any]:
        return self.page["meta"]


def write_index(explanations: str | Path) -> Path | None:
    """Write ``explanations/index.html`` over all directories there are and return its path; None where there is none.

    Explanations that cannot be read are named on the page. Raises RunFailed, once it is written, where the maps side
    by side cannot be drawn.
    """
    folder = Path(explanations)
    directories = sorted(path for path in folder.glob("[!.]*") if path.is_dir())
    if not directories:
        return None
    entries, damaged, maps, failure = [], [], [], None
    for directory in directories:
        try:
            page = json.loads((directory / "explanation.json").read_text(encoding="utf-8"))
            entry = _Entry(directory=directory, page=page)
            row = _row(entry)
            if "weighs" in entry.meta:
                images = int(entry.meta.get("run", {}).get("images", 0))
                maps.append((entry, images, str(page["tensors"]["sha256"])))
            entries.append((entry, row))  # last: what raises is listed as damaged alone
        except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
            damaged.append(directory.name)
    lost = [f"{name} cannot be read and is left out." for name in damaged]
    try:
        write_comparisons(folder, _comparable(maps))
    except Exception as error:  # the list is not given up for a picture
        if is_full_disk(error):
            raise
        failure = error
        lost.append(f"The maps side by side cannot be drawn: {type(error).__name__}: {error}")
    target = folder / INDEX
    replace_text(target, _render(folder, entries, lost))
    if failure is not None:
        raise RunFailed(f"{target} is written. {lost[-1]}") from failure
    return target


def _comparable(maps: list[tuple[_Entry, int, str]]) -> dict[str, str]:
    """Return the maps of the newest checkpoint that two methods have explained, hashes by name: a long run has many."""
    for newest in sorted({images for _, images, _ in maps}, reverse=True):
        chosen = [(entry, digest) for entry, images, digest in maps if images == newest]
        if len({entry.page["method"] for entry, _ in chosen}) > 1:
            return {entry.directory.name: digest for entry, digest in chosen}
    return {}


def left_out_section(explanations: Path, *, key: str) -> str:
    """Return which methods `ganscale explain --method all` left out, and why; empty where there is nothing to say."""
    try:
        methods = json.loads((explanations / RECORD).read_text(encoding="utf-8"))["methods"]
        missing = [(one["method"], one["left_out"]) for one in methods if "left_out" in one]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    rows = [row for row in missing if not any(explanations.glob(f"{row[0]}-[0-9]*"))]  # nor made since
    if not rows:
        return ""
    reasons: dict[str, list[str]] = {}
    for method, reason in rows:
        reasons.setdefault(reason, []).append(method_title(method))
    grouped = [(", ".join(methods), reason) for reason, methods in reasons.items()]
    listed = table(("methods", "why"), grouped, caption="Methods that were asked for and have no result")
    return section(key, "Left out", listed)


def _render(folder: Path, entries: list[tuple[_Entry, tuple[object, ...]]], lost: list[str]) -> str:
    run = folder.absolute().parent.name
    weak = sum(_verdict(entry) == "not better" and not entry.meta.get("banner") for entry, _ in entries)
    better = sum(_verdict(entry) == "better" for entry, _ in entries)
    all_of_them = "all" if better == len(entries) else f"{better} of {len(entries)}"
    verdicts = f"{weak} {BANNER}" if weak or not entries else f"{all_of_them} better than random"
    head = (
        f'<header><nav aria-label="This run">{link("../report.html", "Report of the run")}</nav>\n'
        f"<h1>Explanations of {escape(run)}</h1>\n"
        f'<p class="lead">{len(entries)} explanation{"" if len(entries) == 1 else "s"}; {verdicts}. '
        "Each score stands beside what chance reached in the same call.</p></header>"
    )
    columns = ("explanation", "picture", "verdict", "deciding score", "value", "control", "explains")
    caption = "All explanations of this run, by name"
    chosen = _choices([entry for entry, _ in entries])
    rows = [(Html(f"{first}{words}"), *rest) for (_, (first, *rest)), words in zip(entries, chosen, strict=True)]
    listed = table(columns, rows, caption=caption, numeric=(4, 5), kind="wide")
    main = section("all", "All explanations", listed, "\n".join(map(note, lost)))
    beside = comparison_figures(folder)
    main += section("side-by-side", "Side by side", beside) if beside else ""
    main += left_out_section(folder, key="left-out")
    return document(f"Explanations of {run}", f'{head}\n<main id="main">\n{main}\n</main>')


def _row(entry: _Entry) -> tuple[object, ...]:
    meta, scores = entry.meta, entry.page["scores"]
    name = next(iter(meta.get("primary") or scores))
    score = scores[name]
    picture, page = entry.directory / THUMBNAIL, entry.directory / PAGE
    said = f"{escape(entry.title)}<small>{escape(entry.directory.name)}</small>"
    first = link(f"{entry.directory.name}/{PAGE}", Html(said)) if page.is_file() else said
    alt = f"Part of a panel of {entry.title}, {entry.directory.name}"
    small = Html(picture_file(picture, alt, density=2)) if picture.is_file() else "–"
    verdict = said_of_all(_verdict(entry), meta.get("banner", ""))
    if meta.get("interim"):
        verdict = Html(f"{verdict}<small>{escape(str(meta['interim']))}</small>")
    return (
        Html(first),
        small,
        verdict,
        score_title(name),
        number(_value(score, "value")),
        number(_value(score, "control")),
        _target(entry.page),
    )


def _choices(entries: list[_Entry]) -> list[str]:
    """Return for each entry the options in which it differs from others of its method, as HTML; mostly empty."""
    said = []
    for entry in entries:
        own = entry.meta.get("options", {})
        others = [other.meta.get("options", {}) for other in entries if other.page["method"] == entry.page["method"]]
        differs = [key for key in own if any(other.get(key) != own[key] for other in others)]
        words = ", ".join(f"{key.replace('_', ' ')} {own[key]}" for key in differs)
        said.append(f"<small>{escape(words)}</small>" if words else "")
    return said


def _verdict(entry: _Entry) -> str:
    """Return what the deciding scores say; files of an earlier version know better from not better alone."""
    before = "not better" if entry.page.get("not_better_than_random") else "better"
    return str(entry.page.get("verdict", before))


def _value(score: dict[str, Any], key: str) -> float | None:
    reason = score.get("reason", {})
    return float(reason[key]) if key in reason else score[key]


def _target(page: dict[str, Any]) -> str:
    from ganscale.explain.types import Target

    return subject_of(page["method"], page["meta"]) or str(Target(**page["target"]))
