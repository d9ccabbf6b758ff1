"""Fair shares of layers: additive games give their own terms, a pair shares evenly, all adds up, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys
from torch import nn

from ganscale.explain import Classifier, Subject, build_explainer, explain, make_request, subject_of_run
from ganscale.explain.errors import CallableError, ExplainInputError, LayerError
from ganscale.explain.units import LayerShapley

LATENT, EXACT = 4, 1e-12


class Branches(nn.Module):
    """Draws one row of pixels a branch: each branch is a layer of its own that sees z."""

    latent = LATENT

    def __init__(self, branches: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.branches = nn.ModuleList(nn.Linear(LATENT, 5) for _ in range(branches))
        self.double()

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.stack([branch(z) for branch in self.branches], dim=1)[:, None]


class Ones(nn.Module):
    """Three layers that put out one each, whatever z is, in three pixels."""

    latent = LATENT

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(LATENT, 1) for _ in range(3)).double()
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.zero_()
                layer.bias.fill_(1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.cat([layer(z) for layer in self.layers], dim=1)[:, None, None]


def latents(count: int) -> torch.Tensor:
    return torch.randn(count, LATENT, generator=torch.Generator().manual_seed(2)).double()


def pair(generator: nn.Module, fn) -> Subject:
    return Subject(name="game", fn=fn, generator=generator, value_range=None)


def test_layers_that_add_up_have_their_own_terms():
    generator, weight = Branches(), torch.tensor([1.0, -2.0, 0.0]).double()
    game = pair(generator, lambda x: (x.sum(dim=(1, 3)) * weight).sum(dim=1))
    found, z = explain(game, latents(7), "layer-shapley"), latents(7)
    prior = build_explainer(game, make_request(LayerShapley, latents(7))).prior
    with torch.no_grad():
        own, mean = (generator(rows).sum(dim=3)[:, 0] for rows in (z, prior))
    truth = (own - mean.mean(dim=0)) * weight
    np.testing.assert_allclose(found.values["layer_shares_rows"], truth, atol=EXACT)
    assert found.meta["layers"] == ["branches.0", "branches.1", "branches.2"]
    np.testing.assert_allclose(found.values["layer_shares"], truth.mean(dim=0), atol=EXACT)
    assert found.scores["completeness_gap"].value <= EXACT


def test_what_two_layers_do_only_together_is_half_of_each():
    game = pair(Ones(), lambda x: 0.5 * x[:, 0, 0, 0] * x[:, 0, 0, 1] + 2 * x[:, 0, 0, 2] + 3)
    found = explain(game, latents(3), "layer-shapley", off="zero")
    np.testing.assert_allclose(found.values["layer_shares_rows"], [[0.25, 0.25, 2.0]] * 3, atol=EXACT)
    assert found.values["coalition_values"].tolist() == [3, 3, 3, 3.5, 5, 5, 5, 5.5]
    silent = explain(game, latents(3), "layer-shapley").values["layer_shares"]
    np.testing.assert_allclose(silent, 0, atol=EXACT, err_msg="a layer that says the same of every latent adds nothing")


def test_shares_are_those_of_the_definition_and_add_up_to_what_all_layers_are_worth():
    generator = toys.ConvGenerator(LATENT, 14).double()
    critic = toys.conv_critic().double().requires_grad_(False)
    game = pair(generator, critic)
    found = explain(game, latents(5), "layer-shapley")
    layers, worth = found.meta["layers"], found.values["coalition_values"].numpy()

    def value(on: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(worth[(on.numpy().astype(int) * 2 ** np.arange(len(layers))).sum(axis=1)])

    truth = toys.shapley_by_definition(value, torch.ones(len(layers)), torch.zeros(len(layers)))
    np.testing.assert_allclose(found.values["layer_shares"], truth, atol=EXACT)
    assert worth[-1] == pytest.approx(critic(generator(latents(5))).mean().item(), abs=EXACT)
    assert float(found.values["layer_shares"].sum()) == pytest.approx(worth[-1] - worth[0], abs=EXACT)
    # in a chain the last layer that is off says all: nothing before it counts
    assert np.ptp(worth[:4]) == 0
    curve = found.values["deletion_curve"]
    assert curve[:, 0].mean() == pytest.approx(worth[-1], abs=EXACT)
    assert curve[:, -1].mean() == pytest.approx(worth[0], abs=EXACT)
    assert torch.equal(generator(latents(5)), toys.ConvGenerator(LATENT, 14).double()(latents(5))), "no trace is left"


def test_the_order_of_the_shares_beats_random_orders_where_layers_differ():
    weights = torch.tensor([8.0, 4, 2, 1, 0, 0]).double()
    game = pair(Branches(6), lambda x: (x.sum(dim=(1, 3)).abs() * weights).sum(dim=1))
    found = explain(game, latents(12), "layer-shapley", off="zero")
    assert not found.not_better_than_random
    assert found.scores["deletion_auc"].value < found.scores["deletion_auc"].control


def test_a_target_of_the_latent_is_shared_out_like_one_of_pictures():
    generator, critic = toys.ConvGenerator(LATENT, 14), toys.conv_critic()
    z = latents(4).float()
    of_images, of_latents = (
        explain(subject_of_run(target=target, critic=critic, generator=generator), z, "layer-shapley")
        for target in ("critic", "critic@G")
    )
    assert torch.equal(of_images.values["layer_shares_rows"], of_latents.values["layer_shares_rows"])
    net = nn.Sequential(nn.Flatten(), nn.Linear(196, 3))
    classifier = Classifier(net, name="net", example=torch.zeros(2, 1, 14, 14))
    of_class = subject_of_run(target="class:1", critic=critic, generator=generator, classifier=classifier)
    assert explain(of_class, z, "layer-shapley").values["layer_shares"].abs().max() > 0


def test_what_cannot_be_shared_out_is_said():
    many = pair(Branches(13), lambda x: x.flatten(1).sum(1))
    with pytest.raises(ExplainInputError, match="be 2 to 12 for layer-shapley, got 13"):
        explain(many, latents(2), "layer-shapley")
    few = explain(many, latents(2), "layer-shapley", layers="branches.0, branches.12")
    assert few.values["coalition_values"].shape == (4,)
    with pytest.raises(LayerError, match="did you mean"):
        explain(many, latents(2), "layer-shapley", layers="branches.0,branch.1")
    with pytest.raises(CallableError, match="one number a picture"):
        explain(Branches(), latents(2), "layer-shapley")
    with pytest.raises(CallableError, match=r"shape \(2,\), got \(2, 15\)"):
        explain(pair(Branches(), lambda x: x.flatten(1)), latents(2), "layer-shapley")
