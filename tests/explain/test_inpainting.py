"""What a generator would draw in place of absent cells: it is what belongs to the cells that are there.

N samples, C channels, H height, W width, K images of the bank.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys
from torch import nn

from ganscale.dashboards.layout import baseline_words
from ganscale.explain import Subject, build_explainer, explain, inpainting, make_request
from ganscale.explain.cells import grid_segments
from ganscale.explain.errors import ExplainOptionError
from ganscale.explain.inpainting import Inpainting
from ganscale.explain.occlusion import Occlusion

pytestmark = pytest.mark.filterwarnings("ignore:inputs lie in")  # bright pictures are meant

SIDE = 8
BARE = {"shakes": 0, "shuffled_network": False}


class TwoPictures(nn.Module):
    """Draws bright pictures and dark ones, never one that is half of each; more dark ones."""

    latent = 2

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        bright = (z[:, 0] > 0.5).float()[:, None, None, None]
        return (1.6 * bright - 0.8).expand(-1, 1, SIDE, SIDE)


def right_half(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0, :, SIDE // 2 :].mean(dim=(1, 2))


def subject(**networks) -> Subject:
    return Subject(name="right half", **{"fn": right_half, "generator": TwoPictures()} | networks)


def bright(count: int = 2) -> torch.Tensor:
    return torch.full((count, 1, SIDE, SIDE), 0.9)


def test_any_cell_tells_a_generator_of_whole_pictures_what_the_others_are():
    found = explain(subject(), bright(), "kernel-shap", cells=3, fill="generator", **BARE)
    black = explain(subject(), bright(), "kernel-shap", cells=3, **BARE)
    full, filled, empty = 0.9, 0.8, -0.8  # one cell there makes it bright; with none it is as most pictures are, dark
    assert found.values["fx"].tolist() == pytest.approx([full, full])
    assert found.values["f_baseline"].tolist() == pytest.approx([empty, empty])
    assert float(found.values["deletion_curve"][0][1:-1].min()) >= filled - 1e-6  # what goes is drawn in again
    assert float(black.values["deletion_curve"][0][1:-1].min()) < 0
    left = torch.arange(9) % 3 == 0  # f does not see them
    assert black.values["segment_weights"][0][left].abs().max() < 1e-6
    shares = found.values["segment_weights"][0][left]  # yet any tells as much as another what belongs where f looks
    torch.testing.assert_close(shares, torch.full_like(shares, (filled - empty) / 9), atol=1e-6, rtol=0)
    assert baseline_words(found) == "what the generator would draw there, the best fitting of 256 images"
    assert "black" in baseline_words(black)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_shares_of_whole_pictures_are_the_shapley_values_of_that_game(dtype):
    x = torch.full((1, 1, SIDE, SIDE), 0.8, dtype=dtype)  # as the generator draws it: v is 0.8 with any cell, else -0.8
    found = explain(subject(), x, "exact-shapley", cells=3, fill="generator", **BARE)
    shares = found.values["segment_weights"][0]
    torch.testing.assert_close(shares, torch.full_like(shares, 1.6 / 9), atol=1e-6, rtol=0)  # float32 means


@pytest.mark.parametrize("side", [SIDE, 1])
def test_what_a_window_hides_is_what_the_generator_would_draw_there(side):
    class Many(nn.Module):
        latent = 3

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            wave = torch.arange(2 * side * side).reshape(2, side, side)
            return (z @ torch.sin(torch.arange(3)[:, None] + wave.flatten())).unflatten(1, (2, side, side)).tanh()

    x = torch.rand(3, 2, side, side, generator=torch.Generator().manual_seed(3)) * 2 - 1
    weight = torch.randn(2, side, side, generator=torch.Generator().manual_seed(4))
    pair = subject(fn=toys.Linear(weight), generator=Many())
    found = explain(pair, x, "occlusion", fill="generator", window=4, bank=40, **BARE)
    asked = {"fill": "generator", "window": 4, "bank": 40}
    bank = build_explainer(pair, make_request(Occlusion, x, options=asked)).inpainting.bank
    wanted, covered = torch.zeros(3, side * side * (1 if side > 1 else 2)), 0
    masks = build_explainer(pair, make_request(Occlusion, x, options=asked)).masks
    for window in masks:
        hidden = window.expand(2, side, side) if side > 1 else window.reshape(2, 1, 1)
        for row, one in enumerate(x):
            away = ((bank - one).double().square() * ~hidden).sum(dim=(1, 2, 3))
            filled = torch.where(hidden, bank[away.argmin()], one)
            wanted[row] += ((one - filled) * weight).sum() * window.flatten()
        covered = covered + window.flatten()
    wanted = (wanted / covered).reshape(3, -1, side, side).expand(-1, 2, -1, -1)
    torch.testing.assert_close(found.values["attribution"], wanted, atol=1e-5, rtol=1e-5)  # float32 sums
    typical = ((x - bank[:1]) * weight).flatten(1).sum(1)
    torch.testing.assert_close(found.values["fx"] - found.values["f_baseline"], typical.double(), atol=1e-5, rtol=1e-5)
    assert found.meta["cost"]["images_drawn_by_each_process"] == 40


def test_how_far_the_bank_is_from_a_sample_is_found_once_for_all_its_chunks(monkeypatch):
    plain, asked = inpainting.cell_sums, []
    monkeypatch.setattr(inpainting, "cell_sums", lambda *given: asked.append(given) or plain(*given))
    x = bright(3) * torch.tensor([1.0, 0.9, 0.8])[:, None, None, None]
    found = explain(subject(), x, "lime", cells=4, num_coalitions=600, fill="generator", **BARE)
    assert found.meta["plan"]["chunks"] > 3 * 4
    assert len(asked) == 3  # one for each sample: its curves follow its map


def test_the_image_that_is_taken_is_the_nearest_of_all_on_the_cells_that_are_there():
    draw = torch.Generator().manual_seed(3)
    bank = torch.rand(40, 2, SIDE, SIDE, generator=draw) * 2 - 1
    x = torch.rand(2, SIDE, SIDE, generator=draw) * 2 - 1
    segments = grid_segments((2, SIDE, SIDE), 4)
    present = np.random.default_rng(0).random((25, 16)) < 0.5
    present[0] = False
    fitting = Inpainting(lambda: bank)
    best = fitting.best(x, present, segments)
    for row, there in enumerate(present):
        mask = torch.from_numpy(there)[segments]
        away = ((fitting.bank - x).double().square() * mask).sum(dim=(1, 2, 3))
        assert float(away[best[row]]) <= float(away.min()) * (1 + 1e-12)
    typical = (bank - bank.mean(dim=0)).flatten(1).norm(dim=1).argmin()
    assert torch.equal(fitting.bank[best[0]], bank[typical])


@pytest.mark.parametrize(
    ("networks", "words"),
    [
        ({"generator": None}, "fill must be baseline for what has no generator"),
        ({"generator": toys.ConvGenerator(3, 14)}, r"fill must be baseline for samples of shape \(1, 8, 8\)"),
    ],
)
def test_without_a_generator_of_such_images_it_is_refused(networks, words):
    with pytest.raises(ExplainOptionError, match=words):
        explain(subject(**networks), bright(), "kernel-shap", fill="generator", cells=3)


def test_latents_are_not_drawn_in():
    of_latent = Subject(name="f@G", fn=lambda z: z.sum(1), generator=TwoPictures(), value_range=None, domain="z")
    with pytest.raises(ExplainOptionError, match="fill must be baseline"):
        explain(of_latent, torch.randn(2, 2), "kernel-shap", fill="generator")
