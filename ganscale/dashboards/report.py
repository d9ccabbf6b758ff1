"""The report: one HTML page that shows a run and needs nothing else, no network and no script.

What stands for several explanations of the same links to their own pages, which lie beside it. The report works for a
run at any stage; what is not there yet is named, with the command that makes it.
"""

from __future__ import annotations

import shlex
from html import escape
from pathlib import Path
from typing import Any

from ganscale.config import settings_of
from ganscale.dashboards.explanation_index import left_out_section, write_index
from ganscale.dashboards.explanation_page import PAGE, write_explanation_page
from ganscale.dashboards.layout import measured_on, number
from ganscale.dashboards.page import code, details, document, figure, note, picture_file, section, table, warning
from ganscale.dashboards.placement_words import moment, placement_rows
from ganscale.dashboards.report_explanations import explanations_section
from ganscale.dashboards.report_numbers import metrics_section, progress_section
from ganscale.dashboards.run_facts import RunFacts, read_run
from ganscale.errors import RunFailed
from ganscale.files import replace_text
from ganscale.progress import duration, to_images

REPORT = "report.html"
_STRIP = 6  # grids over time
_LISTED = 50  # quarantined files written out


def write_report(run_dir: str | Path) -> Path:
    """Write ``run_dir/report.html`` in one visible step and return its path.

    Explanations that have no page get one, and their index is written again. Raises UserError where ``run_dir`` holds
    no readable ``config.json``; anything else that is missing or damaged is said on the page.
    """
    facts = read_run(run_dir)
    for name, explanation in facts.explanations:
        if not (facts.path / "explanations" / name / PAGE).is_file():
            write_explanation_page(explanation, facts.path / "explanations" / name)
    try:
        write_index(facts.path / "explanations")
    except RunFailed as error:  # the report is not given up for a picture of the index
        facts.problems.append(str(error))
    target = facts.path / REPORT
    replace_text(target, render(facts))
    return target


def render(facts: RunFacts) -> str:
    """Return the whole page as text."""
    sections = {
        "Samples": _samples(facts),
        "Progress": progress_section(facts),
        "Metrics": metrics_section(facts),
        "Explanations": explanations_section(facts),
        "Data": _data(facts),
        "Configuration": _configuration(facts),
        "Provenance": _provenance(facts),
    }
    shown = {title: body for title, body in sections.items() if body}
    left_out = left_out_section(facts.path / "explanations", key="left-out")
    names = {title: title.lower() for title in shown} | ({"Left out": "left-out"} if left_out else {})
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for title, key in names.items())
    problems = "".join(warning(words) for words in facts.problems)
    config = facts.config
    head = (
        f"<header><h1>{escape(facts.path.name)}</h1>\n"
        f'<p class="lead">{escape(_subtitle(config))}</p>\n'
        f"{_cards(facts)}{problems}\n"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav></header>'
    )
    body = "\n".join(section(title.lower(), title, text) for title, text in shown.items())
    body += left_out
    foot = f"<footer>Written by ganscale {escape(str(facts.page.get('versions', {}).get('ganscale', '')))}</footer>"
    return document(f"{facts.path.name} · ganscale report", f'{head}\n<main id="main">\n{body}\n</main>\n{foot}')


def _subtitle(config: dict[str, Any]) -> str:
    model, data, penalty = config["model"], config["data"], config["penalty"]
    size = "x".join(map(str, data["resolution"]))
    with_penalty = "" if penalty["name"] == "none" else f" with {penalty['name']}"
    networks = {model["generator"], model["critic"]}
    return (
        f"Preset {config['preset']}: {' and '.join(sorted(networks))} on {data['path']} ({size}x{data['channels']}), "
        f"loss {config['loss']['name']}{with_penalty}"
    )


def _cards(facts: RunFacts) -> str:
    total = facts.config["train"]["kimg"]
    done = facts.images >= to_images(total)
    state = "finished" if done else "not finished" if facts.images else "not started"
    cards = [
        (
            "Real points seen" if facts.config["data"]["channels"] == 2 else "Real images seen",
            f"{facts.images / 1000:g} kimg",
            f"of {total:g} kimg; {state}",
        )
    ]
    seconds = sum(tick["timing"].get("tick_s") or 0 for tick in facts.ticks)
    if seconds:
        cards.append(("Training time", duration(seconds), _who(facts.page.get("placement") or {})))
    if facts.evaluations:
        newest = facts.evaluations[-1]
        name, value = next(iter(newest["values"].items()))
        floor = (
            f"real v real {number(value['floor'])}{measured_on(newest['values'])}, at {newest['images'] / 1000:g} kimg"
        )
        cards.append((name, number(value["value"]), floor))
    if facts.explanations:
        said = [one.verdict for _, one in facts.explanations if not one.meta.get("banner")]
        weak, better = said.count("not better"), said.count("better")
        all_of_them = "all" if better == len(facts.explanations) else str(better)
        words = f"{weak} not better than random" if weak else f"{all_of_them} better than random"
        cards.append(("Explanations", str(len(facts.explanations)), words))
    inner = "".join(
        f'<div class="card"><dt>{escape(title)}</dt><dd>{escape(value)}<small>{escape(words)}</small></dd></div>'
        for title, value, words in cards
    )
    return f'<dl class="cards">{inner}</dl>'


