"""``ganscale generate``: images from a run's generator, as one PNG grid or a folder of PNGs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ganscale.cli.group import Verb
from ganscale.cli.output import result, result_json
from ganscale.cli.params import WholeNumber, find_run, json_option, run_argument
from ganscale.errors import UserError

if TYPE_CHECKING:
    import numpy as np


@click.command(cls=Verb)
@run_argument
@click.option("--num", type=WholeNumber(1), default=64, show_default=True, help="How many images.")
@click.option("--seed", type=WholeNumber(0), default=0, show_default=True, help="Seed of the latents.")
@click.option(
    "--out",
    metavar="FILE.png|DIR",
    help="A new .png file (one grid) or a new folder (a file an image). Default: RUN/generated/.",
)
@click.option("--interpolate", is_flag=True, help="Walk between random latents instead of drawing each afresh.")
@json_option
def generate(run: str, num: int, seed: int, out: str | None, interpolate: bool, as_json: bool) -> None:
    """Draw images from a run's generator."""
    path = find_run(run)
    from ganscale.runtime import load

    found = load(path)
    walk = "-walk" if interpolate else ""
    target = Path(out) if out else found.path / "generated" / f"seed-{seed}-num-{num}{walk}.png"
    if (out and target.is_file()) or (target.is_dir() and any(target.iterdir())):
        raise UserError("--out", "be a new file or folder", str(target), "choose another name, or remove it")
    written = save(
        found.generate(num, seed=seed, interpolate=interpolate), target, columns=num if interpolate else None
    )
    if as_json:
        result_json({"num": num, "seed": seed, "files": written})
    else:
        result(str(target))


def save(samples: np.ndarray, target: Path, *, columns: int | None = None) -> list[Path]:
    """Write samples [N, C, H, W] as one PNG where ``target`` ends in .png, else as a PNG each below it.

    The one is a square grid, or one of ``columns``.

    Points of the plane (C = 2) become one scatter plot, never a folder (``UserError``). Returns the files.
    """
    if target.suffix and target.suffix.lower() != ".png":
        raise UserError("--out", "be a .png file or a folder", str(target), f"use {target.with_suffix('.png')}")
    from ganscale.data.pixels import image_grid, save_png, scatter_image

    single = target.suffix.lower() == ".png"
    if samples.shape[1] == 2:
        if not single:
            raise UserError("--out", "be a .png file where the run makes points", str(target), "add .png")
        return [save_png(target, scatter_image(samples, extent=1.1 * float(abs(samples).max())))]
    if single:
        return [save_png(target, image_grid(samples, columns))]
    return [
        save_png(target / f"{index:06d}.png", image_grid(sample[None], padding=0))
        for index, sample in enumerate(samples)
    ]
