"""What a run's generator draws, as data to train another network on: images with the latents that they came from.

Legend: n images read, N images in the set, C channels, H height, W width, D latent.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ganscale.config import DataConfig
from ganscale.data.dataset import Dataset, Kind, Split, fingerprint
from ganscale.errors import DataError
from ganscale.files import new_directory, sha256_of

if TYPE_CHECKING:
    import torch

SAMPLES_OF_A_RUN = "run:"
FILE = "samples.safetensors"
HELD_OUT_EVERY = 10
REMEDY = "name a trained run, as in --data run:runs/demo; ganscale launch draws its samples (a dry run does not)"


class RunSamples(Dataset):
    """Generated images [N, C, H, W] that lie in memory, without labels; ``latents`` float32 [N, D] made them."""

    kind: Kind = "image"

    def __init__(self, folder: Path, split: Split, images: torch.Tensor, latents: torch.Tensor) -> None:
        super().__init__()
        held = np.arange(len(images)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        chosen = np.flatnonzero(held if split == "held-out" else ~held)
        self.name, self.split = f"{SAMPLES_OF_A_RUN}{folder}", split
        self.images, self.latents = images[chosen], latents[chosen]
        self.shape, self.class_names = tuple(images.shape[1:]), ()
        self.labels = np.full(len(chosen), -1, dtype=np.int64)
        self.num_files = 0
        self.policy = f"{len(images)} images as they were generated, every {HELD_OUT_EVERY}th held out"
        self.fingerprint = fingerprint("run samples", split, {FILE: sha256_of(folder / FILE)}, self.policy)

    def read(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return uint8 ``[n, C, H, W]`` and labels of -1, int64 ``[n]``; see ``Dataset.read``."""
        import torch

        return self.images[torch.from_numpy(indices)], torch.from_numpy(self.labels[indices])


def write_run_samples(folder: Path, images: torch.Tensor, latents: torch.Tensor) -> Path:
    """Write uint8 ``images`` [N, C, H, W] and their ``latents`` [N, D] as the new ``folder`` in one visible step."""
    from safetensors.torch import save_file

    with new_directory(folder) as aside:
        save_file({"images": images.contiguous(), "latents": latents.contiguous()}, aside / FILE)
    return folder


def open_run_samples(config: DataConfig, *, split: Split) -> RunSamples:
    """Open the folder behind ``run:``, as a launch has drawn it; raises ``DataError`` where it is missing or of another
    size.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(config.path.removeprefix(SAMPLES_OF_A_RUN))
    if not (folder / FILE).is_file():
        raise DataError("data.path", "name samples of a run that were drawn", config.path, REMEDY)
    try:
        tensors = load_file(folder / FILE)
        images, latents = tensors["images"], tensors["latents"]
    except (SafetensorError, KeyError) as error:
        raise DataError(
            str(folder / FILE), "hold images and latents", type(error).__name__, "draw them again"
        ) from None
    wanted = (config.channels, *config.resolution)
    if tuple(images.shape[1:]) != wanted:
        size = "x".join(map(str, images.shape[2:]))
        remedy = f"use --set data.resolution={size} --set data.channels={images.shape[1]}"
        raise DataError("samples of the run", f"be {'x'.join(map(str, wanted))}", list(images.shape[1:]), remedy)
    return RunSamples(folder, split, images, latents)
