"""Every target of a run is one number a row, and is refused in words where it cannot be.

N rows, C channels, H height, W width, D latent, K classes.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys
from PIL import Image
from torch import nn

from ganscale.explain import Classifier, Target, explain, subject_of_run
from ganscale.explain.errors import CallableError, ExplainTargetError, LayerError
from ganscale.explain.layers import layer_output
from ganscale.explain.shuffling import shuffled_weights
from ganscale.explain.subject import looks_across_its_batch

SIDE = 14


class ByLabel(nn.Module):
    """D(x, y) = (y + 1) times the mean of x."""

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return (label + 1) * x.flatten(1).mean(1)


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def z():
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def networks(images):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    classifier = Classifier(model, name="toy", example=images, labels=("coat", "shirt", "bag"))
    return {
        "critic": toys.conv_critic().eval(),
        "generator": toys.LinearGenerator(6, SIDE).eval(),
        "classifier": classifier,
        "reference": images[:1],
    }


TEXTS = (
    "critic",
    "critic:fake",
    "critic(3)",
    "critic(3):fake",
    "critic@G",
    "class:4",
    "class:coat:margin",
    "class:4@G",
)
INNER = ("unit:D.0:3", "unit:blocks.2.conv:3:5:6", "distance:C.0", "region:0,0,4,5", "region:0,0,4,5:distance")


@pytest.mark.parametrize("text", [*TEXTS, *INNER, "function"])
def test_a_target_is_read_back_from_how_it_is_written(text):
    target = Target.parse(text)
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("clas:3", "did you mean class"),
        ("class", "class is written class:K"),
        ("class:3:prob", "class is written"),
        ("unit:D.0", "unit is written"),
        ("critic(x)", "critic is written"),
        ("region:0,0,4,5@G", "region is written"),
        ("", "be one of"),
    ],
)
def test_what_is_no_target_is_refused_with_the_form_it_should_have(text, words):
    with pytest.raises(ExplainTargetError, match=words):
        Target.parse(text)


@pytest.mark.parametrize("output", ["log-probability", "logit", "margin"])
def test_a_class_target_is_what_the_classifier_says(networks, images, output):
    found = subject_of_run(target=f"class:shirt:{output}", **networks)
    logits = networks["classifier"](images)
    known = {
        "log-probability": logits.log_softmax(1)[:, 1],
        "logit": logits[:, 1],
        "margin": logits[:, 1] - torch.maximum(logits[:, 0], logits[:, 2]),
    }
    torch.testing.assert_close(found.fn(images), known[output])
    assert (found.target.index, found.target.name, found.domain) == (1, "shirt", "x")


def test_of_the_generator_means_of_the_latent(networks, z):
    critic, generator = networks["critic"], networks["generator"]
    found = subject_of_run(target="critic:fake∘G", **networks)
    assert found.domain == "z"
    assert found.value_range is None
    torch.testing.assert_close(found.fn(z), -critic(generator(z)))
    torch.testing.assert_close(found.score_images(generator(z)), found.fn(z))


def test_a_conditional_critic_is_held_at_its_label(images):
    found = subject_of_run(target="critic(2)", critic=ByLabel())
    torch.testing.assert_close(found.fn(images), 3 * images.flatten(1).mean(1))


def test_a_region_is_a_mean_of_the_generators_pixels_or_a_distance(networks, z, images, tmp_path):
    pictures = networks["generator"](z)
    found = subject_of_run(target="region:2,3,6,9", **networks)
    torch.testing.assert_close(found.fn(z), pictures[:, :, 2:6, 3:9].flatten(1).mean(1))
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    mask[2:6, 3:9] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    drawn = subject_of_run(target=f"region:{tmp_path / 'mask.png'}", **networks)
    torch.testing.assert_close(drawn.fn(z), found.fn(z))
    away = subject_of_run(target="region:2,3,6,9:distance", **networks)
    known = (pictures - images[:1])[:, :, 2:6, 3:9].flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(away.fn(z), known)


def test_a_distance_in_a_layer_is_zero_at_the_reference_alone(networks, images):
    found = subject_of_run(target="distance:C.1", **networks).fn(images)
    hidden = networks["classifier"].model[:2](images)
    torch.testing.assert_close(found, (hidden - hidden[:1]).norm(dim=1), atol=2e-6, rtol=1e-5)  # 1e-12 under the root
    assert found[0] < 2e-6 < found[1:].min()


def test_a_unit_is_the_activation_that_a_plain_forward_has(networks, images, z):
    hidden = networks["classifier"].model[:3](images)
    torch.testing.assert_close(subject_of_run(target="unit:C.2:5", **networks).fn(images), hidden[:, 5])
    first = networks["critic"][0](images)
    found = subject_of_run(target="unit:D.0:1:4:2", **networks)
    torch.testing.assert_close(found.fn(images), first[:, 1, 4, 2])
    whole = subject_of_run(target="unit:D.0:1@G", **networks)
    torch.testing.assert_close(whole.fn(z), networks["critic"][0](networks["generator"](z))[:, 1].mean((1, 2)))


@pytest.mark.parametrize(
    "target",
    [
        "critic",
        "class:1",
        "unit:D.0:1",
        "unit:C.1:2",
        "distance:C.1",
        "critic@G",
        "class:1@G",
        "unit:D.0:1@G",
        "distance:D.0@G",
        "unit:G.start:3",
        "unit:start:3",
        "region:2,3,6,9",
    ],
)
def test_the_networks_behind_a_target_are_those_whose_weights_change_it(networks, images, z, target):
    subject = subject_of_run(target=target, **networks)
    rows = z if subject.domain == "z" else images
    known, behind = subject.fn(rows), set()
    for name in ("critic", "generator", "classifier"):
        with shuffled_weights(networks[name], seed=1):
            if not torch.equal(subject.fn(rows), known):
                behind |= {id(parameter) for parameter in networks[name].parameters()}
    assert {id(parameter) for parameter in subject.module.parameters()} == behind


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        ("class:coatt", ExplainTargetError, "did you mean coat"),
        ("class:7", ExplainTargetError, "0 coat, 1 shirt, 2 bag"),
        ("unit:D.00:1", LayerError, "be a layer"),
        ("unit:0:1", LayerError, "one network"),
        ("unit:nothing:1", LayerError, "all layers"),
        ("region:0,0,99,99", ExplainTargetError, "14x14"),
        ("region:4,4,4,4", ExplainTargetError, "Y0 < Y1"),
        ("region:nothing.png", ExplainTargetError, "readable picture"),
        ("distance:G.start", ExplainTargetError, "in D or C"),
        ("function", ExplainTargetError, "for a run"),
    ],
)
def test_a_target_that_the_networks_do_not_have_is_refused_with_what_they_have(networks, target, error, words):
    with pytest.raises(error, match=words):
        subject_of_run(target=target, **networks)


@pytest.mark.parametrize(("target", "what"), [("class:0", "classifier"), ("critic@G", "generator")])
def test_a_target_of_a_missing_network_is_refused(target, what):
    with pytest.raises(ExplainTargetError, match=f"of a {what}"):
        subject_of_run(target=target, critic=toys.conv_critic())


def test_a_channel_or_place_that_is_not_there_is_refused(networks, images):
    for target, words in (("unit:D.0:999", "channel"), ("unit:D.0:0:99:0", "place")):
        with pytest.raises(LayerError, match=words):
            subject_of_run(target=target, **networks).fn(images)


def test_a_unit_of_the_classifier_is_looked_at_in_the_classifier(networks, images):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3), nn.Flatten(), nn.LazyLinear(3))
    maps = Classifier(model, name="maps", example=images)
    found = subject_of_run(target="unit:C.2:1", **networks | {"classifier": maps})
    assert found.module is maps
    assert explain(found, images[:2], "grad-cam", layer="0", shakes=0).meta["layer"] == "0"
    blind = Classifier(model, name="blind", example=images, differentiable=False)
    assert not subject_of_run(target="unit:C.2:1", **networks | {"classifier": blind}).differentiable


def test_a_layer_behind_the_target_has_no_share_in_it(networks, images):
    unit = subject_of_run(target="unit:D.0:1", **networks)
    with pytest.raises(LayerError, match=r"layer must be one that the target goes through, got 2.*earlier one"):
        explain(unit, images[:2], "grad-cam")
    assert explain(unit, images[:2], "grad-cam", layer="0", shakes=0).scores


def test_a_module_used_twice_is_addressed_by_its_use():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.act(x) - 1)

    net, x = Twice(), torch.tensor([[3.0, -1.0]])
    with pytest.raises(LayerError, match=r"write act#0 to act#1"):
        layer_output(net, "act", lambda: net(x))
    assert layer_output(net, "act#0", lambda: net(x)).tolist() == [[3.0, 0.0]]
    assert layer_output(net, "act#1", lambda: net(x)).tolist() == [[2.0, 0.0]]
    with pytest.raises(LayerError, match="use"):
        layer_output(net, "act#2", lambda: net(x))


def test_a_critic_that_looks_across_its_batch_is_explained_beside_fixed_rows(images):
    critic = toys.MinibatchSpread()
    assert looks_across_its_batch(critic, images)
    assert not looks_across_its_batch(toys.conv_critic(), images)
    others = images[1:]
    subject = subject_of_run(target="critic", critic=critic, companions=others)
    together = critic(torch.cat([images[:1], others]))[:1]
    torch.testing.assert_close(subject.fn(images[:2])[:1], together)  # as alone in its group, whoever else is asked for
    found = explain(subject, images[:2], "kernel-shap", cells=2, num_coalitions=16)
    assert found.meta["companions"] == 3
    alone = explain(lambda x: x.flatten(1).sum(1), images[:2], "kernel-shap", cells=2, num_coalitions=16)
    assert found.meta["cost"]["rows_forward"] == 4 * alone.meta["cost"]["rows_forward"]


def test_a_method_that_needs_gradients_refuses_a_classifier_without(networks, images):
    blind = Classifier(networks["classifier"].model, name="blind", example=images, differentiable=False)
    subject = subject_of_run(target="class:0", critic=None, classifier=blind)
    with pytest.raises(CallableError, match=r"gradient for integrated-gradients.*use kernel-shap"):
        explain(subject, images, "integrated-gradients")
    assert explain(subject, images, "kernel-shap", cells=2).scores
