"""The randomisation test tells maps that are about the network from those that only copy the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys

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


def test_what_cannot_be_tested_is_refused(images):
    with pytest.raises(ExplainOptionError, match="of must be one of"):
        explain(toys.conv_critic(), images, "mprt", of="directions")
    with pytest.raises(ExplainTargetError, match="network with weights"):
        explain(lambda x: x.flatten(1).sum(1), images, "mprt")
