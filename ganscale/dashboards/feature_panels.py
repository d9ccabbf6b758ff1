"""Panels of features: maps of each layer over their pictures, and the inputs that units like best."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ganscale.dashboards.gallery import Row, Tile, gallery
from ganscale.dashboards.layout import NETWORKS, number

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

ROWS_OVER_TIME = 3  # channels of a layer


def maps_panel(explanation: Explanation) -> np.ndarray:
    """Draw a layer a row: the picture, then the maps of the layer's most varied channels; uint8 RGB [H, W, 3]."""
    values, meta = explanation.values, explanation.meta
    image = values["map_images"][0].double().numpy()
    rows = []
    for place, name in enumerate(meta["layers"]):
        maps, channels = values[f"map_{place}"][0].double().numpy(), values[f"channels_{place}"].tolist()
        tiles = [Tile(values=image, words="picture"), *_maps(maps, channels)]
        depicted = number(float(values["depicted"][place]))
        other = number(float(values["depicted_permuted"][place].mean()))
        size = f"{maps.shape[1]} × {maps.shape[2]}"
        rows.append(Row(title=name, tiles=tiles, notes=(size, f"|r| with picture {depicted}", f"with others {other}")))
    lines = [f"Layers of the {NETWORKS[meta['network']]}, the most varied channels first; red above zero, blue below."]
    return gallery(explanation, rows, lines)


def maps_over_time_panel(explanation: Explanation) -> np.ndarray:
    """Draw the first channels of each layer a row, one column a checkpoint; uint8 RGB [H, W, 3]."""
    values, meta = explanation.values, explanation.meta
    run = meta.get("run")
    times = [f"{images / 1000:g} kimg" for images in values["past_times"].tolist()]
    times.append("now" if run is None else f"{run['images'] / 1000:g} kimg")
    drawn = [*values["past_images"].double().numpy(), values["map_images"][0].double().numpy()]
    rows = [Row(title="picture", tiles=[Tile(values=image) for image in drawn], notes=("G of the same z",))]
    for place, name in enumerate(meta["layers"]):
        now, past = values[f"map_{place}"][0].double().numpy(), values[f"past_{place}"].double().numpy()
        for slot, channel in enumerate(values[f"channels_{place}"].tolist()[:ROWS_OVER_TIME]):
            tiles = [Tile(values=plane) for plane in (*past[:, slot], now[slot])]
            size = f"{now.shape[1]} × {now.shape[2]}"
            rows.append(Row(title=name, tiles=tiles, notes=(f"channel {channel}", size)))
    what = "the same latent" if meta["network"] == "G" else "the picture of today"
    lines = [
        f"Layers of the {NETWORKS[meta['network']]} on {what}, as training went on; one scale a row, white is zero.",
        "Channels are those that vary most now.",
    ]
    return gallery(explanation, rows, lines, columns=times)


def _maps(maps: np.ndarray, channels: list[int]) -> list[Tile]:
    return [Tile(values=plane, words=f"channel {channel}") for plane, channel in zip(maps, channels, strict=True)]


def vis_panel(explanation: Explanation) -> np.ndarray:
    """Draw a unit a row: its best input found by ascent, then the best of the pool; uint8 RGB [H, W, 3]."""
    values, meta = explanation.values, explanation.meta
    rows = []
    for place, unit in enumerate(values["units"].tolist()):
        found, best = (values[key][place].double().numpy() for key in ("vis_images", "vis_best"))
        reached, others = float(values["vis_reached"][place]), values["vis_best_reached"][place].tolist()
        tiles = [Tile(values=found, words=number(reached), bold=True)]
        tiles += [Tile(values=image, words=number(value)) for image, value in zip(best, others, strict=True)]
        noise = number(float(values["vis_random"][place]))
        rows.append(Row(title=f"unit {unit}", tiles=tiles, notes=(f"random input: {noise}",)))
    beside = "draws of the latent" if meta["beside"] == "draws" else "pictures of the pool"
    lines = [
        f"Units of {meta['layer']} of the {NETWORKS[meta['network']]}. Framed: found by ascent, as long as an input.",
        f"Right: the {beside} that excite the unit most. Below each: the unit's mean output.",
    ]
    return gallery(explanation, rows, lines)
