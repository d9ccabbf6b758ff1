"""Data drawn by a run: once, with the latents that made them, split, refused where it does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import tiny_config

from ganscale.config import override
from ganscale.data import open_dataset, scan, to_uint8
from ganscale.errors import DataError, UserError
from ganscale.presets import preset
from ganscale.runtime import launch, load
from ganscale.runtime.run_samples import with_drawn_samples

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch(tiny_config(), name="source", runs_dir=tmp_path_factory.mktemp("runs"), workers=0).path


def drawn(source: Path, number: str = "@60"):
    return with_drawn_samples(override(preset("autoencoder-fashion"), {"data.path": f"run:{source}{number}"}))


def test_samples_are_what_the_generator_makes_of_their_latents_and_every_tenth_is_held_out(source: Path):
    config = drawn(source)
    train, held = (open_dataset(config.data, split=split) for split in ("train", "held-out"))
    assert (len(train), len(held)) == (54, 6)
    networks = load(source).networks
    for part in (train, held):
        images, labels = part.read(np.arange(len(part)))
        assert torch.equal(images, to_uint8(networks.draw_float(part.latents)))
        assert (labels == -1).all()
    assert train.fingerprint != held.fingerprint
    assert scan(config.data).usable == 60


def test_samples_are_drawn_once_and_another_number_is_other_data(source: Path):
    config = drawn(source)
    folder = Path(config.data.path.removeprefix("run:"))
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    again = drawn(source)
    assert again.data == config.data
    assert with_drawn_samples(again).data == config.data  # a resumed run has the folder's own path
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    other = open_dataset(drawn(source, "@70").data)
    assert other.fingerprint != open_dataset(config.data).fingerprint


def test_an_autoencoder_trains_on_them_and_is_explained(source: Path):
    small = {"train.kimg": 0.128, "train.batch": 32, "model.width": 4, "model.latent": 4, "sample.num": 4}
    config = override(preset("autoencoder-fashion"), {"data.path": f"run:{source}@200", **small})
    run = launch(config, name="codes", runs_dir=source.parent, workers=0)
    assert run.config.data.path.endswith("-200")
    found = run.explain("autoencoder", num_samples=2, workers=0)
    assert found.values["codes"].shape == (20, 4)  # the held-out tenth
    assert run.explain("saliency", num_samples=2, workers=0).target.kind == "critic"  # of minus the squared error


def test_what_cannot_be_drawn_is_refused(source: Path, tmp_path: Path):
    with pytest.raises(DataError, match="at least 10"):
        drawn(source, "@3")
    with pytest.raises(UserError):
        drawn(tmp_path / "nowhere")
    config = drawn(source)
    with pytest.raises(DataError, match=r"data\.resolution=28x28"):
        open_dataset(override(config, {"data.resolution": 32}).data)
    with pytest.raises(DataError, match="a dry run does not"):
        open_dataset(override(config, {"data.path": f"run:{source}"}).data)
