"""Scores of codes on codes of known worth; reconstructions against principal components and the mean image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys
from torch import nn

from ganscale.explain import Subject, explain
from ganscale.explain.codes import measures
from ganscale.explain.codes.autoencoder import principal_components
from ganscale.explain.errors import ExplainInputError, ExplainTargetError


def factors(count: int = 4000) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 5, (count, 4)).astype(float)


def dci(codes: np.ndarray, truth: np.ndarray) -> float:
    toys.peer("sklearn.ensemble")
    every = [measures.importances(codes, factor, seed=0)[0] for factor in truth.T]
    return measures.disentanglement(np.stack(every, axis=1))


def mig(codes: np.ndarray, truth: np.ndarray) -> float:
    found = [measures.mutual_information(codes, factor) for factor in truth.T]
    return measures.information_gap(np.stack([one for one, _ in found], axis=1), np.array([h for _, h in found]))


def sap(codes: np.ndarray, truth: np.ndarray) -> float:
    return measures.separated(np.stack([measures.squared_correlation(codes, factor) for factor in truth.T], axis=1))


def test_the_information_gap_is_one_for_the_factors_themselves_and_nothing_for_noise_or_copies():
    truth = factors()
    noise = np.random.default_rng(1).standard_normal(truth.shape)
    assert mig(truth, truth) >= 0.99
    assert mig(noise, truth) <= 0.01
    assert mig(np.hstack([truth, truth]), truth) == 0


def test_boosted_trees_find_the_factors_themselves_disentangled_noise_not_and_a_rotation_between():
    truth = factors(1500)
    noise = np.random.default_rng(1).standard_normal(truth.shape)
    rotation = np.linalg.qr(np.random.default_rng(2).standard_normal((4, 4)))[0]
    identity, random, rotated = (dci(codes, truth) for codes in (truth, noise, truth @ rotation))
    assert identity >= 0.95
    assert random <= 0.05
    assert random + 0.05 < rotated < identity - 0.05


def test_separated_attributes_are_one_for_the_factors_themselves_and_nothing_for_noise():
    truth = factors()
    assert sap(truth, truth) >= 0.95
    assert sap(np.random.default_rng(1).standard_normal(truth.shape), truth) <= 0.02


def test_completeness_is_one_where_each_factor_has_one_code_and_a_probe_reads_a_linear_code():
    assert measures.completeness(np.eye(3)) == pytest.approx(1)
    assert measures.completeness(np.full((4, 3), 0.25)) == pytest.approx(0)
    assert measures.disentanglement(np.full((4, 3), 0.25)) == pytest.approx(0)
    truth = factors()
    mixed = truth @ np.random.default_rng(3).standard_normal((4, 4))
    assert measures.linear_probe(mixed, truth[:, 0]) == pytest.approx(1)
    assert measures.linear_probe(np.random.default_rng(1).standard_normal(truth.shape), truth[:, 0]) <= 0.01


class Ideal(nn.Module):
    """Encodes images [n, 1, 12, 12] by given components [D, 144] and decodes by them."""

    def __init__(self, mean: torch.Tensor, basis: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis.float())
        self.latent = len(basis)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean).flatten(1) @ self.basis.T

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.mean + (z @ self.basis).reshape(-1, 1, 12, 12)


def images(count: int = 100) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    scale = torch.cat([torch.tensor([3.0, 2.0, 1.0]), torch.full((141,), 0.03)])
    basis = torch.linalg.qr(torch.randn(144, 144, generator=generator))[0]
    return (torch.randn(count, 144, generator=generator) * scale @ basis.T).reshape(-1, 1, 12, 12).clamp(-1, 1)


def of(network: nn.Module, inputs: dict, method: str = "autoencoder"):
    subject = Subject(name="autoencoder", fn=lambda x: x.flatten(1).sum(1), generator=network)
    return explain(subject, inputs, method)


def test_components_as_an_autoencoder_score_what_components_beside_it_score_and_beat_the_mean():
    x = images()
    network = Ideal(*principal_components(x, 3))
    found = of(network, {"x": x})
    assert found.scores["psnr_against_pca"].value == pytest.approx(found.scores["psnr_against_pca"].control, rel=1e-4)
    assert found.scores["psnr"].value > found.scores["psnr"].control + 3
    assert not found.not_better_than_random
    flat = (x - x.mean(0)).double().flatten(1)
    share = torch.linalg.svdvals(flat)[:3] ** 2
    torch.testing.assert_close(found.values["code_share"], share / share.sum(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.values["reconstruction"], network(network.encode(x[:8])))


def test_an_autoencoder_that_returns_the_mean_is_not_better_than_random():
    x = images()
    mean, basis = principal_components(x, 3)
    assert of(Ideal(mean, 0 * basis), {"x": x}).not_better_than_random


def test_codes_that_are_the_factors_beat_a_shuffled_code_and_those_that_are_not_do_not():
    toys.peer("sklearn.ensemble")
    rng, truth = np.random.default_rng(0), factors(400)
    pixels = torch.from_numpy(np.pad(truth, ((0, 0), (0, 140)))).float().reshape(-1, 1, 12, 12) / 5
    inputs = {"x": pixels[:2], "known": pixels, "known_labels": torch.from_numpy(truth)}
    exact = Ideal(torch.zeros(1, 1, 12, 12), torch.eye(144)[:4])
    found = of(exact, inputs, "disentanglement")
    assert found.scores["dci_disentanglement"].value > 0.9
    assert found.scores["mig"].value > 0.95
    assert found.scores["mig"].control < 0.1
    assert all(score.beats_control for score in found.scores.values())
    assert found.values["factor_importance"].shape == (4, 4)
    assert found.values["factor_importance"].argmax(0).tolist() == [0, 1, 2, 3]
    inputs["known_labels"] = torch.from_numpy(rng.permutation(truth))
    unlike = of(exact, inputs, "disentanglement")
    assert unlike.scores["linear_probe_r2"].value < 0.1
    assert unlike.not_better_than_random


def test_what_has_no_encoder_or_no_factors_is_refused():
    x = images(4)
    with pytest.raises(ExplainTargetError, match="encoder"):
        of(toys.LinearGenerator(3, 12), {"x": x})
    network = Ideal(*principal_components(x, 2))
    with pytest.raises(ExplainInputError, match="known"):
        of(network, {"x": x}, "disentanglement")
    inputs = {"x": x, "known": images(200), "known_labels": torch.ones(200, 1)}
    with pytest.raises(ExplainInputError, match="vary"):
        of(network, inputs, "disentanglement")
