"""Panels say what the tensors hold: symmetric colours, square pixels, a banner where nothing was shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from dashboard_cases import critic_subject, evaluation_values, image_inputs
from PIL import Image

from ganscale.dashboards.enlarging import DENSITY, enlarge, rgb
from ganscale.dashboards.figures import Canvas, blend, over_ground, signed_colours
from ganscale.dashboards.layout import MARGIN, class_name, heading, margin_words, number
from ganscale.dashboards.maps import SIDE, most_important, signed_map
from ganscale.dashboards.palette import SERIES, WARNING_GROUND
from ganscale.dashboards.panels import (
    draw_panels,
    logit_panel,
    metric_panel,
    read_panels,
    score_panel,
    with_scores,
    write_panels,
)
from ganscale.explain import EXPLAINERS, Explanation, Score, Subject, Target, explain
from ganscale.explain.attribution import AttributionExplainer
from ganscale.explain.layer_maps import LayerMap
from ganscale.explain.scores import against_control
from ganscale.training.records import Histogram


def is_picture(panel: np.ndarray) -> bool:
    return panel.dtype == np.uint8 and panel.ndim == 3 and panel.shape[2] == 3 and panel.min() < panel.max()


def share_of(panel: np.ndarray, colour: str) -> float:
    wanted = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)], dtype=np.uint8)
    return float((panel == wanted).all(axis=-1).mean())


#: Methods that explain a function of images alone, and the directions; what needs more is drawn beside its own tests.
MAPS = {name: kind for name, kind in EXPLAINERS.items() if issubclass(kind, AttributionExplainer)}
ALONE = sorted(name for name, kind in MAPS.items() if not issubclass(kind, LayerMap))


@pytest.mark.parametrize("method", [*ALONE, "directions"])
def test_every_method_has_a_panel_of_its_own(method):
    inputs = {"z": torch.zeros(2, 6)} if EXPLAINERS[method].input_name == "z" else image_inputs(2)
    options = {"num_directions": 2} if method == "directions" else {"cells": 2}
    if method == "directions":
        inputs = {"z": torch.randn(2, 6, generator=torch.Generator().manual_seed(3))}
    panels = draw_panels(explain(critic_subject(), inputs, method, **options))
    assert panels
    assert "scores" not in panels, "a method without a picture falls back to its scores"
    assert all(is_picture(panel) for panel in panels.values())


def test_equal_and_opposite_values_get_equally_strong_colours():
    values = np.linspace(-1, 1, 101)[None]
    colours = signed_colours(values, limit=1.0).astype(int)[0]
    assert (colours[50] >= 245).all(), "zero is white"
    away_from_white = 255 - colours.min(axis=-1)
    # RdBu's two ends are matched by hand in ColorBrewer, not by formula: 25 of 255 levels is its own asymmetry
    assert np.abs(away_from_white - away_from_white[::-1]).max() <= 40
    assert (colours[75:, 0] > colours[75:, 2]).all(), "positive is red"
    assert (colours[:25, 2] > colours[:25, 0]).all(), "negative is blue"


def test_colours_depend_on_value_over_limit_alone_and_saturate_at_it():
    values = np.random.default_rng(0).normal(size=(5, 5))
    assert (signed_colours(values, limit=2.0) == signed_colours(values * 7, limit=14.0)).all()
    assert (
        signed_colours(np.array([[5.0, -5.0]]), limit=1.0) == signed_colours(np.array([[1.0, -1.0]]), limit=1.0)
    ).all()


def test_a_zero_map_is_white_all_over(shapley: Explanation):
    zero = {name: torch.zeros_like(shapley.values[name]) for name in ("attribution", "segment_weights")}
    panel = draw_panels(replace(shapley, values={**shapley.values, **zero}))["maps"]
    assert is_picture(panel)
    white = signed_colours(np.zeros((4, 4)), limit=0.0)
    assert (white == white[0, 0]).all()
    # a map of one colour leaves no saturated red or blue beyond the colour bars
    assert share_of(panel, "#67001f") + share_of(panel, "#053061") < 0.001
    assert (blend(np.full((4, 4, 3), 80, dtype=np.uint8), np.zeros((4, 4)), limit=0.0).std(axis=-1) == 0).all()


def test_the_map_of_a_critic_that_reads_one_corner_is_empty_elsewhere(shapley: Explanation):
    values = np.abs(signed_map(shapley, 0))
    assert values[:4, :4].max() > 0  # the first of 3 x 3 cells lies inside the corner
    assert values[8:, 8:].max() <= 1e-6 * values.max()  # the critic adds up in float32


def test_what_a_mask_keeps_is_the_fifth_of_the_regions_that_weigh_most_either_way(shapley: Explanation):
    weights = torch.zeros(4, 9)
    weights[:, 4], weights[:, 8], weights[:, 0] = -3.0, 2.0, 1.0
    kept = most_important(replace(shapley, values={**shapley.values, "segment_weights": weights}), 0)
    regions = shapley.inputs["segments"].numpy()
    assert set(regions[kept]) == {4, 8}
    assert kept.sum() == (regions == 4).sum() + (regions == 8).sum()
    empty = replace(shapley, values={**shapley.values, "segment_weights": torch.zeros(4, 9)})
    assert not most_important(empty, 0).any(), "nothing matters, nothing is kept"


def test_an_image_is_itself_where_it_is_opaque_and_gone_where_it_is_not():
    one, other = (np.full((28, 28, 3), level, dtype=np.uint8) for level in (0, 200))
    alpha = np.zeros((28, 28))
    alpha[:14] = 1.0
    drawn = over_ground(other, alpha, side=28)
    assert (drawn[:28] == 200).all()
    assert (drawn[28:] == over_ground(one, alpha, side=28)[28:]).all(), "chequers hold nothing of the image"


def test_small_images_grow_by_whole_squares_and_large_ones_shrink():
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    large = enlarge(image, side=SIDE)
    times = large.shape[0] // 28
    assert large.shape == (28 * times, 28 * times, 3)
    assert times == SIDE * DENSITY // 28
    assert (large[::times, ::times] == image).all()
    assert (large[times - 1 :: times, times - 1 :: times] == image).all()
    assert max(enlarge(np.zeros((600, 900, 3), dtype=np.uint8), side=SIDE).shape) == SIDE * DENSITY


@pytest.mark.parametrize("side", [12, 28, 64, 100, 300])
@pytest.mark.parametrize("ground", [0, 140, 255])
def test_regions_are_outlined_on_images_of_any_size_and_brightness(side, ground):
    image = np.full((side, side, 3), ground, dtype=np.uint8)
    regions = (np.arange(side) >= side // 2).astype(int)[:, None] + np.zeros(side, dtype=int)
    drawn = enlarge(image, side=SIDE, grid=regions)
    plain = enlarge(image, side=SIDE)
    line = np.abs(drawn.astype(int) - plain).max(axis=-1)
    assert drawn.shape == plain.shape
    assert (line > 0).sum() == drawn.shape[1], "one line across, one device pixel wide"
    assert line[drawn.shape[0] // 2].min() > 25, "that can be seen"


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_any_channel_count_become_rgb(channels):
    pixels = rgb(np.ones((channels, 5, 7)))
    assert pixels.shape == (5, 7, 3)
    assert pixels.dtype == np.uint8
    assert pixels[0, 0, 0] == 255


def test_a_transparent_pixel_is_white():
    assert (rgb(np.full((4, 2, 2), -1.0)) == 255).all()


def test_the_banner_stands_exactly_where_a_deciding_score_is_beaten(shapley: Explanation, worthless: Explanation):
    for name in ("maps", "curves"):
        good, bad = draw_panels(shapley)[name], draw_panels(worthless)[name]
        assert share_of(good, WARNING_GROUND.light) == 0
        assert share_of(bad, WARNING_GROUND.light) > 0.01
        assert bad.shape[0] > good.shape[0], "the banner takes room of its own and covers nothing"
    assert share_of(score_panel(worthless), WARNING_GROUND.light) > 0.01


def test_the_foot_of_a_panel_is_as_wide_as_its_margin(shapley: Explanation, directions: Explanation):
    for explanation in (shapley, directions):
        for name, panel in draw_panels(explanation).items():
            inked = np.flatnonzero((panel != 255).any(axis=(1, 2)))
            assert len(panel) - 1 - inked[-1] <= MARGIN * DENSITY, name


def test_every_panel_says_that_a_result_is_not_whole(shapley: Explanation, directions: Explanation):
    meta = {"interim": "interim result: 2 of 4 samples, the time was up"}
    for whole in (shapley, directions):  # the one names its target below its title, the other beside it
        interim = draw_panels(replace(whole, meta={**whole.meta, **meta}))
        for name, panel in draw_panels(whole).items():
            assert interim[name].shape == panel.shape
            head = slice(0, 80 * DENSITY)
            assert not np.array_equal(interim[name][head], panel[head]), name


@pytest.mark.parametrize(
    ("title", "width"),  # the longest of the narrowest panels
    [
        ("Attack on the input: what changed the verdict", 860),
        ("Layers of generator and critic: units of G, logit of D", 900),
        ("Integrated gradients: does the map show what matters?", 996),
    ],
)
def test_a_long_title_and_what_stands_at_its_right_never_touch(shapley: Explanation, title, width):
    run = {"name": "a-run-whose-name-says-all-of-its-settings", "images": 25_000_000}
    target = Target.parse("unit:blocks.b16.conv1:511:12:12")
    meta = {**shapley.meta, "run": run, "interim": "interim result: 1023 of 1024 samples, the rows were spent"}
    canvas = Canvas(width, 100)
    heading(canvas, title, [], banner=False, of=replace(shapley, target=target, meta=meta))
    canvas.array()
    left, *right = (text.get_window_extent() for text in canvas.figure.texts)
    assert len(right) == 2
    gap = min(words.x0 for words in right) - left.x1
    assert gap > 4 * DENSITY  # 16 are left free, of which the hinting of letters takes some


def test_real_samples_stand_before_generated_ones(shapley: Explanation):
    panel = draw_panels(shapley)["maps"]

    def where(colour: str) -> float:
        wanted = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)])
        return float(np.nonzero((panel[:, : 100 * DENSITY] == wanted).all(axis=-1))[0].mean())

    assert where(SERIES["blue"].light) < where(SERIES["vermilion"].light)


def test_directions_without_a_critic_are_drawn_too(without_critic: Explanation):
    assert is_picture(draw_panels(without_critic)["traversal"])


def test_vectors_get_bars():
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    panels = draw_panels(explain(lambda rows: rows @ torch.tensor([1.0, -2.0]), x, "exact-shapley"))
    assert is_picture(panels["maps"])


def test_written_panels_are_the_drawn_ones_above_the_scores_and_are_read_without_them(shapley: Explanation, tmp_path):
    drawn, paths = draw_panels(shapley), write_panels(shapley, tmp_path)
    assert sorted(path.name for path in paths) == ["curves.png", "maps.png"]
    for path in paths:
        page, panel = np.asarray(Image.open(path)), drawn[path.stem]
        assert (page[: panel.shape[0], : panel.shape[1]] == panel).all()
        assert share_of(page[panel.shape[0] :], SERIES["blue"].light) > 0, "verdicts"
    read = read_panels(shapley, tmp_path)
    assert {name: panel.tobytes() for name, panel in read.items()} == {n: p.tobytes() for n, p in drawn.items()}


def test_damaged_panels_and_those_of_another_version_are_drawn_anew(shapley: Explanation, tmp_path):
    drawn = draw_panels(shapley)["maps"].shape
    whole = write_panels(shapley, tmp_path)[0].read_bytes()
    for damage in (whole[: len(whole) // 2], b"no picture", b""):
        (tmp_path / "maps.png").write_bytes(damage)
        assert read_panels(shapley, tmp_path)["maps"].shape == drawn
    Image.new("RGB", (40, 30)).save(tmp_path / "maps.png")  # which does not say where its scores begin
    assert read_panels(shapley, tmp_path)["maps"].shape == drawn


@pytest.mark.parametrize("lost", ["maps", "curves"])
def test_where_one_panel_is_missing_all_are_drawn_anew(shapley: Explanation, tmp_path, lost):
    write_panels(shapley, tmp_path)
    (tmp_path / f"{lost}.png").unlink()
    assert list(read_panels(shapley, tmp_path)) == ["maps", "curves"]


def test_a_margin_says_what_it_is_the_error_of():
    score = Score(value=0.5, low=0.25, high=0.75, control=0.1, n=3, better="higher")
    assert margin_words(score) == "±0.250 chance"
    paired = against_control(np.array([1.0, 2.0]), np.array([0.0, 0.5]), better="higher")
    assert margin_words(paired) == "±3.18 difference", "12.7 standard errors of 1 and 1.5: Student's, of two"
    assert margin_words(replace(score, low=None, high=None)) == "–"


def test_metrics_and_logits_have_panels():
    assert is_picture(metric_panel(evaluation_values(), title="Evaluation"))
    edges = np.linspace(-3, 3, 13)
    filled = Histogram(edges=edges, counts=np.arange(12))
    empty = Histogram(edges=edges, counts=np.zeros(12, dtype=int))
    assert is_picture(logit_panel(filled, filled, images=1000))
    assert is_picture(logit_panel(filled, empty, images=1000))


def test_an_image_of_no_class_is_never_called_by_the_last_name(shapley: Explanation):
    named = replace(shapley, meta={**shapley.meta, "names": {"classes": ["shirt", "boot"]}})
    assert [class_name(named, label) for label in (-1, 0, 1, 2)] == ["generated", "shirt", "boot", "class 2"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"),
        (0, "0"),
        (1234.5, "1234"),
        (-0.01234, "−0.0123"),
        (6e-17, "6.00e−17"),
        (float("nan"), "not a number"),
        (float("-inf"), "−∞"),
    ],
)
def test_numbers_are_short_and_honest(value, words):
    assert number(value) == words


def test_directions_of_a_generator_of_points_are_paths():
    torch.manual_seed(0)
    points = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Unflatten(1, (2, 1, 1)))
    z = torch.randn(2, 4)
    panels = draw_panels(
        explain(Subject(name="points", fn=points, module=points, generator=points), {"z": z}, "directions")
    )
    assert is_picture(panels["traversal"])
    assert share_of(panels["traversal"], SERIES["grey"].light) > 0, "the random control is drawn too"


def test_nothing_runs_over_the_edge_of_a_panel(shapley: Explanation, worthless: Explanation, directions: Explanation):
    beaten = {
        name: replace(score, value=score.control, low=None, high=None) for name, score in directions.scores.items()
    }
    for explanation in (shapley, worthless, directions, replace(directions, scores=beaten)):
        shown = with_scores(explanation, draw_panels(explanation))
        for name, panel in {**shown, "scores": score_panel(explanation)}.items():
            edge = panel[:, -DENSITY * (MARGIN - 4) :]
            assert (edge == 255).all(), f"{explanation.method} {name}"
