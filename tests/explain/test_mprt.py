"""The randomisation test tells maps that are about the network from those that only copy the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys
from torch import nn

from ganscale.dashboards.panels import draw_panels
from ganscale.explain import EXPLAINERS, explain
from ganscale.explain.errors import ExplainOptionError, ExplainTargetError
from ganscale.explain.gradients import InputXGradient
from ganscale.explain.shuffling import shuffled_weights


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 1, 14, 14, generator=torch.Generator().manual_seed(1)) * 2 - 1


class Copy(InputXGradient):
    """Gives the picture itself for a map."""

    name = "copy"

    def maps(self, rows, chunk, meter):
        return {"maps": self.x[rows].clone()}


@pytest.mark.parametrize("method", ["integrated-gradients", "kernel-shap", "saliency"])
def test_a_map_of_the_network_changes_with_it(images, method):
    found = explain(toys.conv_critic(), images, "mprt", of=method)
    assert found.meta["layers"] == ["5", "2", "0"]
    assert not found.not_better_than_random
    assert found.values["similarity"].shape == (3, 6)
    assert set(draw_panels(found)) == {"randomisation"}
    assert found.scores["similarity_all_shuffled"].control > 0.8  # moved inputs leave the map much as it was


def test_a_copy_of_the_picture_survives_the_shuffling_and_is_found_out(images, monkeypatch):
    monkeypatch.setitem(EXPLAINERS, "copy", Copy)
    found = explain(toys.conv_critic(), images, "mprt", of="copy")
    assert found.scores["similarity_all_shuffled"].value == pytest.approx(1)
    assert found.not_better_than_random


def test_the_stages_are_those_of_the_network_with_these_layers_shuffled(images):
    critic = toys.conv_critic()
    found = explain(critic, images, "mprt", of="input-x-gradient", baseline="zero", seed=3)
    bare = {"shakes": 0, "shuffled_network": False, "baseline": "zero"}
    own = explain(critic, images, "input-x-gradient", **bare).values["attribution"]
    torch.testing.assert_close(found.values["stage_maps"][0], own[:4])
    for stage, layers in enumerate((["5"], ["5", "2"], ["5", "2", "0"])):
        with shuffled_weights(critic, seed=3, layers=layers):
            wanted = explain(critic, images, "input-x-gradient", **bare).values["attribution"]
        torch.testing.assert_close(found.values["stage_maps"][stage + 1], wanted[:4])
        rank = [np.argsort(np.argsort(m[0].flatten().numpy())) for m in (own, wanted)]
        assert float(found.values["similarity"][stage, 0]) == pytest.approx(abs(np.corrcoef(*rank)[0, 1]), abs=1e-9)


@pytest.mark.parametrize("of", ["input-x-gradient", "kernel-shap"])
def test_a_stage_that_fails_for_some_samples_says_for_how_many_and_leaves_the_others(images, of):
    critic = nn.Sequential(toys.FailsShuffled(14, above=0.02))
    found = explain(critic, images, "mprt", of=of, cells=3)
    bright = images.flatten(1).mean(dim=1) > 0.02
    assert 0 < bright.sum() < 6
    assert torch.equal(found.values["similarity"].isnan(), bright[None])
    assert found.scores["similarity_all_shuffled"].n == int((~bright).sum())
    assert np.isfinite(found.scores["similarity_all_shuffled"].value)
    assert found.meta["warnings"] == [f"no finite map of {int(bright.sum())} of 6 samples once 0 was shuffled"]
    assert torch.isfinite(found.values["stage_maps"]).all()
    assert set(draw_panels(found)) == {"randomisation"}


def test_what_cannot_be_tested_is_refused(images):
    with pytest.raises(ExplainOptionError, match="of must be one of"):
        explain(toys.conv_critic(), images, "mprt", of="directions")
    with pytest.raises(ExplainTargetError, match="network with weights"):
        explain(lambda x: x.flatten(1).sum(1), images, "mprt")
