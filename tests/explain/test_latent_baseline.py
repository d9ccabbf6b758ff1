"""A latent is compared with draws of the prior, on great circles; shares still add up.

R draws, S points, D latent.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys
from torch import nn

from ganscale.explain import explain, subject_of_run
from ganscale.explain.errors import ExplainOptionError
from ganscale.explain.latent_path import great_circle, integrate_from_prior

D = 6
Z = torch.randn(3, D, generator=torch.Generator().manual_seed(3))


def subject():
    critic = nn.Sequential(toys.conv_critic(), nn.Flatten(0))
    return subject_of_run(target="critic@G", critic=critic, generator=toys.LinearGenerator(D, 14))


def test_a_great_circle_has_its_ends_its_norms_and_its_speed():
    starts = torch.randn(5, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    end, times = Z[0].double(), torch.linspace(0, 1, 2001, dtype=torch.float64)
    points, speeds = great_circle(starts, end, times)
    torch.testing.assert_close(points[:, 0], starts)
    torch.testing.assert_close(points[:, -1], end.expand(5, D))
    even = (1 - times) * starts.norm(dim=1)[:, None] + times * end.norm()
    torch.testing.assert_close(points.norm(dim=2), even)
    measured = (points[:, 2:] - points[:, :-2]) / (2 * times[1])
    assert float((measured - speeds[:, 1:-1]).abs().max()) < 1e-5  # central differences at steps of 5e-4


def test_the_way_between_two_latents_in_one_line_is_straight():
    end = Z[0].double()
    points, speeds = great_circle(torch.stack([2 * end]), end, torch.tensor([0.25], dtype=torch.float64))
    torch.testing.assert_close(points[0, 0], 1.75 * end)
    torch.testing.assert_close(speeds[0, 0], -end)


def test_the_integral_from_the_prior_is_complete_for_any_smooth_function():
    def slopes(z: torch.Tensor) -> torch.Tensor:
        return torch.cos(z) * z.flip(1) + torch.sin(z.flip(1))

    def f(z: torch.Tensor) -> torch.Tensor:
        return (torch.sin(z) * z.flip(1)).sum(1)

    draws = torch.randn(16, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    end = Z[1].double()
    total = integrate_from_prior(slopes, draws, end, 50).sum()
    assert float(total - (f(end[None]) - f(draws).mean())) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("method", ["kernel-shap", "exact-shapley", "integrated-gradients"])
def test_shares_of_a_latent_add_up_to_its_difference_from_the_mean_over_the_prior(method):
    options = {"tolerance": 1e-4} if method == "integrated-gradients" else {}
    found = explain(subject(), Z, method, seed=2, **options)
    assert found.meta["baseline"] == "prior"
    draws = found.inputs["prior_draws"]
    assert draws.shape == (16, D)
    with torch.no_grad():
        fn = subject().fn
        known = fn(Z).double() - fn(draws).double().mean()
    shares = found.values["segment_weights"].sum(1)
    np.testing.assert_allclose(shares, known, atol=2e-4 * float(fn(Z).abs().max()))


def test_kernel_shap_and_exact_shapley_agree_on_a_latent():
    one, other = (explain(subject(), Z, name).values["segment_weights"] for name in ("kernel-shap", "exact-shapley"))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_another_baseline_may_be_asked_for_and_prior_is_refused_of_images():
    plain = explain(subject(), Z, "kernel-shap", baseline="zero")
    assert plain.meta["baseline"] == "zero"
    assert "prior_draws" not in plain.inputs
    images = torch.zeros(2, 1, 14, 14)
    with pytest.raises(ExplainOptionError, match="another one than prior"):
        explain(toys.conv_critic(), images, "kernel-shap", baseline="prior")
