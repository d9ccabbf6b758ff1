"""Drawing surface of the panels: text and lines by matplotlib's Agg, small images pasted with whole-number enlargement.

Sizes and positions are in CSS pixels from the upper left corner; the array that comes out has ``DENSITY`` device pixels
for each of them, so text stays sharp on dense screens. No global matplotlib state is touched (no pyplot).

Legend: H height, W width, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ganscale.dashboards.enlarging import DENSITY, enlarge
from ganscale.dashboards.palette import DIVERGING, GROUND, INK, LINE, MUTED

POINT = 0.72  # points a CSS pixel, at 100 dots an inch
_CHEQUER = 7 * DENSITY  # device pixels of a square of what is left out of a picture
_TINT = np.array([208.0, 219.0, 235.0])  # of every other square: a gray image has no such colour


@dataclass(frozen=True, slots=True)
class _Paste:
    x: int
    y: int
    pixels: np.ndarray


class Canvas:
    """A page of ``width`` x ``height`` CSS pixels on white."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = int(width), int(height)
        self.figure = Figure(figsize=(self.width / 100, self.height / 100), dpi=100 * DENSITY, facecolor=GROUND.light)
        self._agg = FigureCanvasAgg(self.figure)
        self._pastes: list[_Paste] = []

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 12,
        colour: str = INK.light,
        bold: bool = False,
        align: str = "left",
        rotation: float = 0,
    ) -> None:
        """Write ``words``: top of the first line at ``y``, the ``align`` edge at ``x``; ``$`` is a plain sign."""
        self.figure.text(
            x / self.width,
            1 - y / self.height,
            words,
            fontsize=size * POINT,
            color=colour,
            fontweight="bold" if bold else "normal",
            ha=align,
            va="top",
            rotation=rotation,
            parse_math=False,
        )

    def width_of(self, words: str, *, size: float = 12, bold: bool = False) -> float:
        """Return how many CSS pixels ``words`` would take on one line."""
        weight = "bold" if bold else "normal"
        shown = self.figure.text(0, 0, words, fontsize=size * POINT, fontweight=weight, parse_math=False)
        wide = shown.get_window_extent(self._agg.get_renderer()).width / DENSITY
        shown.remove()
        return wide

    def box(self, x: float, y: float, width: float, height: float, *, fill: str = "none", line: str = "none") -> None:
        """Draw a rectangle under the text."""
        patch = Rectangle(
            (x / self.width, 1 - (y + height) / self.height),
            width / self.width,
            height / self.height,
            transform=self.figure.transFigure,
            facecolor=fill,
            edgecolor=line,
            linewidth=1,
        )
        self.figure.add_artist(patch)

    def image(self, x: float, y: float, device_pixels: np.ndarray) -> None:
        """Paste uint8 [H, W, 3] in device pixels (see ``enlarge``) with its upper left corner at (x, y)."""
        assert (device_pixels.dtype, device_pixels.ndim) == (np.uint8, 3), device_pixels.shape
        self._pastes.append(_Paste(round(x * DENSITY), round(y * DENSITY), device_pixels))

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Return matplotlib axes whose frame fills the given rectangle, in the house style."""
        axes = self.figure.add_axes(
            (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        )
        axes.tick_params(labelsize=11 * POINT, colors=MUTED.light, length=3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(LINE.light)
        axes.grid(color=LINE.light, linewidth=0.5, alpha=0.7)
        axes.set_axisbelow(True)
        return axes

    def label_axes(self, axes: Axes, *, title: str, x: str, y: str) -> None:
        """Write title and axis labels in the house sizes."""
        axes.set_title(title, fontsize=13 * POINT, color=INK.light, loc="left", fontweight="bold")
        axes.set_xlabel(x, fontsize=11 * POINT, color=MUTED.light)
        axes.set_ylabel(y, fontsize=11 * POINT, color=MUTED.light)

    def scale(self, axes: Axes, shown: ScalarMappable, *, words: str = "") -> None:
        """Draw the colour bar of an image, or of coloured dots, at the right of its ``axes``, as tall as they are."""
        frame = axes.get_position()
        beside = self.figure.add_axes((frame.x1 + 8 / self.width, frame.y0, 12 / self.width, frame.height))
        bar = self.figure.colorbar(shown, cax=beside)
        bar.ax.tick_params(labelsize=10 * POINT, colors=MUTED.light, length=2)
        bar.outline.set_edgecolor(LINE.light)
        bar.set_label(words, fontsize=10 * POINT, color=MUTED.light)

    def array(self) -> np.ndarray:
        """Return the drawn page as uint8 RGB [H, W, 3] in device pixels."""
        self._agg.draw()
        page = np.asarray(self._agg.buffer_rgba())[..., :3].copy()
        for paste in self._pastes:
            height, width = paste.pixels.shape[:2]
            page[paste.y : paste.y + height, paste.x : paste.x + width] = paste.pixels[
                : page.shape[0] - paste.y, : page.shape[1] - paste.x
            ]
        return page


def signed_colours(values_HW: np.ndarray, *, limit: float) -> np.ndarray:
    """Colour signed values: white at 0, red towards ``+limit``, blue towards ``-limit``; uint8 [H, W, 3]."""
    scaled = np.clip(np.asarray(values_HW, dtype=np.float64) / (limit if limit > 0 else 1.0), -1, 1)
    return np.rint(colormaps[DIVERGING]((scaled + 1) / 2)[..., :3] * 255).astype(np.uint8)


def strength(values_HW: np.ndarray, *, limit: float) -> np.ndarray:
    """Return how strongly a value shows in an overlay: 0 at 0, 1 from ``limit`` on, either way; float64 [H, W]."""
    return np.clip(np.abs(values_HW) / (limit if limit > 0 else 1.0), 0, 1) ** 0.7  # the weak half is seen too


def blend(image_HWC: np.ndarray, values_HW: np.ndarray, *, limit: float) -> np.ndarray:
    """Lay the signed colours over a faded gray image; where a value is near 0 the image shows through."""
    gray = image_HWC.astype(np.float64).mean(axis=-1, keepdims=True)
    faded = 255 - (255 - gray) * 0.45
    opacity = 0.85 * strength(values_HW, limit=limit)[..., None]
    colour = np.where((values_HW >= 0)[..., None], (178.0, 24.0, 43.0), (33.0, 102.0, 172.0))
    return np.rint(faded * (1 - opacity) + colour * opacity).astype(np.uint8)


def over_ground(image_HWC: np.ndarray, alpha_HW: np.ndarray, *, side: int) -> np.ndarray:
    """Enlarge an image to ``side`` and lay it with the opacity [H, W] in [0, 1] on the chequers that mean nothing."""
    image = enlarge(image_HWC, side=side).astype(np.float64)
    levels = np.rint(255 * alpha_HW.astype(np.float64)).astype(np.uint8)[..., None].repeat(3, axis=-1)
    alpha = enlarge(levels, side=side) / 255.0
    odd = np.add.outer(*(np.arange(edge) // _CHEQUER for edge in image.shape[:2])) % 2
    ground = np.where(odd[..., None], _TINT, 255.0)
    return np.rint(image * alpha + ground * (1 - alpha)).astype(np.uint8)
