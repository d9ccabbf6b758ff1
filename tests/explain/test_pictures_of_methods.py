"""Each method's pictures are drawn from what was saved, say what they show, and let nothing run into anything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pytest
import test_explain_invariance as invariance
import torch
import toys
from matplotlib.text import Text

from ganscale.dashboards.enlarging import DENSITY
from ganscale.dashboards.figures import POINT, Canvas
from ganscale.dashboards.gallery import Row, gallery
from ganscale.dashboards.layout import BANNER, method_title, score_title
from ganscale.dashboards.palette import DIVERGING
from ganscale.dashboards.panels import PANELS, draw_panels, with_scores
from ganscale.explain import EXPLAINERS, Earlier, Explanation, Score, Target, build_explainer, drive, explain
from ganscale.explain.attribution import AttributionExplainer

ATTRIBUTIONS = [name for name, method in EXPLAINERS.items() if issubclass(method, AttributionExplainer)]
WANTED = {
    **{method: {"maps", "curves"} for method in ATTRIBUTIONS},
    "directions": {"traversal"},
    "mprt": {"randomisation"},
    "roar": {"retraining"},
    "latent-counterfactual": {"counterfactuals"},
    "attfind": {"attributes"},
    "class-generation": {"classes"},
    "probe-classifier": {"probe", "ways"},
    "dissect": {"dissection", "concepts"},
    "layer-ablation": {"layers", "layer-effects"},
    "layer-noise": {"layers", "layer-effects"},
    "layer-shapley": {"layer-shares", "curves"},
    "layer-swap": {"layers", "layer-effects"},
    "style-mixing": {"layers", "layer-effects", "mixing"},
    "feature-maps": {"feature-maps"},
    "feature-vis": {"feature-vis"},
    "attack-input": {"attack-curves", "attack-examples"},
    "attack-latent": {"latent-attacks"},
    "explanation-robustness": {"attacked-maps"},
    "autoencoder": {"reconstructions", "code-map"},
    "disentanglement": {"factor-matrix"},
    "retrieval": {"neighbours"},
    "membership": {"membership"},
    "conv-interaction": {"alignment", "side-by-side", "unit-logits"},
}
SLACK = 1.0  # device pixels by which boxes of glyphs may touch: a box is taller than its letters


@dataclass
class Drawn:
    """An explanation as it came back from its files, its panels, the canvases they and the scores were drawn on."""

    found: Explanation
    panels: dict[str, np.ndarray]
    canvases: list[Canvas]
    tables: list[Canvas]


@contextmanager
def watched() -> Iterator[list[Canvas]]:
    """Collect the canvases that are drawn on, so that their words and places can be read."""
    canvases: list[Canvas] = []
    plain = Canvas.array

    def array(canvas: Canvas) -> np.ndarray:
        canvases.append(canvas)
        return plain(canvas)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Canvas, "array", array)
        yield canvases


def draw(found: Explanation) -> Drawn:
    """Draw all panels and their tables."""
    with watched() as canvases:
        panels = draw_panels(found)
        shown = len(canvases)
        with_scores(found, panels)
    return Drawn(found, panels, canvases[:shown], canvases[shown:])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Drawn]:
    """What each method draws of explanations that were saved and read again, with what a run writes about itself."""
    kept: dict[str, Drawn] = {}

    def of(method: str) -> Drawn:
        if method not in kept:
            made = drive(build_explainer(invariance.subject(method), invariance.request_of(method)))
            made.meta["run"] = {"name": "a-run", "images": 24_000}
            made.meta["names"] = {"classes": [f"kind {k}" for k in range(10)], "factors": []}
            directory = tmp_path_factory.mktemp(method) / "saved"
            made.save(directory)
            kept[method] = draw(Explanation.load(directory))
        return kept[method]

    return of


def words_of(canvas: Canvas) -> list[str]:
    axes = [title for one in canvas.figure.axes for title in (one.get_title(loc="left"), one.get_xlabel())]
    return [text.get_text() for text in canvas.figure.texts] + axes


@pytest.mark.parametrize("method", WANTED)
def test_a_method_draws_its_panels_from_its_saved_files_alone(method: str, drawn):
    panels = drawn(method).panels
    assert panels.keys() == WANTED[method]
    for panel in panels.values():
        assert panel.dtype == np.uint8
        assert panel.shape[2] == 3
        assert len(np.unique(panel)) > 10, "something is drawn"


@pytest.mark.parametrize("method", WANTED)
def test_each_panel_has_its_title_and_what_was_looked_at_and_every_score_below(method: str, drawn):
    one = drawn(method)
    for canvas in one.canvases:
        words = words_of(canvas)
        assert any(text.startswith(method_title(method)) for text in words)
        assert any(text.endswith("a-run at 24 kimg") for text in words), "which run, and when"
    assert one.tables
    for table in one.tables:
        said = " ".join(words_of(table))
        assert [name for name in one.found.scores if f"{score_title(name)} (n = " not in said] == []


@pytest.mark.parametrize("method", WANTED)
def test_every_panel_carries_the_banner_exactly_where_a_deciding_score_is_beaten(method: str, drawn):
    one = drawn(method)
    beaten = one.found.not_better_than_random
    turned = draw(replace(one.found, scores={name: _scored(beats=beaten) for name in one.found.scores}))
    for shown, expected in ((one, beaten), (turned, not beaten)):
        for canvas in shown.canvases:
            meant = one.found.meta.get("banner", BANNER).lower()
            assert any(meant in text.lower() for text in words_of(canvas)) == expected
        assert collisions([*shown.canvases, *shown.tables]) == []


def _scored(*, beats: bool) -> Score:
    value = 1.0 if beats else 0.0
    return Score(value=value, low=value - 0.1, high=value + 0.1, control=0.5, n=3, better="higher")


@pytest.mark.parametrize("method", WANTED)
def test_signed_colours_are_centred_at_zero_and_others_start_there(method: str, drawn):
    for canvas in drawn(method).canvases:
        for axes in canvas.figure.axes:
            for image in axes.get_images():
                low, high = image.get_clim()
                assert low == (-high if image.get_cmap().name == DIVERGING else 0)


def collisions(canvases: list[Canvas]) -> list[str]:
    """Return which words stand on others, on a picture or over the edge."""
    found: list[str] = []
    for canvas in canvases:
        boxes = _boxes(canvas)
        wide, tall = canvas.width * DENSITY, canvas.height * DENSITY
        outside = [words for words, (x0, y0, x1, y1) in boxes if x0 < 0 or y0 < 0 or x1 > wide or y1 > tall]
        found += [f"over the edge: {words}" for words in outside]
        found += [f"{a} | {b}" for (a, one), (b, two) in combinations(boxes, 2) if _overlap(one, two)]
        for paste in canvas._pastes:
            picture = (paste.x, paste.y, paste.x + paste.pixels.shape[1], paste.y + paste.pixels.shape[0])
            found += [f"on a picture: {words}" for words, box in boxes if _overlap(box, picture)]
    return found


def _boxes(canvas: Canvas) -> list[tuple[str, tuple[float, ...]]]:
    """Return all words with their boxes in device pixels from the upper left; slanted ones have none that is true."""
    texts = [*canvas.figure.texts]
    for axes in canvas.figure.axes:
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            low, high = sorted(limits)
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        texts += [axes.xaxis.label, axes.yaxis.label, axes._left_title]
    return [
        (text.get_text(), _box(canvas, text)) for text in texts if text.get_text() and text.get_rotation() in (0, 90)
    ]


def _box(canvas: Canvas, text: Text) -> tuple[float, float, float, float]:
    box, height = text.get_window_extent(canvas._agg.get_renderer()), canvas.height * DENSITY
    return box.x0 + SLACK, height - box.y1 + SLACK, box.x1 - SLACK, height - box.y0 - SLACK


def _overlap(one: tuple[float, ...], two: tuple[float, ...]) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


def test_shares_of_many_latents_are_bars_beside_their_pictures_and_a_swarm_of_the_largest_first():
    weight = torch.tensor([0.1, -3.0, 1.0])
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    found = explain(toys.Linear(weight), x, "input-x-gradient")
    found = replace(
        found, inputs={**found.inputs, "images": torch.zeros(12, 1, 28, 28)}, target=Target.parse("critic@G")
    )
    shown = draw(found)
    assert shown.panels.keys() == {"maps", "beeswarm", "curves"}
    assert collisions(shown.canvases) == []
    swarm = shown.canvases[1].figure.axes[0]
    assert [label.get_text() for label in swarm.get_yticklabels()] == ["z[1]", "z[2]", "z[0]"]
    for dots, number in zip(swarm.collections, (1, 2, 0), strict=True):
        places = dots.get_offsets()
        assert np.allclose(places[:, 0], found.values["attribution"][:, number])
        assert np.array_equal(dots.get_array(), x[:, number].double())
        assert dots.norm.vmin == -dots.norm.vmax, "white is zero"
    few = explain(toys.Linear(weight), x[:4], "input-x-gradient")
    assert "beeswarm" not in draw(few).panels


def test_a_long_note_takes_more_lines_and_not_smaller_letters(drawn):
    found, note = drawn("attfind").found, "also best for T-shirt/top (down), coat (down), bag (down)"
    with watched() as canvases:
        gallery(found, [Row(title="pullover", tiles=[None], notes=["z[48], moved down", note])], [])
    noted = [text for text in canvases[0].figure.texts if text.get_text() and text.get_text() in note]
    assert " ".join(text.get_text() for text in noted) == note
    assert min(text.get_fontsize() for text in noted) >= 10 * POINT  # CSS pixels
    assert collisions(canvases) == []


def test_maps_over_time_collide_with_nothing():
    pair, request = invariance.subject(), invariance.request_of("feature-maps")
    before = Earlier(images=12_000, generator=pair.generator, critic=pair.critic)
    asked = replace(request, options={**request.options, "checkpoints": 2})
    shown = draw(drive(build_explainer(replace(pair, earlier=(before,)), asked)))
    assert shown.panels.keys() == {"feature-maps", "feature-maps-over-time"}
    assert collisions(shown.canvases) == []
    assert any("12 kimg" in text for canvas in shown.canvases for text in words_of(canvas))


def test_words_on_words_are_found():
    canvas = Canvas(300, 100)
    canvas.text(10, 10, "one above", size=12)
    canvas.text(10, 40, "another below", size=12)
    canvas.array()
    assert collisions([canvas]) == []
    canvas.text(40, 14, "across", size=12)
    canvas.text(290, 70, "over the edge", size=12)
    canvas.array()
    assert collisions([canvas]) == ["over the edge: over the edge", "one above | across"]


def test_no_method_is_left_out():
    assert WANTED.keys() == EXPLAINERS.keys()


def test_every_panel_belongs_to_a_tested_method():
    assert set().union(*WANTED.values(), {"feature-maps-over-time", "beeswarm"}) == PANELS.keys()


def test_attacks_on_what_is_no_picture_are_drawn_without_one():
    weight = torch.tensor([1.0, -2.0, 0.5])
    for method in ("attack-input", "explanation-robustness"):
        found = explain(toys.Linear(weight), torch.randn(3, 3), method)
        assert all(panel.shape[0] > 100 for panel in draw_panels(found).values())
