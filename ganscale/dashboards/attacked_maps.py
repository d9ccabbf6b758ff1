"""Panel of an attack on a map: input and map before and after, and how far the map moved beside random steps.

Legend: N samples, H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ganscale.dashboards.gallery import Row, Tile, gallery
from ganscale.dashboards.layout import number

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

MOST_SAMPLES = 8


def attacked_maps_panel(explanation: Explanation) -> np.ndarray:
    """Draw each sample and its map before and after the attack; uint8 RGB [H, W, 3]."""
    values, x = explanation.values, explanation.inputs["x"]
    rows: list[Row] = []
    picture = x.ndim == 4 and min(x.shape[2:]) > 1
    for sample in range(min(len(x), MOST_SAMPLES) if picture else 0):
        before, after = x[sample].numpy(), values["attacked"][sample].numpy()
        f = [number(float(value), signed=True) for value in values["f_before_after"][sample]]
        maps = [values[name][sample].sum(dim=0).double().numpy() for name in ("map_before", "map_after")]
        notes = (
            f"map change {number(float(values['map_change'][sample]))}",
            f"random {number(float(values['noise_change'][sample].mean()))}",
        )
        tiles = (
            Tile(values=before, words=f"f {f[0]}"),
            Tile(values=after, words=f"f {f[1]}"),
            Tile(values=_scaled(maps[0])),
            Tile(values=_scaled(maps[1])),
            Tile(values=_scaled(maps[1]) - _scaled(maps[0])),
        )
        rows.append(Row(title=f"sample {sample + 1}", tiles=tiles, notes=notes))
    meta = explanation.meta
    budget = meta.get("options", {}).get("budget", 0)
    lines = [
        f"Map: {meta.get('map', 'saliency')}; no pixel moved by more than {budget:g}/255, f stays where it was.",
        "Maps are divided by their root mean square. Change: 1 − cosine, 0 the same map, 1 an unrelated one.",
    ]
    columns = ("before", "after", "map before", "map after", "difference")
    return gallery(explanation, rows, lines, columns=columns)


def _scaled(map_HW: np.ndarray) -> np.ndarray:
    return map_HW / max(float(np.sqrt((map_HW**2).mean())), 1e-30)
