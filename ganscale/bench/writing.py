"""The lines of a measurement as rows of text, and as a Markdown page with its head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ganscale.bench.lines import Line

COLUMNS = ("claim", "what", "shape", "dtype", "layout", "peer", "peer's", "ours", "ratio", "goal", "met")


def cells(line: Line) -> tuple[str, ...]:
    """Return the texts of one line under ``COLUMNS``."""
    verdict = {None: "", True: "yes", False: "NO"}[line.met]
    return (
        line.claim, line.what, line.shape, line.dtype, line.layout, line.peer, quantity(line.peer_value, line.unit),
        quantity(line.our_value, line.unit), "" if line.ratio is None else f"{line.ratio:.2f}",
        "" if line.goal is None else f"{line.goal:.2f}", f"{'FAILED: ' * line.failed}{line.note}" or verdict,
    )  # fmt: skip


def quantity(value: float | None, unit: str) -> str:
    """Return a value with its unit, with three significant digits or whole."""
    if value is None:
        return "-"
    if unit == "calls":
        return f"{value:.0f}"
    if unit == "ms" and value < 0.1:
        return f"{1000 * value:.3g} µs"
    return f"{value:.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


def words(line: Line) -> str:
    """Return one line as plain words, for a log that grows."""
    texts = cells(line)
    head = " ".join(text for text in texts[:5] if text)
    if line.ratio is None:
        return f"{head}: {line.peer} {texts[-1]}".strip()
    met = "" if line.met is None else f", goal {line.goal:.2f} {'met' if line.met else 'NOT met'}"
    return f"{head}: {line.peer} {texts[6]}, ours {texts[7]}, ratio {texts[8]}{met}"


def markdown(title: str, facts: Mapping[str, str], lines: Iterable[Line], *, summaries: Mapping[str, str]) -> str:
    """Return a page: the title, a line a fact, and one table a claim under its summary."""
    by_claim: dict[str, list[Line]] = {}
    for line in lines:
        by_claim.setdefault(line.claim, []).append(line)
    page = [f"# {title}", "", *(f"- {name}: {_escaped(value)}" for name, value in facts.items()), ""]
    page += ["A ratio is the peer's number over ours: above 1 ours is better. Losses stand here like wins.", ""]
    for claim, rows in by_claim.items():
        page += [
            f"## {claim}",
            "",
            f"{summaries[claim][:1].upper()}{summaries[claim][1:]}.",
            "",
            "| " + " | ".join(COLUMNS[1:]) + " |",
            "|---" * (len(COLUMNS) - 1) + "|",
        ]
        page += ["| " + " | ".join(_escaped(text) for text in cells(line)[1:]) + " |" for line in rows]
        page.append("")
    return "\n".join(page).rstrip() + "\n"


def verdict(lines: Sequence[Line]) -> str:
    """Return in words how many goals were met."""
    judged = [line for line in lines if line.met is not None]
    met = sum(line.met for line in judged)
    failed = sum(line.failed for line in lines)
    return f"{met} of {len(judged)} goals met, {len(lines)} lines" + (f", {failed} FAILED" if failed else "")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
