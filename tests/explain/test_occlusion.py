"""Occlusion against its definition and against captum, window by window."""

from __future__ import annotations

import pytest
import torch
import toys

from ganscale.explain import explain
from ganscale.explain.occlusion import Occlusion
from ganscale.ops.windowed import Windowed

BARE = {"shakes": 0, "shuffled_network": False}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 1, 14, 14, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_occlusion_of_a_linear_model_is_the_mean_sum_over_the_windows_of_a_pixel(images):
    weight = torch.randn(1, 14, 14, generator=torch.Generator().manual_seed(2))
    found = explain(toys.Linear(weight), images, "occlusion", window=4, stride=4, **BARE)
    part = (weight * (images + 1))[:, 0]  # black is -1
    truth = torch.empty_like(part)
    for top in range(0, 14, 4):
        for left in range(0, 14, 4):  # the last window of a row is cut off by the edge
            window = (slice(None), slice(top, top + 4), slice(left, left + 4))
            truth[window] = part[window].sum(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(found.values["attribution"][:, 0], truth, atol=1e-4, rtol=0)  # float32 sums of 196


@pytest.mark.parametrize("at_once", [1, 64])
@pytest.mark.parametrize(("window", "stride"), [(4, 2), (5, 3), (3, 3)])
def test_occlusion_equals_captum(images, window, stride, at_once):
    captum = toys.peer("captum.attr")
    critic = toys.conv_critic().eval()
    ours = explain(critic, images, "occlusion", window=window, stride=stride, **BARE).values["attribution"]
    theirs = captum.Occlusion(critic).attribute(
        images,
        sliding_window_shapes=(1, window, window),
        strides=(1, stride, stride),
        baselines=-1.0,
        perturbations_per_eval=at_once,
    )
    assert (ours - theirs).abs().max() <= 1e-6


def test_a_window_hides_all_channels_at_once_as_in_captum():
    captum = toys.peer("captum.attr")
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    weight = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(2))

    def squares(rows: torch.Tensor) -> torch.Tensor:
        return ((rows * weight).flatten(1).sum(dim=1)).square()

    ours = explain(squares, x, "occlusion", window=4, stride=4, **BARE).values["attribution"]
    theirs = captum.Occlusion(squares).attribute(
        x, sliding_window_shapes=(3, 4, 4), strides=(3, 4, 4), baselines=-1.0, perturbations_per_eval=4
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


def test_the_cells_of_occlusion_share_a_windows_fall_by_area(images):
    weight = torch.randn(1, 14, 14, generator=torch.Generator().manual_seed(2))
    found = explain(toys.Linear(weight), images, "occlusion", window=2, stride=2, cells=7, **BARE)
    torch.testing.assert_close(
        found.values["segment_weights"].sum(dim=1).float(),
        (weight * (images + 1)).sum(dim=(1, 2, 3)),
        atol=1e-3,
        rtol=0,
    )
    assert found.scores["completeness_gap"].value <= 1e-5
    assert not found.not_better_than_random


def test_a_vector_is_occluded_feature_by_feature():
    x = torch.tensor([[1.0, -2.0, 3.0]])
    found = explain(toys.Linear(torch.tensor([2.0, 1.0, 0.0])), x, "occlusion")
    assert found.values["attribution"].tolist() == [[2.0, -2.0, 0.0]]
    assert found.meta["windows"] == 3


def patched(network, x: torch.Tensor, monkeypatch, **options):
    """Return the explanation, and whether the first layers were computed where windows reach, alone."""
    used, by_patches = [], Occlusion._by_patches

    def watch(self, *args):
        used.append((y := by_patches(self, *args)) is not None)
        return y

    monkeypatch.setattr(Occlusion, "_by_patches", watch)
    found = explain(network, x, "occlusion", **BARE, **options)
    monkeypatch.setattr(Occlusion, "_by_patches", by_patches)
    assert len(set(used)) == 1
    return found, used[0]


@pytest.mark.parametrize(
    "options", [{}, {"window": 4, "stride": 3}, {"window": 1, "stride": 1}, {"window": 5}], ids=str
)
def test_patches_of_the_first_layers_give_the_map_of_whole_images(images, monkeypatch, options):
    critic = toys.conv_critic().eval()
    ours, is_patched = patched(critic, images, monkeypatch, **options)
    assert is_patched
    monkeypatch.setattr(Occlusion, "_by_patches", lambda *_: None)
    plain = explain(critic, images, "occlusion", **BARE, **options)
    scale = float(critic(images).detach().abs().max())
    torch.testing.assert_close(ours.values["attribution"], plain.values["attribution"], rtol=0, atol=1e-6 * scale)
    assert ours.meta["cost"]["rows_forward"] == plain.meta["cost"]["rows_forward"]
    assert ours.scores.keys() == plain.scores.keys()


def test_the_first_samples_are_explained_to_the_bit_as_alone(images):
    critic = toys.conv_critic().eval()
    every, two = (explain(critic, x, "occlusion", **BARE).values["attribution"] for x in (images, images[:2]))
    assert torch.equal(every[:2], two)


def test_large_maps_are_held_for_one_sample_at_a_time(images, monkeypatch):
    critic = toys.conv_critic().eval()
    together, _ = patched(critic, images, monkeypatch)
    monkeypatch.setattr(Windowed, "images", 2)
    one_by_one, is_patched = patched(critic, images, monkeypatch)
    assert is_patched
    assert torch.equal(one_by_one.values["attribution"], together.values["attribution"])
    monkeypatch.setattr(Windowed, "images", 1)
    assert not patched(critic, images, monkeypatch)[1]


def test_a_network_that_is_watched_or_mixes_all_pixels_sees_whole_images(images, monkeypatch):
    watched = toys.conv_critic().eval()
    watched[0].register_forward_hook(lambda *_: None)
    for network in (watched, toys.Linear(torch.ones(1, 14, 14))):
        assert not patched(network, images, monkeypatch)[1]
