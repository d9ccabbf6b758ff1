"""Panels of a generator's layers: what becomes of pictures when one layer after the other is edited, and by how much.

Legend: L layers, n samples, E kinds of edit, A amounts of an edit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ganscale.dashboards.gallery import Row, Tile, gallery
from ganscale.dashboards.layout import number

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

_WHAT = {
    "mean": "Each layer's output is replaced by its mean over latents.",
    "noise": "Noise of each channel's own size is added to a layer's output.",
}


def layer_panel(explanation: Explanation) -> np.ndarray:
    """Draw the pictures as they are, then a row for each edited layer with its mean effect; uint8 RGB [H, W, 3]."""
    values, meta = explanation.values, explanation.meta
    rows = [_pictures("as they are", values["layer_plain"].double().numpy())]
    if "layer_partner" in values:
        rows.append(_pictures("partners", values["layer_partner"].double().numpy(), control=True))
    edited = values["layer_edited"].double().numpy()
    for place, name in enumerate(meta["layers"]):
        rows.append(_pictures(name, edited[place], notes=_notes(explanation, place)))
    if "layer_partner" in values:
        lines = [
            f"Of each layer {meta['part']} are taken from the partner below (the next latent), nothing else.",
            "Share: 0 where the picture stays, 1 where it becomes the partner's; whole: with all of the layer.",
        ]
    else:
        lines = [_WHAT[meta["shown_edit"]], "Change: root mean square over pixels, in [-1, 1], mean over all latents."]
    return gallery(explanation, rows, lines)


def mixing_panel(explanation: Explanation) -> np.ndarray:
    """Draw the matrix of mixtures, layouts down and styles across, with the sources on the axes."""
    grid, sources = (explanation.values[key].double().numpy() for key in ("mixing_matrix", "mixing_sources"))
    rows = [Row(title="style of", tiles=[None, *(Tile(values=image, bold=True) for image in sources)])]
    for place, row in enumerate(grid):
        tiles = [Tile(values=sources[place], bold=True), *(Tile(values=image) for image in row)]
        rows.append(Row(title="layout of" if place == 0 else "", tiles=tiles))
    layer = explanation.meta["mixing_layer"]
    lines = [
        f"At {layer}, whose style does most: means and deviations of the channels from above, the rest from the left."
    ]
    return gallery(explanation, rows, lines)


def _pictures(title: str, images: np.ndarray, *, notes: tuple[str, ...] = (), control: bool = False) -> Row:
    return Row(title=title, tiles=[Tile(values=image) for image in images], notes=notes, control=control)


def _notes(explanation: Explanation, place: int) -> tuple[str, ...]:
    values, meta = explanation.values, explanation.meta
    if "share_mixed" in values:
        mixed, whole = (number(float(values[key][place])) for key in ("share_mixed", "share_whole"))
        return (f"share {mixed}", f"whole {whole}")
    way = meta["edits"].index(meta["shown_edit"])
    notes = [f"change {number(float(values['effect_pixels'][place, way]))}"]
    if "effect_critic" in values:
        notes.append(f"critic {number(float(values['effect_critic'][place, way]), signed=True)}")
    if "effect_class" in values:
        notes.append(f"verdict changes: {float(values['effect_class'][place, way]):.0%}")
    return tuple(notes)
