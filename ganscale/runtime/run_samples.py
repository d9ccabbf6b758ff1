"""``--data run:RUN``: the run's generator draws the data, once, into the run's own directory."""

from __future__ import annotations

from ganscale.config import RunConfig, override
from ganscale.data import SAMPLES_OF_A_RUN
from ganscale.data.run_samples import FILE, REMEDY, write_run_samples
from ganscale.errors import DataError

NUM = 10_000
FOLDER = "generated"


def with_drawn_samples(config: RunConfig) -> RunConfig:
    """Return ``config`` with ``run:RUN`` or ``run:RUN@NUM`` replaced by the folder where the samples lie; draw them
    where they are not there yet.

    They lie in RUN/generated/, named after checkpoint and number, so that a run that goes on does not change the data
    of one that was trained on it. Raises DataError for a number that is none, UserError where there is no such run,
    CheckpointError where it has no good checkpoint.
    """
    path = config.data.path
    if not path.startswith(SAMPLES_OF_A_RUN):
        return config
    from pathlib import Path

    from ganscale.data.pixels import to_uint8
    from ganscale.runtime.run import latents, load

    wanted = path.removeprefix(SAMPLES_OF_A_RUN)
    if (Path(wanted) / FILE).is_file():
        return override(config, {"data.path": f"{SAMPLES_OF_A_RUN}{Path(wanted).absolute()}"})
    name, _, number = wanted.rpartition("@") if "@" in wanted else (wanted, "", str(NUM))
    if not number.isdigit() or int(number) < 10:
        raise DataError("data.path", "be run:RUN or run:RUN@NUM with at least 10 samples", path, REMEDY)
    run = load(name)
    if run.config.data.channels == 2:
        raise DataError("data.path", "name a run of images", path, REMEDY)
    networks = run.networks
    folder = run.path / FOLDER / f"kimg-{networks.images // 1000:06d}-{int(number)}"
    if not (folder / FILE).is_file():
        z = latents(int(number), networks.generator.latent, seed=0, purpose="run samples")
        folder.parent.mkdir(exist_ok=True)
        write_run_samples(folder, to_uint8(networks.draw_float(z)), z)
    height, width = run.config.data.resolution
    return override(
        config,
        {
            "data.path": f"{SAMPLES_OF_A_RUN}{folder}",
            "data.resolution": f"{height}x{width}",
            "data.channels": run.config.data.channels,
        },
    )