def _who(placement: dict[str, Any]) -> str:
    if "workers" not in placement:
        return ""
    count, device = placement["workers"], placement.get("device", "an unnamed device")
    who = "one process" if count == 0 else f"{count} worker{'s' if count > 1 else ''}"
    return f"{who} on {device}"


def _samples(facts: RunFacts) -> str:
    if not facts.samples:
        if facts.config["data"]["channels"] == 2:
            return note("These data are points of the plane, so there are no sample grids.")
        return note("No sample grid was written yet.", f"ganscale generate {facts.name_for_commands}")
    images, path = facts.samples[-1]
    alt = f"Grid of generated images after {images / 1000:g} kimg"
    final = figure(
        picture_file(path, alt, pixelated=True),
        f"Averaged generator (EMA) after {images / 1000:g} kimg, on latents drawn once and kept.",
        kind="final",
    )
    if len(facts.samples) < 2:
        return final
    strip = "".join(
        figure(
            picture_file(path, f"The same latents after {images / 1000:g} kimg", pixelated=True),
            "untrained" if images == 0 else f"{images / 1000:g} kimg",
        )
        for images, path in _spread(facts.samples)
    )
    return f'{final}\n<h3>Over time, the same latents</h3>\n<div class="strip">{strip}</div>'


def _spread(samples: list[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """Return at most ``_STRIP`` grids, first and last among them, evenly spread."""
    if len(samples) <= _STRIP:
        return samples
    return [samples[round(place * (len(samples) - 1) / (_STRIP - 1))] for place in range(_STRIP)]


def _data(facts: RunFacts) -> str:
    if facts.quarantine is None:
        return note("This run has no quarantine.json, so nothing can be said about files that were set aside.")
    page = facts.quarantine
    aside = page.get("quarantined", [])
    first = (
        f"<p>{escape(str(page.get('dataset', '')))}: {len(aside)} of {page.get('files', '?')} files were set aside as "
        f"unreadable. Fingerprint {code(page.get('fingerprint', '?'))}.</p>"
    )
    if not aside:
        return first
    rows = [(code(entry.get("path", "?")), entry.get("reason", "?")) for entry in aside[:_LISTED]]
    more = f"<p>and {len(aside) - _LISTED} more in quarantine.json</p>" if len(aside) > _LISTED else ""
    return first + table(("file", "reason"), rows, caption="Files that were set aside, and why") + more


def _configuration(facts: RunFacts) -> str:
    rows = [(code(key), value) for key, value in settings_of(facts.config)]
    listed = table(("key", "value"), rows, caption="Every setting of the run; change one with --set key=value")
    return details(f"All {len(rows)} settings", listed)


def _provenance(facts: RunFacts) -> str:
    page = facts.page
    command = page.get("command") or []
    parts = []
    if command:
        parts.append(f"<p>Command</p><pre><code>{escape(shlex.join(map(str, command)))}</code></pre>")
    rows = [("created", moment(page.get("created", "?"))), ("seed", facts.config["train"]["seed"])]
    rows += [(f"version of {name}", version) for name, version in page.get("versions", {}).items()]
    rows += [("operators", f"{facts.config['ops']['impl']} (setting ops.impl)")]
    rows += placement_rows(page.get("placement") or {})
    for event in page.get("resumed", []):
        changes = ", ".join(f"{key}: {old} → {new}" for key, (old, new) in (event.get("changes") or {}).items())
        words = moment(event.get("at", "?")) + (f"; changed {changes}" if changes else "")
        rows.append((f"resumed at {event.get('images', 0) / 1000:g} kimg", words))
    parts.append(table(("what", "value"), rows, caption="How this run came about"))
    parts.append(_checkpoints(facts))
    return "\n".join(parts)


def _checkpoints(facts: RunFacts) -> str:
    if not facts.checkpoints:
        return note("No checkpoint was saved yet.")
    rows = []
    for manifest in facts.checkpoints:
        for name, entry in manifest["files"].items():
            size = f"{entry.get('bytes', 0) / 2**20:.2f} MiB"
            rows.append((f"{manifest['name']}/{name}", size, code(entry.get("sha256", "?"))))
    listed = table(("file", "size", "SHA-256"), rows, caption="Checkpoints as their manifests state them", numeric=(1,))
    return details(f"{len(facts.checkpoints)} checkpoints, {len(rows)} files with their hashes", listed)
