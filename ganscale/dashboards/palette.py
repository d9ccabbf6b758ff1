"""The colours of every chart, panel and page, so that one thing has one colour wherever it appears.

The series colours are those of Okabe and Ito (2008), which people with any common colour blindness can tell apart; the
light and the dark page use a darker and a lighter member of the same hue. Signed maps use ColorBrewer's RdBu.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Shade:
    """One colour as ``#rrggbb`` on a light and on a dark ground."""

    light: str
    dark: str


INK = Shade(light="#1b1f24", dark="#e8eaed")
MUTED = Shade(light="#59626c", dark="#a5adb7")
GROUND = Shade(light="#ffffff", dark="#14171b")
SURFACE = Shade(light="#f5f6f8", dark="#1e2227")
LINE = Shade(light="#d5d9df", dark="#3a4048")
LINK = Shade(light="#0a5c9e", dark="#7cc0f2")
WARNING_INK = Shade(light="#6b3a00", dark="#ffd9a0")
WARNING_GROUND = Shade(light="#ffefd6", dark="#46300f")

#: Role of a series -> its colour. The critic and real images are blue, the generator and its images vermilion.
SERIES: dict[str, Shade] = {
    "blue": Shade(light="#0072b2", dark="#56b4e9"),
    "vermilion": Shade(light="#c45100", dark="#f2935c"),
    "green": Shade(light="#00795a", dark="#3fc79c"),
    "purple": Shade(light="#a8437c", dark="#e09ac1"),
    "grey": Shade(light="#6b7280", dark="#a5adb7"),
}

#: Name of matplotlib's map for signed values: red raises the explained value, blue lowers it, white is zero.
DIVERGING = "RdBu_r"
UP, DOWN = "#b2182b", "#2166ac"  # of bars: near the ends of that map


def role(name: str) -> str:
    """Return the key of ``SERIES`` for a tag such as ``loss/critic`` or ``logits/fake``."""
    last = name.rsplit("/", 1)[-1]
    return {"critic": "blue", "real": "blue", "generator": "vermilion", "fake": "vermilion", "penalty": "green"}.get(
        last, "purple"
    )
