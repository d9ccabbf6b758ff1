"""Autoencoders in the ordinary trainer: the linear one finds principal components, a resumed one is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ganscale.config import RunConfig, from_mapping, override
from ganscale.data import open_dataset, to_float
from ganscale.errors import ConfigError
from ganscale.losses import divergence, squared_error
from ganscale.presets import preset
from ganscale.training import checkpoint as checkpoints
from ganscale.training.autoencoding import phases_of
from ganscale.training.process_group import solo_group
from ganscale.training.random import Draws
from ganscale.training.state import TrainState
from ganscale.training.step import StepContext, train_step
from ganscale.training.trainer import train

TINY = {
    "train.kimg": 0.256,
    "train.batch": 32,
    "train.tick_kimg": 0.128,
    "model.width": 4,
    "model.latent": 6,
    "checkpoint.every_kimg": 0.128,
    "sample.every_kimg": 0.256,
    "sample.num": 8,
}


def tiny(name: str, **changes: object) -> RunConfig:
    return override(preset(f"{name}-fashion"), TINY | {key.replace("__", "."): v for key, v in changes.items()})


def autocast() -> torch.autocast:
    return torch.autocast("cpu", enabled=False)


def test_a_linear_autoencoder_reconstructs_as_well_as_the_principal_components():
    config = from_mapping(
        {
            "data": {"resolution": 8},
            "model": {"generator": "linear-autoencoder", "critic": "linear-autoencoder", "latent": 3},
            "loss": {"name": "reconstruction"},
            "optim": {"generator": {"lr": 2e-2, "betas": (0.9, 0.99)}, "decay": "cosine", "decay_kimg": 64},
            "train": {"batch": 128},
        }
    )
    rng = np.random.default_rng(0)
    scale = np.r_[0.5, 0.4, 0.3, np.full(61, 0.05)]
    basis = np.linalg.qr(rng.standard_normal((64, 64)))[0]
    data = torch.from_numpy(0.1 + rng.standard_normal((128, 64)) * scale @ basis.T).float()
    state = TrainState(config, solo_group())
    for _ in range(500):
        train_step(state, phases_of(config), data.reshape(-1, 1, 8, 8), Draws(0, torch.device("cpu")), autocast)
    net = state.nets["generator"]
    with torch.no_grad():
        error = float((net(net.encode(data.reshape(-1, 1, 8, 8))).flatten(1) - data).square().sum())
    singular = torch.linalg.svdvals(data - data.mean(dim=0))
    best = float(singular[3:].square().sum())
    assert best * (1 - 1e-4) <= error <= 1.02 * best
    assert error < 0.25 * float(singular.square().sum())  # what the mean image leaves


def test_the_divergence_is_that_of_torchs_normals_and_the_error_half_the_squared_distance():
    mean, log_variance = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    unit = torch.distributions.Normal(torch.zeros(4).double(), torch.ones(4).double())
    truth = torch.distributions.kl_divergence(torch.distributions.Normal(mean, (0.5 * log_variance).exp()), unit)
    torch.testing.assert_close(divergence(mean, log_variance), truth.sum(1))
    a, b = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2)
    torch.testing.assert_close(squared_error(a, b), 0.5 * (a - b).flatten(1).norm(dim=1) ** 2)


def test_a_variational_step_minimises_the_error_of_a_drawn_code_plus_beta_times_its_divergence():
    config = from_mapping(
        {
            "data": {"resolution": 8},
            "model": {"generator": "linear-autoencoder", "critic": "linear-autoencoder", "latent": 3},
            "loss": {"name": "elbo", "beta": 2.5},
        }
    )
    state, draws, reported = TrainState(config, solo_group()), Draws(0, torch.device("cpu")), {}
    net, real = state.nets["generator"], torch.rand(6, 1, 8, 8) * 2 - 1
    (phase,) = phases_of(config)
    step = StepContext(state, phase.name, real, 40, draws, autocast, lambda name, value: reported.update({name: value}))
    term = phase.term(step)
    mean, log_variance = net.distribution(real)
    code = mean + (0.5 * log_variance).exp() * draws.normal("autoencoder/eps", 40, 6, 3)
    truth = squared_error(net(code), real) + 2.5 * divergence(mean, log_variance)
    torch.testing.assert_close(term, truth)
    assert {"loss/autoencoder", "loss/reconstruction", "loss/divergence", "quality/psnr"} == reported.keys()


@pytest.mark.parametrize("name", ["autoencoder", "vae"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(name: str, tmp_path: Path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for run in (whole, halves):
        run.mkdir()
    train(tiny(name), whole)
    first = train(tiny(name, train__kimg=0.128), halves)
    train(tiny(name), halves, resume_from=first.checkpoint)
    one, other = (checkpoints.load(checkpoints.newest(run)) for run in (whole, halves))
    assert one.parts.keys() == other.parts.keys() >= {"generator", "ema", "critic", "optimiser-generator"}
    for part, tensors in one.parts.items():
        assert tensors.keys() == other.parts[part].keys()
        assert all(torch.equal(tensor, other.parts[part][key]) for key, tensor in tensors.items()), part


def test_decoded_codes_come_nearer_than_the_mean_image_and_their_quality_is_reported(tmp_path: Path):
    config = tiny("autoencoder", train__kimg=4.0, train__tick_kimg=1.0, optim__generator__lr=4e-3)
    train(config, tmp_path)
    checkpoint = checkpoints.load(checkpoints.newest(tmp_path))
    net = TrainState(config, solo_group()).nets["ema"]
    net.load_state_dict(checkpoint.parts["ema"])
    x = to_float(open_dataset(config.data, split="held-out").read(np.arange(64))[0])
    with torch.no_grad():
        error = float((net(net.encode(x)) - x).square().mean())
    assert error < 0.9 * float((x - x.mean(dim=0)).square().mean())
    last = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
    assert '"quality/psnr"' in last
    assert '"quality/ssim"' in last
    grid = np.asarray(Image.open(next((tmp_path / "samples").glob("*.png"))).convert("L"))
    shown = open_dataset(config.data, split="train").read(np.array([0]))[0][0, 0].numpy()
    places = np.lib.stride_tricks.sliding_window_view(grid, (28, 28))
    assert (places == shown).all(axis=(2, 3)).any()  # the grid holds an image as it was, beside its reconstruction


def test_an_autoencoder_without_its_loss_or_with_a_critic_is_refused():
    with pytest.raises(ConfigError, match=r"model\.generator must be no autoencoder"):
        tiny("autoencoder", loss__name="hinge")
    with pytest.raises(ConfigError, match=r"model\.generator must be an autoencoder"):
        override(preset("dcgan-fashion"), {"loss.name": "elbo"})
    with pytest.raises(ConfigError, match="an autoencoder has no critic"):
        tiny("vae", penalty__name="r1", penalty__center=0)
