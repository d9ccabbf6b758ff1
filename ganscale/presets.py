"""Presets: functions that return a whole ``RunConfig``, and the table that names them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from ganscale.config import RunConfig, from_mapping, override
from ganscale.errors import ConfigError, unknown

DEFAULT_PRESET = "dcgan-fashion"

_SIZES = {
    "fashion": {"data": {"path": "fashion-mnist-10k", "resolution": 28, "channels": 1}},
    "64": {"data": {"path": "fashion-mnist-10k", "resolution": 64, "channels": 3}},
}
_WIDTHS = {"fashion": 32, "64": 64}


def dcgan(size: str) -> RunConfig:
    """DCGAN with the non-saturating loss and R1 (Radford et al. 2016, arXiv:1511.06434; Mescheder et al. 2018)."""
    return from_mapping(
        {
            "preset": f"dcgan-{size}",
            **_SIZES[size],
            "model": {"width": _WIDTHS[size]},
            "loss": {"name": "non-saturating"},
            "penalty": {"name": "r1", "weight": 1.0, "center": 0.0},
            "optim": {"generator": {"lr": 4e-4, "betas": (0.0, 0.99)}, "critic": {"lr": 4e-4, "betas": (0.0, 0.99)}},
        }
    )


def hinge(size: str) -> RunConfig:
    """The same networks with the hinge loss (Lim and Ye 2017, arXiv:1705.02894) and R1."""
    return from_mapping({**dcgan(size).model_dump(mode="json"), "preset": f"hinge-{size}", "loss": {"name": "hinge"}})


def wgan_gp(size: str) -> RunConfig:
    """Wasserstein GAN with gradient penalty (Gulrajani et al. 2017, arXiv:1704.00028)."""
    return from_mapping(
        {
            "preset": f"wgan-gp-{size}",
            **_SIZES[size],
            "model": {"width": _WIDTHS[size]},
            "loss": {"name": "wasserstein"},
            "penalty": {"name": "wgan-gp", "weight": 10.0, "center": 1.0},
            "optim": {
                "generator": {"lr": 1e-3, "betas": (0.0, 0.9)},
                "critic": {"lr": 1e-3, "betas": (0.0, 0.9), "repeats": 3},
            },
        }
    )


def autoencoder(size: str) -> RunConfig:
    """Convolutional autoencoder of half the squared error (Hinton and Salakhutdinov 2006)."""
    return from_mapping(
        {
            "preset": f"autoencoder-{size}",
            **_SIZES[size],
            "model": {"generator": "autoencoder", "critic": "autoencoder", "width": _WIDTHS[size], "latent": 32},
            "loss": {"name": "reconstruction"},
            "optim": {"generator": {"lr": 1e-3, "betas": (0.9, 0.99)}},
            "ema": {"half_life_kimg": 1.0},
            "checkpoint": {"keep_best": None},  # FD of decoded noise says nothing about an autoencoder
        }
    )


def vae(size: str) -> RunConfig:
    """Variational autoencoder with a unit-variance decoder (Kingma and Welling 2014, arXiv:1312.6114)."""
    plain = autoencoder(size).model_dump(mode="json")
    return from_mapping({**plain, "preset": f"vae-{size}", "loss": {"name": "elbo"}})


def r3gan_gaussians() -> RunConfig:
    """R3GAN's loss and both penalties (Huang et al. 2025, arXiv:2501.05441) on 25 Gaussians of known truth."""
    return from_mapping(
        {
            "preset": "r3gan-gaussians",
            "data": {"path": "gaussians-25", "resolution": 1, "channels": 2},
            "model": {"generator": "mlp", "critic": "mlp", "width": 128, "latent": 2},
            "loss": {"name": "relativistic"},
            "penalty": {"name": "r1-r2", "weight": 0.002, "center": 0.0},
            "optim": {
                "generator": {"lr": 1e-3, "betas": (0.0, 0.99)},
                "critic": {"lr": 4e-3, "betas": (0.0, 0.99)},
                "decay": "cosine",
                "decay_kimg": 4000,
            },
            "train": {"batch": 512, "kimg": 4000, "tick_kimg": 100},
            "ops": {"impl": "reference"},  # the rounding with which this recipe was chosen and proved
            "ema": {"half_life_kimg": 50},
            "sample": {"every_kimg": 500, "num": 1024},
            "checkpoint": {"every_kimg": 1000},
        }
    )


PRESETS: MappingProxyType[str, Callable[[], RunConfig]] = MappingProxyType(
    {
        f"{name}-{size}": (lambda build=build, size=size: build(size))
        for name, build in {
            "dcgan": dcgan,
            "hinge": hinge,
            "wgan-gp": wgan_gp,
            "autoencoder": autoencoder,
            "vae": vae,
        }.items()
        for size in _SIZES
    }
    | {"r3gan-gaussians": r3gan_gaussians}
)


def preset(name: str) -> RunConfig:
    """Return the config of preset ``name``; raises ``ConfigError`` that lists the nearest names."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]()


def compose(
    name: str | None = None,
    *,
    base: RunConfig | None = None,
    data: str | None = None,
    kimg: float | None = None,
    settings: Mapping[str, Any] | Iterable[str] = (),
) -> RunConfig:
    """Return the config of a run: a preset, then the data, the length and the dotted ``settings`` laid over it.

    ``base`` (the config of a run that is resumed) takes the place of the default preset. Raises ``ConfigError``.
    """
    if base is not None and name is not None and name != base.preset:
        raise ConfigError("--preset", f"be {base.preset}, that of the resumed run", name, "leave it out")
    config = base or preset(DEFAULT_PRESET if name is None else name)
    flags = {"data.path": data, "train.kimg": kimg}
    return override(override(config, {key: value for key, value in flags.items() if value is not None}), settings)
