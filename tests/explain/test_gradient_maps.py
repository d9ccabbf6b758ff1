"""Maps from gradients and from inner layers, against linear models, their axioms and captum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys
from torch import nn

from ganscale.explain import Subject, explain
from ganscale.explain.errors import ExplainInputError, ExplainTargetError, LayerError, ZeroGradientError

BARE = {"shakes": 0, "shuffled_network": False}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(5, 1, 14, 14, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(1, 14, 14, generator=torch.Generator().manual_seed(2))


def maps(*args, **options) -> torch.Tensor:
    return explain(*args, **{**BARE, **options}).values["attribution"]


@pytest.mark.parametrize("method", ["saliency", "smoothgrad"])
def test_the_gradient_of_a_linear_model_is_its_weight(images, weight, method):
    signed = maps(toys.Linear(weight), images, method, absolute=False)
    # a mean of 32 float32 gradients
    torch.testing.assert_close(signed, weight.expand(5, 1, 14, 14), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(maps(toys.Linear(weight), images, method), signed.abs())


@pytest.mark.parametrize("method", ["saliency", "smoothgrad", "input-x-gradient", "integrated-gradients"])
def test_what_a_gradient_predicts_for_a_linear_model_holds_exactly(images, weight, method):
    found = explain(toys.Linear(weight.double()), images.double(), method, **BARE)
    assert found.scores["infidelity"].value <= 1e-10
    assert found.scores["completeness_gap"].value <= 1e-8  # captum's nodes of the path are float32
    assert found.scores["infidelity"].control > 0.1


def test_input_x_gradient_of_a_linear_model_is_weight_times_the_way(images, weight):
    found = maps(toys.Linear(weight), images, "input-x-gradient", baseline=-0.5)
    torch.testing.assert_close(found, weight * (images + 0.5))


def test_saliency_and_input_x_gradient_equal_captum(images):
    captum = toys.peer("captum.attr")
    critic = toys.conv_critic().eval()
    theirs = captum.Saliency(critic).attribute(images.clone().requires_grad_())
    assert (maps(critic, images, "saliency") - theirs).abs().max() <= 1e-6
    theirs = captum.InputXGradient(critic).attribute(images.clone().requires_grad_())
    assert (maps(critic, images, "input-x-gradient", baseline=0) - theirs).abs().max() <= 1e-6


def test_smoothgrad_tends_to_captums_noise_tunnel(images):
    captum = toys.peer("captum.attr")
    critic = toys.conv_critic().eval()
    tunnel = captum.NoiseTunnel(captum.Saliency(critic))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = tunnel.attribute(images[:2], nt_samples=1000, nt_samples_batch_size=100, stdevs=0.3, abs=False)
    ours = maps(critic, images[:2], "smoothgrad", draws=1000, noise=0.15, absolute=False)  # of a range of width 2
    both = torch.stack([ours.flatten(), theirs.detach().flatten()])
    assert torch.corrcoef(both)[0, 1] >= 0.99  # two means over 1,000 draws each


def test_expected_gradients_of_a_linear_model_is_weight_times_the_way_from_the_others_mean(images, weight):
    found = explain(toys.Linear(weight), images, "expected-gradients", draws=8, **BARE)
    others = (images.sum(dim=0, keepdim=True) - images) / 4
    torch.testing.assert_close(found.values["attribution"], weight * (images - others), atol=1e-5, rtol=1e-5)
    assert found.scores["completeness_gap"].value <= 1e-5


def test_expected_gradients_is_near_complete_and_needs_another_sample(images):
    found = explain(toys.conv_critic(), images, "expected-gradients", draws=512, **BARE)
    # 512 stratified points: .004 measured
    assert found.scores["completeness_gap"].value <= 0.02
    with pytest.raises(ExplainInputError, match="at least 2 samples"):
        explain(toys.conv_critic(), images[:1], "expected-gradients")


def test_expected_gradients_tend_to_captums_gradient_shap(images):
    captum = toys.peer("captum.attr")
    critic = toys.conv_critic().eval()
    ours = maps(critic, images, "expected-gradients", draws=1024)[:1]
    np.random.seed(0)  # noqa: NPY002 - the stream that captum draws from
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # the same question: from the other samples, at a random place of the way
        theirs = captum.GradientShap(critic).attribute(images[:1], baselines=images[1:], n_samples=4000, stdevs=0.0)
    both = torch.stack([ours.flatten(), theirs.detach().flatten()])
    assert torch.corrcoef(both)[0, 1] >= 0.99  # two means, over 1,024 and 4,000 draws
    assert float((both[0] - both[1]).norm() / both[1].norm()) <= 0.05


@pytest.mark.parametrize("method", ["saliency", "smoothgrad", "input-x-gradient", "expected-gradients"])
def test_a_gradient_of_zero_over_a_whole_sample_is_refused(images, method):
    with pytest.raises(ZeroGradientError, match="saturated sigmoid"):
        explain(lambda x: torch.sign(x).flatten(1).sum(1) + 0 * x.flatten(1).sum(1), images, method)


@pytest.mark.parametrize("layer", ["0", "2"])
def test_grad_cam_equals_captum(images, layer):
    captum = toys.peer("captum.attr")
    critic = toys.conv_critic().eval()
    ours = explain(critic, images, "grad-cam", layer=layer, **BARE).values["layer_shares"]
    theirs = captum.LayerGradCam(critic, critic[int(layer)]).attribute(images)
    assert (ours - theirs[:, 0].detach()).abs().max() <= 1e-6
    positive = explain(critic, images, "grad-cam", layer=layer, relu=True, **BARE).values["layer_shares"]
    torch.testing.assert_close(positive, ours.relu())


def test_the_map_over_the_pixels_has_the_sum_of_the_layers_shares(images):
    for method in ("grad-cam", "layer-conductance"):
        values = explain(toys.conv_critic(), images, method, **BARE).values
        sums = values["layer_shares"].sum(dim=(1, 2))
        torch.testing.assert_close(values["attribution"].sum(dim=(1, 2, 3)), sums, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", ["0", "1", "2", "3"])
def test_the_conductance_of_every_layer_adds_up_to_the_change_of_f(images, layer):
    found = explain(toys.conv_critic(), images, "layer-conductance", layer=layer, steps=200, **BARE)
    # the trapezoid rule over kinks of LeakyReLU
    assert found.scores["completeness_gap"].value <= 5e-3


def test_layer_conductance_tends_to_captum(images):
    captum = toys.peer("captum.attr")
    critic = toys.conv_critic().eval()
    ours = explain(critic, images, "layer-conductance", layer="2", steps=400, **BARE).values["layer_shares"]
    theirs = captum.LayerConductance(critic, critic[2]).attribute(images, baselines=-1.0, n_steps=400)
    theirs = theirs.detach().sum(dim=1).float()
    assert (ours - theirs).abs().max() <= 0.02 * theirs.abs().max()  # two rules of order 1 / steps on a rough path


def test_the_last_layer_with_a_map_is_found_by_use_not_by_definition(images):
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Conv2d(4, 4, 3, padding=1)
            self.first = nn.Conv2d(1, 4, 3, padding=1)
            self.head = nn.Linear(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.last(self.first(x).relu()).mean(dim=(2, 3))).squeeze(1)

    assert explain(Backwards(), images, "grad-cam", **BARE).meta["layer"] == "last"


def test_layers_that_have_no_map_or_are_not_there_are_refused(images):
    critic = toys.conv_critic()
    with pytest.raises(LayerError, match="maps"):
        explain(critic, images, "grad-cam", layer="5")
    with pytest.raises(LayerError, match="all layers"):
        explain(critic, images, "grad-cam", layer="blocks")
    with pytest.raises(ExplainTargetError, match="network"):
        explain(lambda x: x.flatten(1).sum(1), images, "grad-cam")
    with pytest.raises(LayerError, match="with a map"):
        explain(nn.Sequential(nn.Flatten(), nn.Linear(196, 1), nn.Flatten(0)), images, "grad-cam")


def test_a_layer_used_twice_is_named_by_its_use(images):
    conv = nn.Conv2d(1, 1, 3, padding=1)
    twice = nn.Sequential(conv, conv, nn.Flatten(), nn.Linear(196, 1), nn.Flatten(0))
    with pytest.raises(LayerError, match="0#0"):
        explain(Subject(name="twice", fn=twice, module=twice), images, "grad-cam", layer="0")
    assert explain(twice, images, "grad-cam", layer="0#1", **BARE).scores
    assert explain(twice, images, "grad-cam", **BARE).meta["layer"] == "0#1"
