"""A page for each explanation and an index of all: whole in themselves, readable without sight, true to the scores."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from dashboard_cases import NASTY, make_whole
from PIL import Image
from test_dashboards_report import Page

from ganscale.dashboards import page as page_module
from ganscale.dashboards import write_explanation_page, write_index, write_panels, write_report
from ganscale.dashboards.explanation_page import render
from ganscale.dashboards.explanation_words import CAPTIONS, READING
from ganscale.dashboards.layout import BANNER, number, score_title
from ganscale.dashboards.page import picture_file
from ganscale.dashboards.panels import PANELS, draw_panels
from ganscale.explain import EXPLAINERS, Explanation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, explanations: dict[str, Explanation]) -> Path:
    """``explanations/`` of a run with panels, pages and index, to be read only."""
    run = make_whole(tmp_path_factory.mktemp("pages"), explanations)
    for name, explanation in explanations.items():
        write_panels(explanation, run / "explanations" / name)
        write_explanation_page(explanation, run / "explanations" / name)
    write_index(run / "explanations")
    return run / "explanations"


def page_of(folder: Path, name: str) -> Page:
    return Page((folder / name / "explanation.html").read_text(encoding="utf-8"))


def opened(source: str | Path) -> Image.Image:
    inside = isinstance(source, str)
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])) if inside else source)


def frames_of(source: str | Path) -> int:
    return getattr(opened(source), "n_frames", 1)


def test_a_page_says_every_score_with_its_control(folder, shapley):
    page = page_of(folder, "kernel-shap-001")
    for name, score in shapley.scores.items():
        assert score_title(name) in page.text
        assert number(score.value) in page.text
        assert number(score.control) in page.text
    assert READING["kernel-shap"] in page.text
    assert "the critic's raw logit D(x)" in page.text
    for words in ("num_coalitions", "rows_forward", "seed", "values: attribution", "torch"):
        assert words in page.text, "options, cost, seed, tensors and versions are there"


def test_only_what_shows_nothing_carries_the_banner(folder):
    banner = f"{BANNER}: a deciding score does not beat its control"
    assert banner in page_of(folder, "kernel-shap-002").text
    assert banner not in page_of(folder, "kernel-shap-001").text


def test_a_method_that_says_what_its_banner_means_is_not_shown_as_failed(worthless, tmp_path):
    meant = replace(worthless, meta={**worthless.meta, "banner": "no sign of it", "warnings": []})
    text = render(meant, tmp_path, "kernel-shap-001", {})
    assert '<p class="missing">No sign of it.</p>' in text
    assert BANNER not in text
    assert 'class="bad"' in render(worthless, tmp_path, "kernel-shap-001", {})
    assert 'class="bad"' not in text
    warned = replace(meant, meta={**meant.meta, "warnings": ["no sign of it"]})
    assert render(warned, tmp_path, "kernel-shap-001", {}).lower().count("no sign of it") == 1, "said once"


def test_an_interim_result_is_marked_on_page_and_index(shapley, tmp_path):
    words = "interim result: 2 of 4 samples, the time was up"
    stopped = replace(shapley, meta={**shapley.meta, "interim": words, "warnings": [words]})
    stopped.save(tmp_path / "explanations" / "kernel-shap-001")
    write_explanation_page(stopped, tmp_path / "explanations" / "kernel-shap-001")
    assert words in page_of(tmp_path / "explanations", "kernel-shap-001").text
    assert words in Page(write_index(tmp_path / "explanations").read_text(encoding="utf-8")).text


def test_a_page_holds_all_it_shows_and_runs_no_script(folder):
    for path in (*folder.glob("*/explanation.html"), folder / "index.html"):
        text = path.read_text(encoding="utf-8")
        page = Page(text)
        assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
        sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
        assert sources
        assert all(source.startswith("data:image/") for source in sources)
        assert not re.search(r"https?://|url\(|@import", text)


def test_links_of_the_index_lead_to_pages_and_back(folder, explanations):
    index = Page((folder / "index.html").read_text(encoding="utf-8"))
    targets = [value for value in index.values("href") if value.endswith("explanation.html")]
    assert targets == [f"{name}/explanation.html" for name in sorted(explanations)]
    for target in targets:
        page = Page((folder / target).read_text(encoding="utf-8"))
        [back] = [value for value in page.values("href") if not value.startswith("#")]
        assert (folder / target).parent.joinpath(back).resolve() == (folder / "index.html").resolve()


def test_the_index_puts_each_deciding_score_beside_its_control(folder, explanations):
    text = Page((folder / "index.html").read_text(encoding="utf-8")).text
    assert "3 explanations; 1 not better than random" in text
    for explanation in explanations.values():
        score = explanation.scores[explanation.meta["primary"][0]]
        assert f"{number(score.value)} {number(score.control)}" in text


def test_pages_are_ordered_and_named_for_who_cannot_see(folder):
    for path in (*folder.glob("*/explanation.html"), folder / "index.html"):
        page = Page(path.read_text(encoding="utf-8"))
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
        tags = [tag for tag, _ in page.tags]
        assert tags.count("table") == tags.count("caption") > 0
        ids = page.values("id")
        assert len(ids) == len(set(ids))
        assert {value[1:] for value in page.values("href") if value.startswith("#")} <= set(ids)
        assert all(len(alt) > 20 for alt in page.values("alt"))


def test_a_picture_is_said_in_words_with_numbers(folder, shapley, directions):
    [maps] = [alt for alt in page_of(folder, "kernel-shap-001").values("alt") if "signed map" in alt]
    assert "4 samples, 2 of them generated" in maps
    assert f"from {number(float(shapley.values['fx'].min()))} to {number(float(shapley.values['fx'].max()))}" in maps
    [walks, _] = page_of(folder, "directions-001").values("alt")
    assert f"at most along a direction, by {number(float(directions.values['image_change_random'].max()))}" in walks


def test_walks_move_only_when_asked_for(folder):
    text = (folder / "directions-001" / "explanation.html").read_text(encoding="utf-8")
    [moving] = [source for source in page_of(folder, "directions-001").values("src") if frames_of(source) > 1]
    assert frames_of(folder / "directions-001" / "traversal.gif") == frames_of(moving)
    before = text[: text.index(moving)]
    assert before.rindex("<details>") > before.rfind("</details>"), "inside a part that is closed at first"


def test_pictures_on_a_page_are_the_drawn_ones_to_the_pixel_in_half_the_bytes(folder, shapley):
    shown = page_of(folder, "kernel-shap-001").values("src")
    drawn = draw_panels(shapley)
    assert len(shown) == len(drawn)
    for source, pixels in zip(shown, drawn.values(), strict=True):
        np.testing.assert_array_equal(np.asarray(opened(source).convert("RGB")), pixels)
    as_png = sum(path.stat().st_size for path in (folder / "kernel-shap-001").glob("*.png"))
    assert sum(map(len, shown)) < as_png * 4 / 3 / 2, "base64 takes four letters for three bytes"


@pytest.mark.parametrize(("lacks", "kind"), [("webp", "gif"), ("room", "gif"), (None, "webp")])
def test_a_file_that_cannot_be_packed_is_shown_as_it_is(folder, monkeypatch, lacks, kind):
    monkeypatch.setattr(page_module.features, "check", lambda name: lacks != "webp")
    monkeypatch.setattr(page_module, "_LONGEST_WEBP", 1 if lacks == "room" else 16383)
    [source] = Page(picture_file(folder / "directions-001" / "traversal.gif", "walks")).values("src")
    assert source.startswith(f"data:image/{kind};base64,")
    assert frames_of(source) > 1


def test_what_users_wrote_stays_text_on_pages(shapley, tmp_path):
    named = replace(shapley, meta={**shapley.meta, "run": {"name": NASTY, "images": 1}, "warnings": [NASTY]})
    named.save(tmp_path / "explanations" / "kernel-shap-001")
    write_explanation_page(named, tmp_path / "explanations" / "kernel-shap-001")
    assert "<script" not in (tmp_path / "explanations" / "kernel-shap-001" / "explanation.html").read_text()
    assert page_of(tmp_path / "explanations", "kernel-shap-001").text.count(NASTY) >= 2


def test_a_report_makes_the_pages_that_are_missing_and_names_what_is_damaged(whole_run):
    folder = whole_run / "explanations"
    (folder / "kernel-shap-002" / "explanation.json").write_text("{")
    write_report(whole_run)
    assert (folder / "kernel-shap-001" / "explanation.html").is_file()
    index = Page((folder / "index.html").read_text(encoding="utf-8"))
    assert "2 explanations; all better than random" in index.text
    assert "kernel-shap-002 cannot be read" in index.text


def test_explanations_by_one_method_are_told_apart_by_the_options_in_which_they_differ(directions, tmp_path):
    for place, layer in enumerate(("first", "last")):
        options = {**directions.meta["options"], "layer": layer}
        replace(directions, meta={**directions.meta, "options": options}).save(tmp_path / f"directions-{place:03d}")
    text = Page(write_index(tmp_path).read_text(encoding="utf-8")).text
    assert "directions-000 layer first" in text
    assert "directions-001 layer last" in text
    assert "num directions" not in text, "in which they are the same"


@pytest.mark.parametrize("lost", ["tensors", "images"])
def test_what_the_index_cannot_read_is_listed_as_that_alone(shapley, tmp_path, lost):
    shapley.save(tmp_path / "kernel-shap-001")
    path = tmp_path / "kernel-shap-001" / "explanation.json"
    page = json.loads(path.read_text(encoding="utf-8"))
    page |= {"tensors": {}} if lost == "tensors" else {"meta": {**page["meta"], "run": {"images": "many"}}}
    path.write_text(json.dumps(page), encoding="utf-8")
    index = Page(write_index(tmp_path).read_text(encoding="utf-8")).text
    assert "0 explanations" in index
    assert "kernel-shap-001 cannot be read" in index


def test_a_run_without_explanations_has_no_index(bare_run):
    assert write_index(bare_run / "explanations") is None
    assert not (bare_run / "explanations").exists()


def test_every_method_says_how_to_read_it():
    silent = [name for name in EXPLAINERS if name not in READING]
    assert silent == []


def test_every_panel_has_a_caption():
    assert [name for name in PANELS if name not in CAPTIONS] == []
