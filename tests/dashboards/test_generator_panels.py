"""Panels of the methods that explain generators: each is drawn from saved tensors, and walks move."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from PIL import Image
from torch import nn

from ganscale.dashboards.animation import write_gifs
from ganscale.dashboards.gallery import Row, Tile, gallery
from ganscale.dashboards.panels import draw_panels, write_panels
from ganscale.explain import Classifier, Explanation, Subject, explain
from ganscale.explain.subject import subject_of_run

SIDE, LATENT = 14, 6
WANTED = {
    "latent-counterfactual": ({"steps": 5}, {"counterfactuals"}),
    "attfind": ({}, {"attributes"}),
    "class-generation": ({"steps": 2, "draws": 4, "candidates": 2}, {"classes"}),
    "probe-classifier": ({"draws": 16}, {"probe", "ways"}),
    "dissect": ({"ablate": 1}, {"dissection", "concepts"}),
    "layer-ablation": ({}, {"layers", "layer-effects"}),
    "layer-swap": ({}, {"layers", "layer-effects"}),
    "style-mixing": ({}, {"layers", "layer-effects", "mixing"}),
    "feature-maps": ({}, {"feature-maps"}),
    "feature-vis": ({"steps": 2, "units": 2}, {"feature-vis"}),
}


def subject() -> Subject:
    torch.manual_seed(0)
    critic, judge = toys.conv_critic(), nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 3))
    with torch.no_grad():
        judge[1].weight.mul_(20)
    classifier = Classifier(judge, name="judge", example=torch.zeros(2, 1, SIDE, SIDE), labels=("a", "b", "c"))
    generator = toys.ConvGenerator(LATENT, SIDE)
    with torch.no_grad():
        generator.up.weight.mul_(10)
    return Subject(name="pair", fn=critic, module=critic, generator=generator, critic=critic, classifier=classifier)


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "z": torch.randn(16, LATENT, generator=generator),  # more ways than are kept as pictures
        "real": torch.rand(12, 1, SIDE, SIDE, generator=generator) * 2 - 1,
        "real_labels": torch.arange(12) % 3,
    }


@pytest.mark.parametrize("method", WANTED)
def test_a_method_is_drawn_from_what_it_saved(method: str, tmp_path: Path):
    options, wanted = WANTED[method]
    explanation = explain(subject(), inputs(), method, **options)
    explanation.save(tmp_path / "saved")
    drawn = draw_panels(Explanation.load(tmp_path / "saved"))
    assert drawn.keys() == wanted
    for name, panel in drawn.items():
        assert (panel.dtype, panel.shape[2]) == (np.uint8, 3), name
        assert panel.std() > 5, "not empty"


def test_words_below_a_moving_picture_are_those_of_its_step(tmp_path: Path):
    found = explain(subject(), inputs()["z"], "directions", num_directions=2, steps=3)
    still = {**found.values, "traversal": found.values["traversal"][:, :1].expand_as(found.values["traversal"])}
    still["traversal_random"] = found.values["traversal_random"][:, :1].expand_as(found.values["traversal_random"])
    frames = {}
    for name, values in (("said", still), ("silent", {k: v for k, v in still.items() if k.startswith("traversal")})):
        [path] = write_gifs(replace(found, values={**values, "sigmas": found.values["sigmas"]}), tmp_path)
        with Image.open(path) as moving:
            pages = []
            for frame in (0, 1):
                moving.seek(frame)
                pages.append(np.asarray(moving.convert("L"), dtype=int)[50:])  # below the step's own words
            frames[name] = pages
    assert frames["said"][0].shape[0] > frames["silent"][0].shape[0]
    changed = {name: int((np.abs(first - then) > 64).sum()) for name, (first, then) in frames.items()}
    assert changed["silent"] == 0, "the pictures stand still; each frame has a palette of its own"
    assert changed["said"] > 20, "the numbers below them change"


def test_walks_move_there_and_back(tmp_path: Path):
    explanation = explain(subject(), inputs()["z"], "directions", num_directions=3, steps=5)
    written = {path.name for path in write_panels(explanation, tmp_path)}
    assert written == {"traversal.png", "traversal.gif"}
    with Image.open(tmp_path / "traversal.gif") as moving:
        frames = []
        for frame in range(moving.n_frames):
            moving.seek(frame)
            frames.append(np.asarray(moving.convert("RGB")).copy())
    assert len(frames) == 8, "five steps there, three back, and again"
    assert np.array_equal(frames[1], frames[7])
    assert not np.array_equal(frames[0], frames[4])


@pytest.mark.parametrize("target", ["critic", "class:1"])
def test_every_picture_of_a_walk_has_its_verdict_or_the_probability_of_the_target(target: str):
    pair = subject()
    asked = subject_of_run(target=target, critic=pair.critic, generator=pair.generator, classifier=pair.classifier)
    found = explain(asked, inputs()["z"], "directions", num_directions=2, steps=3)
    for end in ("", "_random"):
        images = found.values[f"traversal{end}"]
        with torch.no_grad():
            share = pair.classifier(images.flatten(0, 1)).double().softmax(dim=1).unflatten(0, images.shape[:2])
        wanted, of = share.max(dim=2) if target == "critic" else (share[..., 1], torch.ones(images.shape[:2]))
        assert torch.equal(found.values[f"walk_class{end}"].double(), of.double())
        torch.testing.assert_close(found.values[f"walk_probability{end}"], wanted)
    assert found.meta["walk_class_names"]["1"] == "b"
    plain = replace(found, values={name: v for name, v in found.values.items() if not name.startswith("walk_")})
    assert draw_panels(plain)["traversal"].shape[0] < draw_panels(found)["traversal"].shape[0], "a line more a row"


@pytest.mark.parametrize(
    ("method", "options", "name"),
    [
        ("latent-counterfactual", {"steps": 5}, "counterfactuals.gif"),
        ("probe-classifier", {"draws": 16}, "ways.gif"),
        ("attfind", {}, "attributes.gif"),
    ],
)
def test_every_way_through_latent_space_moves(method: str, options: dict, name: str, tmp_path: Path):
    explanation = explain(subject(), inputs(), method, **options)
    [path] = [path for path in write_panels(explanation, tmp_path) if path.suffix == ".gif"]
    assert path.name == name
    with Image.open(path) as moving:
        first = np.asarray(moving.convert("RGB"), dtype=float)
        moving.seek(moving.n_frames // 2)
        assert np.abs(np.asarray(moving.convert("RGB"), dtype=float) - first).max() > 100, "the far end differs"


def test_a_map_is_white_where_it_is_zero_and_red_where_it_is_largest():
    plane = np.zeros((14, 14))
    plane[:7], plane[10:] = 2.0, -2.0
    explanation = explain(subject(), inputs()["z"], "layer-ablation")
    page = gallery(explanation, [Row(title="map", tiles=[Tile(values=plane)])], ["line"])
    colours = {tuple(colour) for colour in page.reshape(-1, 3)}
    assert (103, 0, 31) in colours, "the red end of RdBu"
    assert (5, 48, 97) in colours, "the blue end, at equal distance"
