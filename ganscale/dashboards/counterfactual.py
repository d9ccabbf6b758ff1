"""Panel of counterfactuals: the way from each picture to the one that is judged otherwise, and what changed.

Legend: N samples, T pictures on the way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ganscale.dashboards.gallery import Row, Tile, gallery
from ganscale.dashboards.layout import number

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

MOST_SAMPLES = 8


def counterfactual_panel(explanation: Explanation) -> np.ndarray:
    """Draw original, way and counterfactual with the wished probability, their difference, and the pixel-space one."""
    values = explanation.values
    count, between = min(len(values["path"]), MOST_SAMPLES), values["path"].shape[1] - 2
    rows = [_row(explanation, sample) for sample in range(count)]
    noise = explanation.meta["noise"]
    judge, total = explanation.meta["judge"], len(values["step"])
    lines = [
        f"Judge: the {judge}. Below each picture: probability of the wished verdict. {count} of {total} samples.",
        "Difference: red became brighter, blue darker (channels' mean). Pixels, the control: turned without G.",
        f"The way is straight in latent space; survival is measured under noise of {noise:g}.",
    ]
    columns = ("original", *[""] * between, "turned", "difference", "pixels")
    return gallery(explanation, rows, lines, columns=columns)


def _row(explanation: Explanation, sample: int) -> Row:
    values, path = explanation.values, explanation.values["path"][sample].double().numpy()
    probabilities = values["path_probability"][sample].numpy()
    tiles = [
        Tile(values=image, words=number(float(share)), bold=place in (0, len(path) - 1))
        for place, (image, share) in enumerate(zip(path, probabilities, strict=True))
    ]
    tiles.append(Tile(values=(path[-1] - path[0]).mean(axis=0)))
    pixels, share = values["pixel_counterfactual"][sample].double().numpy(), values["probability_pixel"][sample]
    tiles.append(Tile(values=pixels, words=number(float(share))))
    before, after = (_verdict(explanation, int(values[end][sample])) for end in ("from", "to"))
    turned = "turned" if bool(values["flipped"][sample]) else "not turned"
    length = number(float(values["latent_length"][sample]))
    return Row(title=before, tiles=tiles, notes=(f"→ {after}", f"{turned}, moved {length} in z"))


def _verdict(explanation: Explanation, verdict: int) -> str:
    names = explanation.meta["class_names"]
    if names:
        return names[verdict]
    return "real" if verdict > 0 else "generated"
