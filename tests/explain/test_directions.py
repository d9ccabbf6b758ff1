"""Latent directions: the factorisation against the singular value decomposition, the walks against known slopes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys
from torch import nn

from ganscale.explain import Subject, explain, subject_of_run
from ganscale.explain.errors import ExplainInputError, ExplainOptionError, ExplainTargetError, LayerError
from ganscale.explain.latent.directions import linear_effect


def latents(count: int, latent: int) -> torch.Tensor:
    return torch.randn(count, latent, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("transpose", [False, True])
def test_directions_are_singular_vectors_and_eigenvalues_squared_singular_values(transpose: bool):
    generator = toys.LinearGenerator(10, 6, transpose=transpose)
    found = explain(generator, latents(4, 10), "directions", num_directions=10).values
    weight = generator.start.weight.detach().double()
    matrix = weight.flatten(1) if transpose else weight.T
    left, singular, _ = torch.linalg.svd(matrix, full_matrices=False)
    cosines = (found["directions"] @ left).diagonal().abs()
    assert cosines.min() >= 1 - 1e-6
    torch.testing.assert_close(found["eigenvalues"], singular**2, rtol=1e-9, atol=0)
    assert (found["eigenvalues"].diff() <= 0).all()
    torch.testing.assert_close(found["directions"].norm(dim=1), torch.ones(10, dtype=torch.float64))


def test_the_first_direction_moves_a_linear_image_most_and_by_the_first_singular_value():
    generator = toys.LinearGenerator(10, 6)
    found = explain(generator, latents(4, 10), "directions", num_directions=3)
    weight = generator.start.weight.detach().double()
    singular = torch.linalg.svdvals(weight)
    torch.testing.assert_close(found.values["image_change"], singular[:3], rtol=1e-5, atol=0)
    random = torch.randn(1000, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = (random / random.norm(dim=1, keepdim=True) @ weight.T).norm(dim=1)
    assert float(found.values["image_change"][0]) > float(moved.max())
    assert not found.not_better_than_random


def test_directions_of_an_isotropic_generator_are_not_better_than_random():
    generator = toys.LinearGenerator(9, 3)
    with torch.no_grad():
        generator.start.weight.copy_(torch.eye(9))
    assert explain(generator, latents(4, 9), "directions", num_directions=3).not_better_than_random


def test_the_logit_of_a_linear_pair_is_a_straight_line_with_the_known_slope():
    generator = toys.LinearGenerator(10, 6)
    weight = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(1))
    critic = nn.Sequential(nn.Flatten(), nn.Linear(36, 1, bias=False), nn.Flatten(0))
    with torch.no_grad():
        critic[1].weight.copy_(weight.flatten()[None])
    subject = subject_of_run(target="critic", critic=critic, generator=generator)
    found = explain(subject, latents(4, 10), "directions", num_directions=4)
    truth = found.values["directions"] @ (generator.start.weight.detach().double().T @ weight.flatten().double())
    torch.testing.assert_close(found.values["critic_slope"], truth, rtol=1e-4, atol=1e-5)  # float32 networks
    assert found.scores["critic_linearity_r2"].value >= 1 - 1e-6
    assert found.values["critic_path"].shape == (4, 7)


def test_the_middle_of_a_traversal_is_the_base_image():
    generator = toys.LinearGenerator(10, 6)
    z = latents(3, 10)
    found = explain(generator, z, "directions", num_directions=2, steps=5, reach=2.0)
    assert found.values["sigmas"].tolist() == [-2, -1, 0, 1, 2]
    assert found.values["traversal"].shape == (2, 5, 1, 6, 6)
    torch.testing.assert_close(found.values["traversal"][1, 2], generator(z)[0].detach())
    last = z[0] + 2 * found.values["directions"][1].float()
    torch.testing.assert_close(found.values["traversal"][1, 4], generator(last[None])[0].detach())


def test_a_line_fits_its_own_points_and_nothing_varying_has_no_fit():
    sigmas = np.linspace(-3, 3, 7)
    slope, r_squared = linear_effect(np.stack([2 * sigmas + 1, np.full(7, 4.0), sigmas**2]), sigmas)
    np.testing.assert_allclose(slope, [2, 0, 0], atol=1e-12)
    np.testing.assert_allclose(r_squared, [1, 0, 0], atol=1e-12)


def test_a_layer_may_be_named_and_a_wrong_name_lists_the_near_ones():
    generator = toys.LinearGenerator(10, 6)
    assert explain(generator, latents(2, 10), "directions").meta["layer"] == "start"
    assert explain(generator, latents(2, 10), "directions", layer="start").meta["layer"] == "start"
    with pytest.raises(LayerError, match=r"did you mean start\? all layers: unused, start"):
        explain(generator, latents(2, 10), "directions", layer="strat")


def test_a_layer_that_does_not_take_z_is_refused():
    generator = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 9), nn.Unflatten(1, (1, 3, 3)))
    for layer, words in (("2", "take the 4 numbers of z"), ("1", "be Linear")):
        with pytest.raises(LayerError, match=words):
            explain(generator, latents(2, 4), "directions", layer=layer)


def test_a_generator_that_changes_z_first_must_name_its_layer():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start = nn.Linear(4, 9)

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return self.start(2 * z).unflatten(1, (1, 3, 3))

    generator = Scaled()
    with pytest.raises(LayerError, match=r"layer=.*start"):
        explain(generator, latents(2, 4), "directions")
    assert explain(generator, latents(2, 4), "directions", layer="start").meta["layer"] == "start"
    assert not generator.start._forward_pre_hooks


def test_what_directions_cannot_use_is_refused():
    generator = toys.LinearGenerator(10, 6)
    with pytest.raises(ExplainInputError, match="10 numbers"):
        explain(generator, latents(2, 9), "directions")
    with pytest.raises(ExplainOptionError, match="odd"):
        explain(generator, latents(2, 10), "directions", steps=4)
    with pytest.raises(ExplainTargetError, match="generator"):
        explain(Subject(name="critic", fn=toys.conv_critic()), latents(2, 10), "directions")
