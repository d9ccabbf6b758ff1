"""Integrated gradients against its axioms and against captum called directly."""

from __future__ import annotations

import pytest
import torch
import toys
from torch import nn

from ganscale.explain import explain
from ganscale.explain.errors import ZeroGradientError


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(5, 1, 14, 14, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_ig_of_a_linear_model_is_weight_times_the_way(images):
    weight = torch.randn(1, 14, 14, generator=torch.Generator().manual_seed(2))
    found = explain(toys.Linear(weight, 0.7), images, "integrated-gradients", baseline=-0.25)
    truth = weight * (images + 0.25)
    # float32 arithmetic over a 50-point rule
    assert (found.values["attribution"] - truth).abs().max() <= 1e-6 * truth.abs().max()


def test_ig_of_a_smooth_network_is_complete_at_50_steps():
    x = torch.randn(8, 20, generator=torch.Generator().manual_seed(3))
    found = explain(toys.mlp(20, nn.Tanh()), x, "integrated-gradients", steps=50)
    assert found.scores["completeness_gap"].value <= 1e-5


@pytest.mark.parametrize(("steps", "gap"), [(50, 3e-2), (200, 1e-2), (500, 3e-3)])
def test_ig_of_a_rough_network_is_complete_as_steps_grow(images, steps, gap):
    found = explain(toys.conv_critic(), images, "integrated-gradients", steps=steps)
    assert found.scores["completeness_gap"].value <= gap


def test_automatic_steps_double_until_the_gap_is_within_tolerance(images):
    loose = explain(toys.conv_critic(), images, "integrated-gradients", tolerance=0.5)
    usual = explain(toys.conv_critic(), images, "integrated-gradients")
    tight = explain(toys.conv_critic(), images, "integrated-gradients", tolerance=1e-3)
    assert set(loose.meta["steps"]) == {50}
    assert loose.scores["completeness_gap"].value > 1e-2  # so that there is something to double for
    assert max(tight.meta["steps"]) > max(usual.meta["steps"]) > 50
    assert usual.scores["completeness_gap"].value <= 1e-2
    assert tight.scores["completeness_gap"].value <= 1e-3
    assert usual.meta["warnings"] == tight.meta["warnings"] == []


def test_a_tolerance_out_of_reach_is_said_in_the_warnings(images):
    found = explain(toys.conv_critic(), images, "integrated-gradients", steps=2, tolerance=1e-9)
    assert any("completeness gap" in words for words in found.meta["warnings"])


def test_ig_equals_captum_called_directly(images):
    captum = toys.peer("captum.attr")
    critic = toys.conv_critic().eval()
    ours = explain(critic, images, "integrated-gradients", steps=50, baseline="low").values["attribution"]
    theirs = captum.IntegratedGradients(critic).attribute(images, baselines=-1.0, n_steps=50, method="gausslegendre")
    assert (ours - theirs).abs().max() <= 1e-6


def test_a_detached_callable_is_refused(images):
    with pytest.raises(ZeroGradientError, match="detached"):
        explain(lambda x: x.detach().flatten(1).sum(1), images, "integrated-gradients")


def test_a_gradient_of_zero_everywhere_is_refused(images):
    with pytest.raises(ZeroGradientError, match="saturated sigmoid"):
        explain(lambda x: torch.sign(x).flatten(1).sum(1) + 0 * x.flatten(1).sum(1), images, "integrated-gradients")
