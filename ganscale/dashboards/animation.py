"""Walks through latent space as animated GIFs: all walks of an explanation at once, there and back.

Legend: K walks, S steps of a walk, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ganscale.dashboards.enlarging import DENSITY, enlarge, rgb
from ganscale.dashboards.figures import Canvas
from ganscale.dashboards.layout import MARGIN, method_title, number
from ganscale.dashboards.palette import INK, MUTED, SERIES
from ganscale.dashboards.traversal import verdicts_of

if TYPE_CHECKING:
    from torch import Tensor

    from ganscale.explain.types import Explanation

SIDE, ACROSS, MOST_WALKS, FRAME_MS = 96, 5, 20, 180
_GAP, _LINE, _HEAD, _WORDS, _LEAST_WIDTH = 12, 16, 30, 120, 480
_LETTERS = 13  # of a title that fit over a tile


@dataclass(frozen=True, kw_only=True, slots=True)
class _Walk:
    title: str
    images: Tensor  # [S, C, H, W] in [-1, 1]
    colour: str = "blue"
    words: Sequence[str] = ()  # below the image, for each step


@dataclass(frozen=True, kw_only=True, slots=True)
class Moving:
    """What of an explanation moves: the values it needs, how its walks and steps are called, and a caption."""

    needs: tuple[str, ...]
    walks: Callable[[Explanation], list[_Walk]]
    steps: Callable[[Explanation, int], list[str]]
    caption: str


def write_gifs(explanation: Explanation, directory: str | Path) -> list[Path]:
    """Write what moves in ``explanation`` as ``NAME.gif`` in ``directory``, by the names in ``MOVING``; the paths.

    Every frame shows all walks at the same step. Where the walks are no pictures nothing is written.
    """
    written = []
    for name, moving in MOVING.items():
        if explanation.values.keys() >= {*moving.needs}:
            walks = moving.walks(explanation)[:MOST_WALKS]
            if walks and min(walks[0].images.shape[-2:]) > 1:
                path = Path(directory) / f"{name}.gif"
                _save(explanation, walks, moving.steps(explanation, len(walks[0].images)), path)
                written.append(path)
    return written


def _save(explanation: Explanation, walks: Sequence[_Walk], steps: Sequence[str], path: Path) -> None:
    page, places = _page(explanation, walks)
    there = [_frame(page, places, walks, step, words) for step, words in enumerate(steps)]
    frames = [Image.fromarray(frame).quantize(128, dither=Image.Dither.NONE) for frame in there + there[-2:0:-1]]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0, optimize=False)


def _page(explanation: Explanation, walks: Sequence[_Walk]) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return what stands still, uint8 [H, W, 3] in device pixels, and each tile's upper left corner in CSS ones."""
    rows = -(-len(walks) // ACROSS)
    above, below = 4 + _LINE * max(1 + walk.title.count("\n") for walk in walks), _below(walks)
    width = max(2 * MARGIN + min(len(walks), ACROSS) * (SIDE + _GAP), _LEAST_WIDTH)
    canvas = Canvas(width, 2 * MARGIN + _HEAD + rows * (SIDE + above + below + _GAP))
    canvas.text(MARGIN, MARGIN, method_title(explanation.method), size=15, bold=True)
    places = []
    for place, walk in enumerate(walks):
        row, column = divmod(place, ACROSS)
        x, y = MARGIN + column * (SIDE + _GAP), MARGIN + _HEAD + row * (SIDE + above + below + _GAP)
        size = 12 * min(1.0, _LETTERS / max(map(len, walk.title.split("\n"))))
        canvas.text(x, y, walk.title, size=size, bold=True, colour=SERIES[walk.colour].light)
        places.append((x, y + above))
    return canvas.array(), places


def _frame(
    page: np.ndarray, places: Sequence[tuple[int, int]], walks: Sequence[_Walk], step: int, words: str
) -> np.ndarray:
    shown, said = page.copy(), Canvas(_WORDS, _HEAD - 4)
    said.text(_WORDS, 2, words, size=14, colour=MUTED.light, align="right")
    _paste(shown, page.shape[1] // DENSITY - MARGIN - _WORDS, MARGIN, said.array())
    for (x, y), walk in zip(places, walks, strict=True):
        pixels = enlarge(rgb(walk.images[step].numpy()), side=SIDE)
        _paste(shown, x, y, pixels)
    tall, wide = _below(walks), page.shape[1] // DENSITY
    for y in {y for _, y in places} if tall else ():
        strip = Canvas(wide, tall)
        for (x, own), walk in zip(places, walks, strict=True):
            for line, said_here in enumerate(walk.words[step].split("\n") if own == y and walk.words else ()):
                size = 11 * min(1.0, _LETTERS / len(said_here))
                strip.text(x, 2 + line * (_LINE - 2), said_here, size=size, colour=INK.light)
        _paste(shown, 0, y + pixels.shape[0] // DENSITY, strip.array())
    return shown[::DENSITY, ::DENSITY].copy()


def _below(walks: Sequence[_Walk]) -> int:
    """Return how many CSS pixels the words below each image take."""
    return _LINE * max((1 + walk.words[0].count("\n") for walk in walks if walk.words), default=0)


def _paste(page: np.ndarray, x: int, y: int, pixels: np.ndarray) -> None:
    page[y * DENSITY :, x * DENSITY :][: pixels.shape[0], : pixels.shape[1]] = pixels


def _directions(explanation: Explanation) -> list[_Walk]:
    values, names = explanation.values, explanation.meta.get("class_names", [])
    own = [
        _Walk(title=names[k] if k < len(names) else f"direction {k + 1}", images=walk, words=_said(explanation, "", k))
        for k, walk in enumerate(values["traversal"])
    ]
    random = values.get("traversal_random", ())
    return own + [
        _Walk(title=f"random {r + 1}", images=walk, colour="grey", words=_said(explanation, "_random", r))
        for r, walk in enumerate(random)
    ]


def _said(explanation: Explanation, kind: str, walk: int) -> list[str]:
    """Return the critic's logit and the classifier's verdict at each step of a walk, as far as they are known."""
    logits = explanation.values.get(f"critic_first_walk{kind}")
    lines = [] if logits is None else [[f"D {number(value, signed=True)}" for value in logits[walk].tolist()]]
    verdicts = verdicts_of(explanation, kind, walk)
    return ["\n".join(step) for step in zip(*lines, *([verdicts] if verdicts else []), strict=True)]


def _sigmas(explanation: Explanation, steps: int) -> list[str]:
    return [f"{sigma:+.2g} σ".replace("-", "−") if sigma else "0 σ" for sigma in explanation.values["sigmas"].tolist()]


def _counterfactuals(explanation: Explanation) -> list[_Walk]:
    values = explanation.values
    ends = zip(values["from"].tolist(), values["to"].tolist(), strict=True)
    titles = [f"{_verdict(explanation, before)} →\n{_verdict(explanation, after)}" for before, after in ends]
    turned = ["blue" if flipped else "grey" for flipped in values["flipped"].tolist()]
    walks = zip(titles, values["path"], turned, strict=False)  # not every way is kept as pictures
    return [_Walk(title=title, images=walk.float(), colour=colour) for title, walk, colour in walks]


def _verdict(explanation: Explanation, verdict: int) -> str:
    names = explanation.meta.get("class_names")
    return names[verdict] if names else "real" if verdict > 0 else "generated"


def _ways(explanation: Explanation) -> list[_Walk]:
    names = explanation.meta["class_names"]
    # not every way is kept as pictures
    pairs = zip(explanation.values["way_ends"].tolist(), explanation.values["way_images"], strict=False)
    return [_Walk(title=f"{names[first]} →\n{names[last]}", images=walk.float()) for (first, last), walk in pairs]


def _attributes(explanation: Explanation) -> list[_Walk]:
    rows, names = explanation.values["attribute_rows"].tolist(), explanation.meta.get("class_names")
    return [
        _Walk(title=f"{names[int(row[0])] if names else 'critic'}\nattribute {place + 1}", images=walk.float())
        for place, (row, walk) in enumerate(zip(rows, explanation.values["attribute_walks"], strict=True))
    ]


def _shares(explanation: Explanation, steps: int) -> list[str]:
    return [f"{place / max(steps - 1, 1):.0%} of the way" for place in range(steps)]


#: Name of the file -> what moves in it.
MOVING: dict[str, Moving] = {
    "traversal": Moving(
        needs=("traversal", "sigmas"),
        walks=_directions,
        steps=_sigmas,
        caption="All walks at once, there and back; random directions are grey.",
    ),
    "counterfactuals": Moving(
        needs=("path", "from", "to", "flipped"),
        walks=_counterfactuals,
        steps=_shares,
        caption="Each picture on its way to another verdict, and back; grey where it was not turned.",
    ),
    "ways": Moving(
        needs=("way_images", "way_ends"),
        walks=_ways,
        steps=_shares,
        caption="The ways from one verdict to another, and back.",
    ),
    "attributes": Moving(
        needs=("attribute_walks", "attribute_rows"),
        walks=_attributes,
        steps=_shares,
        caption="Each attribute moved from one end to the other, and back.",
    ),
}
