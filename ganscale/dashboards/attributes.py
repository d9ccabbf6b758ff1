"""Panel of the coordinates that drive a judge: each moved both ways from the picture that answers most."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ganscale.dashboards.gallery import Row, Tile, gallery
from ganscale.dashboards.layout import number

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation


def attributes_panel(explanation: Explanation) -> np.ndarray:
    """Draw the strongest coordinates, a row each, with the judge's answer below each picture; uint8 RGB [H, W, 3]."""
    values, meta = explanation.values, explanation.meta
    rows = []
    walks, answers = values["attribute_walks"].double().numpy(), values["attribute_answers"].double().numpy()
    layer = "z" if meta["layer"] == "z" else f"{meta['layer']} channel "
    for place, (k, unit, way, _) in enumerate(values["attribute_rows"].tolist()):
        middle = len(meta["steps"]) // 2
        tiles = [
            Tile(values=image, words=number(float(answer), signed=True), bold=step == middle)
            for step, (image, answer) in enumerate(zip(walks[place], answers[place], strict=True))
        ]
        mean = number(float(values["effect"][unit, way, k]), signed=True)
        name = meta["class_names"][k] if meta["class_names"] else "critic: real"
        coordinate = f"{layer}[{unit}]" if layer == "z" else f"{layer}{unit}"
        notes = [f"{coordinate}, moved {'up' if way == 0 else 'down'}", f"{mean} on average"]
        also = _also(explanation, k, unit)
        rows.append(Row(title=name, tiles=tiles, notes=[*notes, f"also best for {also}"] if also else notes))
    what = "log-odds of the class" if meta["class_names"] else "critic's logit"
    moved = (
        f"Averages are of moves by {meta['shift']:g} standard deviations (σ), pictures go as far as the columns say."
    )
    lines = [
        f"{moved} Below each picture: the {what}.",
        f"Chosen on {meta['choosing']} latents, scored on {meta['judging']} others; control: random directions.",
    ]
    columns = [f"{step:+g} σ".replace("-", "−") if step else "0" for step in meta["steps"]]
    return gallery(explanation, rows, lines, columns=columns)


def _also(explanation: Explanation, shown: int, unit: int) -> str:
    """Return the other classes whose best coordinate is the same, each with its way."""
    best, names = explanation.values["best"].tolist(), explanation.meta["class_names"]
    others = [k for k, move in enumerate(best) if k != shown and move // 2 == unit]
    if len(others) > 3:
        return f"{len(others)} other classes"
    return ", ".join(f"{names[k]} ({'up' if best[k] % 2 == 0 else 'down'})" for k in others)
