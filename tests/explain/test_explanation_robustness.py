"""Attacks on a map: it cannot change where f is linear, it can where f has a kink, and input and output stay close."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys

from ganscale.explain import explain
from ganscale.explain.attacks.explanation_robustness import map_change, top_overlap
from ganscale.explain.errors import ZeroGradientError


def pictures(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 14, 14, generator=torch.Generator().manual_seed(1)) - 0.5


def test_the_map_of_a_linear_function_cannot_be_changed():
    weight = torch.randn(1, 14, 14, generator=torch.Generator().manual_seed(0))
    found = explain(toys.Linear(weight), pictures(2), "explanation-robustness", steps=3)
    assert found.scores["map_change"].value == pytest.approx(0, abs=1e-6)
    assert found.scores["top_overlap"].value == 1
    assert found.not_better_than_random


def test_a_map_beside_kinks_is_changed_more_than_by_noise_while_input_and_output_stay():
    x = pictures(4)
    found = explain(toys.conv_critic(), x, "explanation-robustness", budget=16.0)
    change, noise = found.values["map_change"], found.values["noise_change"]
    assert (change >= noise.max(dim=1).values).all()
    assert float(change.mean()) > 1.2 * float(noise.mean())
    assert not found.not_better_than_random
    moved = (found.values["attacked"] - x).abs().amax(dim=(1, 2, 3))
    assert (moved <= 16 * 2 / 255 * (1 + 1e-5)).all()
    f = found.values["f_before_after"]
    critic, leaf = toys.conv_critic().eval(), x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(critic(leaf).sum(), leaf)
    strongest = 16 * 2 / 255 * slope.double().abs().sum(dim=(1, 2, 3))  # what one signed step would move f by
    assert ((f[:, 1] - f[:, 0]).abs() <= 0.05 * strongest).all()
    again = critic(found.values["attacked"]).detach().double()
    torch.testing.assert_close(again, f[:, 1], rtol=1e-5, atol=1e-6)


def test_the_change_of_a_map_is_one_minus_its_cosine_and_the_overlap_that_of_its_largest_entries():
    reference = torch.zeros(1, 1, 2, 10)
    reference[0, 0, 0, :2] = torch.tensor([3.0, 4.0])
    other = torch.zeros_like(reference)
    other[0, 0, 0, 0], other[0, 0, 1, 0] = -3.0, 4.0
    np.testing.assert_allclose(map_change(torch.cat([reference, 7 * reference, other]), reference), [0, 0, 1.36])
    np.testing.assert_allclose(top_overlap(torch.cat([reference, other]), reference), [1, 0.5])


def test_a_function_without_slope_has_no_map_to_attack():
    with pytest.raises(ZeroGradientError, match="raw logits"):
        explain(lambda rows: torch.sigmoid(1e4 + rows.flatten(1).sum(1)), pictures(2), "explanation-robustness")
