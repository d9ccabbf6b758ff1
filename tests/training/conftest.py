"""Small runs that train in seconds."""

from __future__ import annotations

import pytest

from ganscale.config import RunConfig, from_mapping, override


@pytest.fixture
def tiny() -> RunConfig:
    """A DCGAN of a few thousand parameters on the built-in images, with cadences that divide nothing evenly."""
    return from_mapping(
        {
            "model": {"width": 4, "latent": 8},
            "loss": {"name": "wasserstein"},
            "penalty": {"name": "wgan-gp"},
            "optim": {"critic": {"repeats": 2}},
            "train": {"batch": 16, "kimg": 0.8, "tick_kimg": 0.15},
            "sample": {"every_kimg": 0.4, "num": 4},
            "checkpoint": {"every_kimg": 0.3, "keep": 2},
            "ema": {"half_life_kimg": 0.1},
        }
    )


@pytest.fixture
def tiny_points(tiny: RunConfig) -> RunConfig:
    """The same on points of the plane, with fully connected networks."""
    return override(
        tiny,
        {
            "data.path": "gaussians-25",
            "data.resolution": 1,
            "data.channels": 2,
            "model.generator": "mlp",
            "model.critic": "mlp",
            "model.width": 16,
        },
    )
