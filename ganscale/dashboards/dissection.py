"""Panel of a dissection: where the best unit of each concept is active, and the same picture without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ganscale.dashboards.gallery import Row, Tile, gallery
from ganscale.dashboards.layout import number

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

FADED = 0.3  # of its brightness: what lies outside a unit's region


def dissection_panel(explanation: Explanation) -> np.ndarray:
    """Draw a concept a row: its best unit's strongest pictures, then one before and after ablation; uint8 RGB."""
    values, meta = explanation.values, explanation.meta
    rows, names = [], meta["concepts"]
    for place, k in enumerate(values["shown_concepts"].tolist()):
        unit = int(values["best_unit"][k])
        images = values["unit_images"][place].double().numpy()
        regions = values["unit_regions"][place].numpy()[:, None]
        tiles = [
            Tile(values=np.where(region, image, (image + 1) * FADED - 1))
            for image, region in zip(images, regions, strict=True)
        ]
        without = values["without"][place].double().numpy()
        tiles += [Tile(values=images[0]), Tile(values=without), Tile(values=(without - images[0]).mean(axis=0))]
        share, random = (float(values[name][k]) for name in ("removed", "removed_random"))
        notes = (
            f"unit {unit}, IoU {number(float(values['iou'][unit, k]))}",
            f"gone without {meta['ablated_units']}: {share:.0%}",
            f"without random: {random:.0%}",
        )
        rows.append(Row(title=names[k], tiles=tiles, notes=notes))
    shown = values["unit_images"].shape[1] if "unit_images" in values else 0
    columns = ("strongest", *[""] * (shown - 1), "with", "without", "difference")
    lines = [
        f"Units: channels of {meta['layer']}. Bright: where the concept's best unit is above its threshold.",
        f"IoU with the concept's mask on held-out latents; without its {meta['ablated_units']} best units set to 0.",
    ]
    return gallery(explanation, rows, lines, columns=columns)
