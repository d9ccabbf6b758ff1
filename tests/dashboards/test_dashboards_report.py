"""The report holds everything, fetches nothing, escapes what users wrote, and says what is missing at every stage."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from dashboard_cases import NASTY
from PIL import Image

from ganscale.dashboards import write_report
from ganscale.dashboards.layout import BANNER
from ganscale.dashboards.placement_words import placement_rows
from ganscale.dashboards.svg import Series, line_chart, ticks
from ganscale.errors import UserError
from ganscale.presets import preset
from ganscale.runtime.placement import Estimate, Plan, Resources, place

VOID = {"meta", "img", "br", "hr", "link", "input"}
MISSING = {
    "samples": "ganscale generate fresh",
    "metrics": "ganscale evaluate fresh",
    "explanations": "ganscale explain fresh --method integrated-gradients",
}


class Page(HTMLParser):
    """Parses a page, and refuses what is not well nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.headings: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)
        if self.open and re.fullmatch("h[1-6]", self.open[-1]):
            self.headings.append(data)

    def values(self, attribute: str) -> list[str]:
        return [attrs[attribute] for _, attrs in self.tags if attribute in attrs]


def report_of(run: Path) -> tuple[str, Page]:
    text = write_report(run).read_text(encoding="utf-8")
    return text, Page(text)


def test_a_whole_run_has_every_section(whole_text):
    page = Page(whole_text)
    expected = ["Samples", "Progress", "Metrics", "Explanations", "Data", "Configuration", "Provenance"]
    assert [heading for heading in page.headings if heading in expected] == expected
    assert "cannot be read" not in page.text
    for words in (
        "8 kimg of 8 kimg; finished",
        "2 workers on cpu",
        "1 not better than random",
        "ab" * 32,
        "ganscale launch",
        "1 of 9 files were set aside",
        "same latents",
    ):
        assert words in page.text


def test_metrics_stand_beside_floor_untrained_value_and_stamp(whole_text):
    page = Page(whole_text)
    assert "FD (in-domain CNN) 12.5 – 1.25 50.0 25% lower" in page.text
    assert "n = 500, split held-out, resized by bilinear to 28x28" in page.text


def test_explanations_stand_beside_controls_with_the_banner_where_due(whole_text):
    text, page = whole_text, Page(whole_text)
    assert text.count(f'<p class="warning" role="note"><span aria-hidden="true">⚠ </span>{BANNER}') == 1
    assert page.text.count("deletion AUC (decides)") == 1, "the newer of two of the same"
    maps = [alt for alt in page.values("alt") if alt and alt.startswith("Kernel SHAP: Input")]
    assert len(maps) == 1
    assert all("control" in alt for alt in maps), "who cannot see the map still gets its score and control"


def test_nothing_is_fetched_and_no_script_runs(whole_text):
    text, page = whole_text, Page(whole_text)
    for attribute in ("src", "srcset", "data", "action", "poster"):
        for value in page.values(attribute):
            assert value.startswith(("data:image/webp;base64,", "data:image/png;base64,")), value[:80]
    assert all(value.startswith(("#", "explanations/")) for value in page.values("href")), "of this run alone"
    assert "url(" not in text
    assert "@import" not in text
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    [policy] = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_what_users_wrote_stays_text(whole_text):
    text, page = whole_text, Page(whole_text)
    assert "<script" not in text
    assert page.text.count(NASTY) >= 3, "data path, command line and quarantined file are shown as they were written"


def test_pictures_are_whole_and_have_words(whole_text):
    page = Page(whole_text)
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) >= 4 + 3  # sample grids; two panels of the newest map, one of directions
    for attrs in images:
        assert len(attrs["alt"]) > 10
        with Image.open(io.BytesIO(base64.b64decode(attrs["src"].partition(",")[2]))) as image:
            image.verify()
    charts = [attrs for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"]
    assert len(charts) == 3  # losses, logits, throughput
    assert all("goes from" in attrs["aria-label"] for attrs in charts)


def test_a_reader_without_sight_can_find_the_way(whole_text):
    page = Page(whole_text)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    targets = [value[1:] for value in page.values("href") if value.startswith("#")]
    assert set(targets) <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), "no level is skipped"
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
    assert [attrs["lang"] for tag, attrs in page.tags if tag == "html"] == ["en"]


def test_light_and_dark_define_the_same_colours(whole_text):
    text = whole_text
    light, dark = re.findall(r":root\{([^}]*)\}", text)
    names = [re.findall(r"--([\w-]+):", part) for part in (light, dark)]
    assert names[0] == names[1]
    assert set(re.findall(r"var\(--([\w-]+)\)", text)) <= set(names[0])


def test_a_fresh_run_says_what_is_missing_and_how_to_make_it(bare_run):
    _, page = report_of(bare_run)
    assert "0 kimg of 8 kimg; not started" in page.text
    for command in MISSING.values():
        assert command in page.text
    assert "Nothing was measured yet" in page.text
    assert "No checkpoint was saved yet" in page.text


