"""Rows of small pictures with words beside and below them: what most explanations of a generator are drawn with.

A tile is a picture (float [C, H, W] in [-1, 1]) or a signed map (float [H, W]), which is coloured with white at 0 and
equal limits on both sides; the limit of a row's maps is one, and its colour bar stands at the row's end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np

from ganscale.dashboards.enlarging import DENSITY, enlarge, rgb
from ganscale.dashboards.figures import Canvas, signed_colours
from ganscale.dashboards.layout import (
    MARGIN,
    heading,
    heading_height,
    method_title,
    number,
)
from ganscale.dashboards.palette import INK, LINE, MUTED, SERIES

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

SIDE = 84
LEAST_WIDTH = 880
_CAPTION, _GAP, _BELOW, _HEAD, _BAR, _TICKS = 176, 8, 19, 22, 12, 56
_LETTER = 6.6  # CSS pixels that a letter of a note takes, at most
_LETTERS = 30  # of a note in a line: more would have to be smaller than can be read


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """One picture or signed map, the words below it, and whether it is framed in bold."""

    values: np.ndarray
    words: str = ""
    bold: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A title with notes, and its tiles; ``None`` leaves a place empty. ``control`` rows are grey."""

    title: str
    tiles: Sequence[Tile | None]
    notes: Sequence[str] = ()
    control: bool = False

    @property
    def limit(self) -> float:
        """Return the largest absolute value of the row's maps, or 0 where it has none."""
        maps = [float(np.abs(tile.values).max()) for tile in self.tiles if tile is not None and tile.values.ndim == 2]
        return max(maps, default=0.0)


def gallery(
    explanation: Explanation,
    rows: Sequence[Row],
    lines: Sequence[str],
    *,
    columns: Sequence[str] = (),
    title: str = "",
    banner: bool | None = None,
) -> np.ndarray:
    """Draw ``rows`` under the explanation's title and ``lines``; uint8 RGB [H, W, 3].

    ``title`` and ``banner`` stand in place of the explanation's own.
    """
    rows = [replace(row, notes=[line for note in row.notes for line in wrap(note, _LETTERS)]) for row in rows]
    most = max((len(row.tiles) for row in rows), default=1)
    banner = explanation.not_better_than_random if banner is None else banner
    tall, wide = _tile_size(rows)
    cell = max(wide, 52)
    has_maps = any(row.limit for row in rows)
    width = max(2 * MARGIN + _CAPTION + most * (cell + _GAP) + (_BAR + _TICKS if has_maps else 0), LEAST_WIDTH)
    step = [
        max(tall + (_BELOW if any(t and t.words for t in row.tiles) else 6), 24 + 17 * len(row.notes)) + 6
        for row in rows
    ]
    top = heading_height(lines=len(lines), banner=banner)
    canvas = Canvas(width, top + (_HEAD if columns else 0) + sum(step) + 12)
    y = heading(canvas, title or method_title(explanation.method), lines, banner=banner, of=explanation)
    for place, words in enumerate(columns):
        x = MARGIN + _CAPTION + place * (cell + _GAP) + cell / 2
        canvas.text(x, y, words, size=12, bold=True, colour=MUTED.light, align="center")
    y += _HEAD if columns else 0
    for row, height in zip(rows, step, strict=True):
        _draw(canvas, y, row, cell)
        y += height
    return canvas.array()


def _tile_size(rows: Sequence[Row]) -> tuple[int, int]:
    """Return height and width in CSS pixels of the largest tile."""
    sizes = [_coloured(tile, 1.0).shape[:2] for row in rows for tile in row.tiles if tile is not None] or [(SIDE, SIDE)]
    return max(size[0] for size in sizes) // DENSITY, max(size[1] for size in sizes) // DENSITY


def _coloured(tile: Tile, limit: float) -> np.ndarray:
    pixels = signed_colours(tile.values, limit=limit) if tile.values.ndim == 2 else rgb(tile.values)
    return enlarge(pixels, side=SIDE)


def _draw(canvas: Canvas, y: int, row: Row, cell: int) -> None:
    colour = SERIES["grey"].light if row.control else SERIES["blue"].light
    canvas.text(MARGIN, y + 2, row.title, size=13, bold=True, colour=colour)
    for line, note in enumerate(row.notes):
        fits = (_CAPTION - 8) / (_LETTER * max(len(note), 1))
        canvas.text(MARGIN, y + 22 + 17 * line, note, size=12 * min(1.0, fits), colour=MUTED.light)
    limit, height = row.limit, SIDE
    for place, tile in enumerate(row.tiles):
        if tile is None:
            continue
        pixels = _coloured(tile, limit)
        height, width = (edge / DENSITY for edge in pixels.shape[:2])
        left = MARGIN + _CAPTION + place * (cell + _GAP)
        x, frame = left + (cell - width) / 2, 2 if tile.bold else 1
        fill = INK.light if tile.bold else LINE.light
        canvas.box(x - frame, y - frame, width + 2 * frame, height + 2 * frame, fill=fill)
        canvas.image(x, y, pixels)
        size = 11 * min(1.0, (cell + _GAP - 6) / (0.92 * _LETTER * max(len(tile.words), 1)))
        canvas.text(left + cell / 2, y + height + 3, tile.words, size=size, colour=INK.light, align="center")
    if limit:
        colour_bar(canvas, MARGIN + _CAPTION + len(row.tiles) * (cell + _GAP), y, round(height), limit)


def colour_bar(canvas: Canvas, x: int, y: int, height: int, limit: float) -> None:
    """Draw the scale of signed colours from +limit to -limit with three ticks, ``height`` CSS pixels tall."""
    ramp = np.linspace(1, -1, height * DENSITY)[:, None].repeat(_BAR * DENSITY, axis=1)
    canvas.image(x, y, signed_colours(ramp, limit=1.0))
    canvas.box(x - 1, y - 1, _BAR + 2, height + 2, line=LINE.light)
    for share, value in ((0.0, limit), (0.5, 0.0), (1.0, -limit)):
        top = y + share * height - (2 if share == 0 else 7 if share == 0.5 else 12)
        canvas.text(x + _BAR + 4, top, number(value, signed=True), size=11, colour=MUTED.light)
