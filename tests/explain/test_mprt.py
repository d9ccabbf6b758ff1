"""The randomisation test tells maps that are about the network from those that only copy the picture."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import toys
from torch import nn

from ganscale.dashboards.panels import draw_panels
from ganscale.explain import EXPLAINERS, explain, mprt, subject_of_run
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


GENERATOR = ["up", "hidden", "start"]


@pytest.mark.parametrize(
    ("target", "layers"),
    [
        ("region:4,4,12,12", GENERATOR),
        ("unit:G.hidden:1", GENERATOR),
        ("critic@G", ["D.5", "D.2", "D.0", *(f"G.{name}" for name in GENERATOR)]),
    ],
)
def test_a_map_of_latents_is_about_the_generator_and_what_judges_its_pictures(target, layers):
    generator = toys.ConvGenerator(12, 14)
    pair = subject_of_run(target=target, critic=toys.conv_critic(), generator=generator)
    z = torch.randn(6, 12, generator=torch.Generator().manual_seed(1))
    found = explain(pair, z, "mprt", of="input-x-gradient", baseline="zero")
    assert found.meta["layers"] == layers
    assert (found.values["similarity"][-1] < 0.99).all(), "all that the target is computed by was shuffled"
    assert not found.not_better_than_random
    assert set(draw_panels(found)) == {"randomisation"}


@contextmanager
def drawn_anew(network: nn.Module, *, seed: int, layers: Sequence[str]) -> Iterator[None]:
    """Do to layers what quantus does: each draws its weights anew, after one and the same seed."""
    saved = copy.deepcopy(network.state_dict())
    for name in layers:
        torch.manual_seed(seed + 1)
        network.get_submodule(name).reset_parameters()
    yield
    network.load_state_dict(saved)


@pytest.mark.parametrize("method", ["input-x-gradient", "saliency", "copy"])
def test_quantus_finds_each_stage_as_alike_where_weights_are_drawn_as_it_draws_them(images, method, monkeypatch):
    quantus = toys.peer("quantus")
    monkeypatch.setitem(EXPLAINERS, "copy", Copy)
    monkeypatch.setattr(mprt, "shuffled_weights", drawn_anew)
    critic = toys.conv_critic()
    ours = explain(critic, images, "mprt", of=method, baseline="zero", seed=3).values["similarity"]

    def maps(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, **_: object) -> np.ndarray:
        options = {"baseline": "zero", "shakes": 0, "shuffled_network": False}
        return explain(model, torch.as_tensor(inputs), method, **options).values["attribution"].numpy()

    plain = {"abs": False, "normalise": False, "disable_warnings": True}
    metric = quantus.MPRT(layer_order="top_down", seed=3, **plain)
    x, y = images.numpy(), np.zeros(len(images), dtype=int)
    with torch.random.fork_rng():
        theirs = metric(model=critic, x_batch=x, y_batch=y, a_batch=maps(critic, x, y), explain_func=maps)
    assert [*theirs] == ["original", "5", "2", "0"]
    stages = np.abs([theirs[name] for name in ("5", "2", "0")])
    np.testing.assert_allclose(ours.numpy(), stages, atol=1e-9)  # the same float32 maps, ranks in float64


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