def test_every_part_may_be_absent(whole_run):
    for part in (
        "explanations",
        "samples",
        "evaluations",
        "checkpoints",
        "metrics.jsonl",
        "quarantine.json",
    ):
        for path in [*sorted((whole_run / part).rglob("*"), reverse=True), whole_run / part]:
            path.unlink() if path.is_file() else path.rmdir()
        _, page = report_of(whole_run)
        assert "Provenance" in page.headings
        assert "cannot be read" not in page.text


def test_damaged_parts_are_named_and_the_rest_is_shown(whole_run):
    with (whole_run / "metrics.jsonl").open("a") as stream:
        stream.write('{"images": 90')
    (whole_run / "evaluations" / "kimg-000009.json").write_text("{")
    tensors = whole_run / "explanations" / "kernel-shap-001" / "values.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    (whole_run / "checkpoints" / "kimg-000008" / "manifest.json").unlink()
    _, page = report_of(whole_run)
    for words in (
        "1 line of metrics.jsonl cannot be read",
        "kimg-000009.json cannot be read",
        "values.safetensors must match",
        "checkpoint kimg-000008 has no readable manifest",
        "FD (in-domain CNN) 12.5",
        "kernel-shap-002",
    ):
        assert words in page.text


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="run directory with a readable config"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_writing_again_replaces_the_page_and_leaves_nothing_else(bare_run):
    before = {path.name for path in bare_run.iterdir()}
    first = write_report(bare_run).read_text()
    assert write_report(bare_run).read_text() == first
    assert {path.name for path in bare_run.iterdir()} == before | {"report.html"}


def test_resumed_runs_tell_what_changed(bare_run):
    page = json.loads((bare_run / "config.json").read_text())
    page["resumed"] = [{"at": "2030-01-02", "images": 4000, "changes": {"train.kimg": [4, 8]}}]
    (bare_run / "config.json").write_text(json.dumps(page))
    _, parsed = report_of(bare_run)
    assert "resumed at 4 kimg 2030-01-02; changed train.kimg: 4 → 8" in parsed.text


def test_settings_are_shown_as_they_can_be_set(bare_run):
    _, page = report_of(bare_run)
    for words in ("data.resolution 28x28", "optim.critic.betas 0.0,0.99", "train.micro_batch none", "download false"):
        assert words in page.text


def test_provenance_is_said_in_words(bare_run):
    page = json.loads((bare_run / "config.json").read_text())
    plan = Plan(
        workers=4, least=2, device="cpu", backend="gloo", gpus_per_worker=0, threads=3, batch=64, where="this machine"
    )
    estimate = Estimate(parameters={"critic": 1234}, memory_bytes=5 * 2**20, disk_bytes=2**20, seconds=100.0)
    page["placement"] = replace(plan, estimate=estimate, beside=0).as_dict()
    (bare_run / "config.json").write_text(json.dumps(page))
    text, parsed = report_of(bare_run)
    listed = Page(text[text.index('<h2 id="provenance">') :].partition("</section>")[0])
    for words in (
        "workers 2 to 4",
        "GPUs of each worker none",
        "CPU threads of each worker 3",
        "exchange of gradients sums through shared memory, between machines by gloo",
        "images in a batch, each worker at most 32",
        "parameters critic 1,234",
        "estimated time 1 min 40 s",
        "evaluation beside training on what training leaves",
        "created 2030-01-01 00:00:00 UTC",
    ):
        assert words in parsed.text
    assert not [key for key in page["placement"] if "_" in key and key in listed.text]
    assert "None" not in listed.text


@pytest.mark.parametrize("workers", [0, 1])
def test_one_worker_is_not_said_to_exchange_anything(workers):
    plan = place(preset("dcgan-fashion"), Resources(cpus=2, gpus=0, memory_bytes=None, where="here"), workers=workers)
    assert ("exchange of gradients", "nothing to exchange") in placement_rows(plan.as_dict())


def test_a_chart_breaks_where_nothing_was_measured_and_keeps_every_spike():
    points = [(x / 10, 1.0) for x in range(2000)]
    points[777] = (77.7, 50.0)
    points[1000] = (100.0, None)
    drawn = line_chart([Series(label="a", colour="blue", points=points)], title="T", x="kimg", y="loss")
    assert "a at 77.7: 50.0" in drawn
    assert len(re.findall("<circle", drawn)) < 400
    short = [(0.0, 1.0), (1.0, 2.0), (2.0, None), (3.0, 1.0), (4.0, 2.0)]
    assert line_chart([Series(label="a", colour="blue", points=short)], title="T", x="", y="").count("<polyline") == 2


def test_a_chart_without_numbers_is_no_chart():
    empty = Series(label="a", colour="blue", points=[(1.0, None), (2.0, float("nan"))])
    assert line_chart([empty], title="T", x="", y="") == ""


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 7.9), (1e-6, 3e-6), (5, 5), (0, 0), (-2e5, 1e7)])
def test_ticks_are_few_even_and_span_the_values(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 9
    assert found[0] <= low
    assert found[-1] >= high
    steps = {round((b - a) / (found[-1] - found[0]), 6) for a, b in pairwise(found)}
    assert len(steps) == 1
