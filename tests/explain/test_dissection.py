"""Dissection of a generator whose channels each draw one figure: the right unit is found, and without it it is gone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ganscale.data.shapes import KINDS, RANGES, distance
from ganscale.explain import Classifier, Subject, build_explainer, explain, make_request
from ganscale.explain.errors import LayerError
from ganscale.explain.units.concepts import DARK, FIGURE, Concepts
from ganscale.explain.units.dissect import QUANTILES, SHARES, Dissect

SIDE, LATENT = 28, 8


class OneChannelAFigure(nn.Module):
    """Channel k of ``figures`` draws kind k of ``shapes`` in its own quarter; more channels draw noise of no effect."""

    latent = LATENT

    def __init__(self) -> None:
        super().__init__()
        self.figures = _Figures()
        self.to_image = nn.Conv2d(LATENT, 1, 1, bias=True)
        with torch.no_grad():
            self.to_image.weight.zero_()
            self.to_image.weight[0, : len(KINDS)] = 2.0
            self.to_image.bias.fill_(-1.0)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.to_image(self.figures(z)).clamp(-1, 1)


class _Figures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        maps = []
        for k in range(len(KINDS)):
            size = 0.38 + 0.1 * z[:, k].sigmoid().numpy()
            factors = np.zeros((len(z), 6))
            factors[:, 0], factors[:, 3], factors[:, 4] = k, size, z[:, 4].numpy() / 4
            factors[:, 1], factors[:, 2] = (1.2 if k % 2 else -1.2), (1.2 if k // 2 else -1.2)
            seen = z[:, k].numpy()[:, None, None] > -0.8  # not in every picture
            maps.append(np.clip(0.5 - distance(factors, (SIDE, SIDE)), 0, 1) * seen)
        drawn = torch.from_numpy(np.stack(maps, axis=1)).float() * self.scale
        noise = torch.sin(z.sum(dim=1)[:, None, None, None] * torch.arange(4 * SIDE**2).view(4, SIDE, SIDE))
        return torch.cat([drawn, noise], dim=1)


def by_quarter(images: torch.Tensor) -> torch.Tensor:
    """Segment by the quarter of the picture in which each kind lives."""
    bright, half = images[:, 0] > 0, SIDE // 2
    masks = torch.zeros(len(images), len(KINDS), SIDE, SIDE)
    for k in range(len(KINDS)):
        rows, columns = slice((k // 2) * half, (k // 2 + 1) * half), slice((k % 2) * half, (k % 2 + 1) * half)
        masks[:, k, rows, columns] = bright[:, rows, columns].float()
    return masks


def subject() -> Subject:
    generator = OneChannelAFigure()
    return Subject(name="figures", fn=by_quarter, generator=generator, segmenter=by_quarter, concepts=KINDS)


def latents(count: int) -> torch.Tensor:
    return torch.randn(count, LATENT, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def dissection():
    pair = subject()
    before = pair.generator(latents(4))
    found = explain(pair, latents(48), "dissect", layer="figures", ablate=1)
    return found, pair, before


def test_the_unit_of_a_figure_is_found_and_the_others_are_not_it(dissection):
    found, _, _ = dissection
    assert found.values["best_unit"].tolist() == [0, 1, 2, 3]
    iou = found.values["iou"]
    own = torch.eye(LATENT, len(KINDS)).bool()
    assert iou[own].min() >= 0.9
    assert iou[~own].max() <= 0.1
    assert found.scores["iou_held_out"].value >= 0.9
    assert not found.not_better_than_random
    assert set(RANGES) >= {"size", "angle"}


def test_what_a_chunk_counts_is_units_by_concepts_and_thresholds_however_many_latents():
    thresholds = len(QUANTILES) + len(SHARES)
    for count in (2, 16):
        request = make_request(Dissect, latents(count), options={"layer": "figures"})
        explainer = build_explainer(subject(), request)
        ((*_, data),) = explainer.run(explainer.plan()[0]).items
        # of both halves, with own and others' masks: of 512 units and 11 concepts half a megabyte each
        for name in ("both", "both_permuted"):
            assert data[name].nbytes == 2 * thresholds * LATENT * len(KINDS) * 4
        assert sum(array.nbytes for array in data.values()) < 4 * data["both"].nbytes


def test_without_its_unit_a_figure_is_gone(dissection):
    found, _, _ = dissection
    assert found.values["removed"].min() >= 0.95
    assert found.scores["pixels_removed"].control <= 0.4  # a random unit is the right one once in eight times
    without = found.values["without"][:, 0]
    k = int(found.values["shown_concepts"][0])
    rows, columns = slice((k // 2) * 14, (k // 2 + 1) * 14), slice((k % 2) * 14, (k % 2 + 1) * 14)
    assert without[0, rows, columns].max() == -1


def test_a_generator_is_as_it_was_after_dissection(dissection):
    _, pair, before = dissection
    assert torch.equal(pair.generator(latents(4)), before)
    assert not pair.generator.figures._forward_hooks


def test_counts_of_parts_add_up_to_those_of_the_whole():
    from ganscale.explain import build_explainer, make_request
    from ganscale.explain.units.dissect import Dissect

    pair = subject()
    explainer = build_explainer(pair, make_request(Dissect, latents(40), options={"layer": "figures"}))
    chunks = explainer.plan()
    parts = [explainer.run(chunk).items[0][3] for chunk in chunks]
    thresholds = torch.from_numpy(chunks[0].work["thresholds"]).float()
    maps, masks = pair.generator.figures(latents(40)), by_quarter(pair.generator(latents(40))).bool()
    for half in (0, 1):
        above = maps[half::2, 2] > thresholds[3, 2]
        both = sum(int(part["both"][half, 3, 2, 1]) for part in parts)
        assert both == int((above & masks[half::2, 1]).sum())
        assert sum(int(part["mask"][half, 0, 1]) for part in parts) == int(masks[half::2, 1].sum())


def test_without_a_segmenter_the_figure_carries_the_classifiers_verdict():
    images = torch.full((2, 1, 8, 8), -1.0)
    images[0, :, 2:4, 2:4], images[1, :, 5:, 5:] = 1.0, 0.0
    judge = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    classifier = Classifier(judge, name="judge", example=images)
    pair = Subject(name="pair", fn=judge, classifier=classifier)
    masks = Concepts(pair)(images)
    assert Concepts(pair).names == ("0", "1", "2", FIGURE)
    assert torch.equal(masks[:, 3], images[:, 0] > DARK)
    for image, verdict in enumerate(classifier(images).argmax(dim=1).tolist()):
        assert torch.equal(masks[image, verdict], masks[image, 3])
        assert masks[image, :3].any(dim=0).equal(masks[image, 3])
    assert Concepts(Subject(name="alone", fn=judge)).names == (FIGURE,)


def test_a_layer_without_a_map_is_refused():
    with pytest.raises(LayerError, match="did you mean to_image"):
        explain(subject(), latents(2), "dissect", layer="toimage")
    flat = nn.Sequential(nn.Linear(LATENT, 9), nn.Unflatten(1, (1, 3, 3)))
    pair = Subject(name="flat", fn=by_quarter, generator=flat)
    with pytest.raises(LayerError, match=r"have a map \(C, h, w\)"):
        explain(pair, latents(2), "dissect", layer="0")
    with pytest.raises(LayerError, match="have a hidden layer with a map"):
        explain(pair, latents(2), "dissect")


def test_a_unit_is_counted_where_it_beats_every_unit_under_the_masks_of_other_images(dissection):
    found, _, _ = dissection
    own, other = found.values["iou"], found.values["iou_permuted"]
    assert found.meta["layers"] == ["figures"]
    assert found.meta["units_in_layers"] == [LATENT]
    by_hand = [
        [int((a[:, k] > b[:, k].max()).sum()) for k in range(len(KINDS))] for a, b in ((own, other), (other, own))
    ]
    assert found.values["units_by_layer"].tolist() == [by_hand[0]]
    assert found.values["units_by_layer_permuted"].tolist() == [by_hand[1]]
    assert by_hand == [[1] * len(KINDS), [0] * len(KINDS)], "the one that draws it, and none under other masks"


def test_the_pictures_of_a_unit_are_those_of_its_concept(dissection):
    found, _, _ = dissection
    for place, k in enumerate(found.values["shown_concepts"].tolist()):
        assert by_quarter(found.values["unit_images"][place])[:, k].flatten(1).any(dim=1).all()


def test_units_are_counted_in_every_hidden_layer_with_a_map():
    class Deeper(OneChannelAFigure):
        def __init__(self) -> None:
            super().__init__()
            self.silent = nn.Conv2d(LATENT, 3, 1)
            with torch.no_grad():
                self.silent.weight.zero_()

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            figures = self.figures(z)
            return self.to_image(figures + self.silent(figures).sum(dim=1, keepdim=True) * 0).clamp(-1, 1)

    pair = Subject(name="figures", fn=by_quarter, generator=Deeper(), segmenter=by_quarter, concepts=KINDS)
    found = explain(pair, latents(48), "dissect", layer="figures", ablate=1)
    assert found.meta["layers"] == ["figures", "silent"]
    assert found.values["units_by_layer"][0].tolist() == [1] * len(KINDS)
    assert found.values["units_by_layer"][1].sum() == 0, "a layer that says the same everywhere detects nothing"
