"""Many explanations in one report: a list leads to each, and those of the same, and what is left out, are said once."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from dashboard_cases import make_bare
from test_dashboards_report import Page

from ganscale.dashboards import write_report
from ganscale.dashboards.report_explanations import MOST_OPEN
from ganscale.explain import Explanation

LEFT_OUT = {"roar": "the time was up", "mprt": "the time was up", "autoencoder": "the subject must have an encoder"}


def of_layer(explanation: Explanation, layer: str) -> Explanation:
    options = {**explanation.meta["options"], "layer": layer}
    return replace(explanation, meta={**explanation.meta, "options": options})


def report_of(root: Path, explanations: dict[str, Explanation]) -> tuple[str, Page]:
    run = make_bare(root)
    for name, explanation in explanations.items():
        explanation.save(run / "explanations" / name)
    methods = [{"method": method, "left_out": reason} for method, reason in LEFT_OUT.items()]
    (run / "explanations" / "all.json").write_text(json.dumps({"methods": methods}))
    text = write_report(run).read_text(encoding="utf-8")
    return text, Page(text)


def parts_of(page: Page) -> list[dict[str, str | None]]:
    return [attrs for tag, attrs in page.tags if tag == "details" and attrs.get("class") == "explanation"]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, directions: Explanation) -> tuple[str, Page]:
    """The report of one more explanation than are open at first."""
    found = {f"directions-{place:03d}": of_layer(directions, f"l{place}") for place in range(MOST_OPEN + 1)}
    return report_of(tmp_path_factory.mktemp("many"), found)


def test_many_explanations_are_closed_and_a_list_leads_to_each(many):
    text, page = many
    assert len(parts_of(page)) == MOST_OPEN + 1
    assert not any("open" in attrs for attrs in parts_of(page))
    [listed] = re.findall(r'<ul class="methods".*?</ul>', text, flags=re.DOTALL)
    for place in range(MOST_OPEN + 1):
        assert f'<a href="#x-directions-{place:03d}">Latent directions: layer l{place}</a>' in listed
    assert listed.count("image change (L2 per σ)") == listed.count("control") == MOST_OPEN + 1
    assert listed.count("better than random") == MOST_OPEN + 1
    assert "explanations/index.html" in page.values("href")


def test_few_explanations_are_open(whole_text):
    parts = parts_of(Page(whole_text))
    assert len(parts) == 2
    assert all("open" in attrs for attrs in parts)


def test_of_the_same_only_the_newest_whole_one_is_shown_and_the_others_are_linked(tmp_path, directions):
    stopped = replace(directions, meta={**directions.meta, "interim": "interim result: the time was up"})
    found = {"directions-001": directions, "directions-002": directions, "directions-003": stopped}
    text, page = report_of(tmp_path, found)
    assert [value for value in page.values("id") if value.startswith("x-")] == ["x-directions-002"]
    [others] = re.findall(r"<p>The same, explained at other times:.*?</p>", text)
    linked = re.findall(r'href="([^"]*)"', others)
    assert linked == [f"explanations/directions-{number}/explanation.html" for number in ("001", "003")]
    assert all((tmp_path / "runs" / "fresh" / target).is_file() for target in linked)


def test_left_out_methods_are_listed_once_by_reason_and_linked_from_the_contents(many):
    text, page = many
    assert text.count("the time was up") == text.count("the subject must have an encoder") == 1
    assert "Remove and retrain (ROAR), Layer by layer shuffled (MPRT) the time was up" in page.text
    [contents] = re.findall(r'<nav aria-label="Contents">.*?</nav>', text)
    assert '<a href="#left-out">Left out</a>' in contents
    assert "left-out" in page.values("id")
