"""Maps side by side: only of the same samples and target, each beside its own faithfulness."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dashboard_cases import critic_subject, image_inputs, make_whole
from test_dashboards_report import Page

from ganscale.dashboards import comparison, explanation_index, panels, write_index, write_panels, write_report
from ganscale.dashboards.comparison import comparison_figures, comparison_panel, groups_of, write_comparisons
from ganscale.dashboards.enlarging import DENSITY
from ganscale.dashboards.layout import number
from ganscale.errors import RunFailed
from ganscale.explain import Explanation, Target, explain

FAST = {"shakes": 0, "shuffled_network": False, "cells": 3}


@pytest.fixture(scope="module")
def occlusion() -> Explanation:
    """Occlusion on the first three of the four images of ``shapley``."""
    first = {name: tensor[:3] for name, tensor in image_inputs().items()}
    return explain(critic_subject(), first, "occlusion", window=4, stride=4, **FAST)


@pytest.fixture
def folder(tmp_path: Path, shapley: Explanation, occlusion: Explanation, directions: Explanation) -> Path:
    """``explanations/`` with two maps and one that is none."""
    shapley.save(tmp_path / "kernel-shap-001")
    occlusion.save(tmp_path / "occlusion-001")
    directions.save(tmp_path / "directions-001")
    return tmp_path


def test_maps_of_two_methods_are_compared_on_the_samples_that_both_have(shapley, occlusion, directions):
    [group] = groups_of([shapley, directions, occlusion])
    assert [one.method for one in group.members] == ["kernel-shap", "occlusion"]
    assert group.samples == [x.numpy().tobytes() for x in occlusion.inputs["x"]]
    panel = comparison_panel(group)
    assert (panel.dtype, panel.shape[2]) == (np.uint8, 3)
    assert panel.std() > 5


def test_other_samples_targets_or_checkpoints_are_never_put_beside(shapley, occlusion):
    other = replace(occlusion, inputs={**occlusion.inputs, "x": occlusion.inputs["x"] * 0.5})
    fake = replace(occlusion, target=Target.parse("critic:fake"))
    later = replace(occlusion, meta={**occlusion.meta, "run": {"name": "a", "images": 2000}})
    for one in (other, fake, later):
        assert groups_of([shapley, one]) == []
    assert groups_of([shapley, replace(shapley)]) == [], "one method twice is no comparison"


def test_results_that_are_not_whole_are_compared_on_what_they_share_and_say_so(tmp_path, shapley, occlusion):
    words = "interim result: 2 of 4 samples, the time was up"
    two = {name: tensor[:2] if name != "segments" else tensor for name, tensor in shapley.inputs.items()}
    values = {name: tensor[:2] if len(tensor) == 4 else tensor for name, tensor in shapley.values.items()}
    stopped = replace(shapley, inputs=two, values=values, meta={**shapley.meta, "interim": words})
    also = replace(occlusion, meta={**occlusion.meta, "interim": words.replace("2 of 4", "3 of 4")})
    for other in (occlusion, also):
        [group] = groups_of([stopped, other])
        assert len(group.samples) == 2
    plain = comparison_panel(groups_of([replace(stopped, meta=shapley.meta), occlusion])[0])
    marked = comparison_panel(groups_of([stopped, occlusion])[0])
    changed = (marked != plain).any(axis=(1, 2))
    assert changed.any()
    assert not changed[: 100 * DENSITY].any(), "the heading, which is of all, does not say it"
    stopped.save(tmp_path / "kernel-shap-001")
    also.save(tmp_path / "occlusion-001")
    [alt] = [alt for alt in Page(write_index(tmp_path).read_text(encoding="utf-8")).values("alt") if "Maps of" in alt]
    assert "interim result: 2 of 4 samples" in alt
    assert "interim result: 3 of 4 samples" in alt


def test_the_last_explanation_of_a_method_stands_for_it(shapley, occlusion):
    again = replace(shapley, meta={**shapley.meta, "seed": 1})
    [group] = groups_of([shapley, again, occlusion])
    assert group.members == [again, occlusion]


def test_the_index_shows_them_with_their_areas_and_draws_them_once(folder, shapley, monkeypatch):
    page = Page(write_index(folder).read_text(encoding="utf-8"))
    [said] = [alt for alt in page.values("alt") if alt.startswith("Maps of 2 methods on 3 same samples")]
    for name in ("deletion_auc", "insertion_auc"):
        assert f"{number(shapley.scores[name].value)} ({number(shapley.scores[name].control)})" in said

    def again(_: object) -> None:
        raise AssertionError("drawn though nothing has changed")

    monkeypatch.setattr(comparison, "comparison_panel", again)
    write_index(folder)
    with pytest.raises(AssertionError, match="drawn"):
        write_comparisons(folder, {"kernel-shap-001": "as it was", "occlusion-001": "made anew"})


def test_of_a_long_run_the_newest_checkpoint_with_two_methods_is_compared(tmp_path, shapley, occlusion, monkeypatch):
    for place, images in enumerate((1000, 2000, 3000)):
        at = {"run": {"name": "long", "images": images}}
        replace(shapley, meta={**shapley.meta, **at}).save(tmp_path / f"kernel-shap-{place:03d}")
        if images < 3000:
            replace(occlusion, meta={**occlusion.meta, **at}).save(tmp_path / f"occlusion-{place:03d}")
    asked = []
    monkeypatch.setattr(explanation_index, "write_comparisons", lambda folder, hashes: asked.append(list(hashes)))
    write_index(tmp_path)
    assert asked == [["kernel-shap-001", "occlusion-001"]]


def test_the_report_shows_them_too_and_draws_no_panel_again(tmp_path, shapley, occlusion, monkeypatch):
    run = make_whole(tmp_path, {"kernel-shap-001": shapley, "occlusion-001": occlusion})
    for name, explanation in (("kernel-shap-001", shapley), ("occlusion-001", occlusion)):
        write_panels(explanation, run / "explanations" / name)

    def again(_: object) -> None:
        raise AssertionError("drawn though it lies there")

    monkeypatch.setattr(panels, "draw_panels", again)
    page = Page(write_report(run).read_text(encoding="utf-8"))
    alts = page.values("alt")
    assert sum(alt.startswith("Maps of 2 methods") for alt in alts) == 1
    assert sum("signed map" in alt for alt in alts) == 2


def test_a_comparison_goes_with_its_explanations(folder):
    both = {"kernel-shap-001": "a", "occlusion-001": "b"}
    assert [path.name for path in write_comparisons(folder, both)] == ["side-by-side-1.png"]
    [path] = folder.glob("*.png")
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    write_comparisons(folder, both)
    assert path.read_bytes() == whole, "a damaged one is drawn anew"
    (folder / "occlusion-001" / "values.safetensors").unlink()
    assert write_comparisons(folder, {"kernel-shap-001": "a"}) == []
    assert not list(folder.glob("*.png")), "the old one is gone"


def test_what_another_process_takes_away_meanwhile_is_no_error(folder, monkeypatch):
    both = {"kernel-shap-001": "a", "occlusion-001": "b"}
    [path] = write_comparisons(folder, both)

    def taken(path: Path) -> dict[str, str]:
        path.unlink(missing_ok=True)
        return {}

    monkeypatch.setattr(comparison, "_said", taken)
    assert write_comparisons(folder, both) == [path]
    assert comparison_figures(folder) == ""


def test_a_comparison_that_cannot_be_drawn_costs_neither_index_nor_report(tmp_path, shapley, occlusion, monkeypatch):
    fake = {"target": Target.parse("critic:fake")}
    twice = {"kernel-shap-001": shapley, "occlusion-001": occlusion}
    twice |= {name.replace("001", "002"): replace(one, **fake) for name, one in twice.items()}
    run = make_whole(tmp_path, twice)

    def second_fails(group: comparison.Group) -> np.ndarray:
        if group.members[0].target == fake["target"]:
            raise ZeroDivisionError("no height")
        return comparison_panel(group)

    monkeypatch.setattr(comparison, "comparison_panel", second_fails)
    said = "The maps side by side cannot be drawn: ZeroDivisionError: no height"
    for _ in range(2):  # what was drawn in the first call does not pass for all in the second
        with pytest.raises(RunFailed, match=f"index.html is written. {said}"):
            write_index(run / "explanations")
    index = Page((run / "explanations" / "index.html").read_text(encoding="utf-8")).text
    assert said in index
    assert all(name in index for name in twice)
    assert said in Page(write_report(run).read_text(encoding="utf-8")).text
