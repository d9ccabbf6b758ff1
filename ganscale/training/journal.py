"""The files that rank 0 writes while training: ``metrics.jsonl`` and the sample grids."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from ganscale.config import RunConfig
from ganscale.data.pixels import image_grid, save_png, to_uint8
from ganscale.files import replace_text
from ganscale.progress import checkpoint_name, times_passed
from ganscale.training.autoencoding import beside_reconstructions
from ganscale.training.process_group import Group
from ganscale.training.random import Draws
from ganscale.training.records import SampleRecord, TickRecord

METRICS = "metrics.jsonl"
_GENERATE_BATCH = 64


class Journal:
    """Appends ticks and draws sample grids below a run directory."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def rewind(self, images: int) -> None:
        """Drop the lines after ``images`` and a partial last line: the run goes over that ground again."""
        path = self._run_dir / METRICS
        if not path.exists():
            return
        kept = []
        for line in path.read_text().splitlines():
            try:
                tick = json.loads(line)
            except ValueError:  # cut short by a crash
                continue
            if tick["images"] <= images and not tick["partial"]:
                kept.append(line + "\n")
        replace_text(path, "".join(kept))

    def append(self, tick: TickRecord) -> None:
        """Add one line; keys of ``scalars`` are those of the TensorBoard page."""
        line = {
            "images": tick.images,
            "kimg": tick.images / 1000,
            "scalars": tick.scalars,
            "timing": tick.timing,
            "partial": tick.partial,
        }
        with (self._run_dir / METRICS).open("a") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")

    def samples(
        self, generator: nn.Module, config: RunConfig, group: Group, images: int, *, shown: torch.Tensor | None = None
    ) -> SampleRecord | None:
        """Write the grid of ``sample.num`` EMA samples from the run's fixed latents; None where pixels mean nothing.

        An autoencoder's grid has the images ``shown``, each beside its reconstruction.
        """
        if config.data.channels == 2:  # points of the plane
            return None
        if shown is None:
            pixels = to_uint8(sample(generator, config.train.seed, config.sample.num, group.device))
        else:
            pixels = to_uint8(beside_reconstructions(generator, shown, group.device))
        grid = image_grid(pixels)
        path = self._run_dir / "samples" / f"{checkpoint_name(images)}.png"
        path.parent.mkdir(exist_ok=True)
        save_png(path, grid)
        return SampleRecord(images=images, path=path, grid=grid)


def shown_up_to(config: RunConfig, images: int | None) -> int:
    """Return the last step whose events stay good where a run goes on from ``images`` (None: from its beginning).

    Those of ``images`` itself do where a whole tick ended there. A partial one is written anew, like its line.
    """
    if images is None:
        return -1
    ends_tick = times_passed(images - config.train.batch, images, config.train.tick_kimg) > 0
    return images if ends_tick else images - 1


@torch.no_grad()
def sample(
    generator: nn.Module, seed: int, num: int, device: torch.device, *, purpose: str = "samples"
) -> torch.Tensor:
    """Return ``num`` images [num, C, H, W] float32 on the CPU from latents keyed by (seed, purpose, index)."""
    z = Draws(seed, device).normal(purpose, 0, num, generator.latent)
    return torch.cat([generator(part).float().cpu() for part in z.split(_GENERATE_BATCH)])
