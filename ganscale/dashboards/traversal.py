"""Panel of latent directions: what the image becomes along each, with random directions as the control.

Legend: K directions, R random directions, S steps of a walk, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ganscale.dashboards.enlarging import DENSITY, enlarge, rgb
from ganscale.dashboards.figures import Canvas
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

SIDE = 96
_LETTERS = 12  # of a class's name
MOST_DIRECTIONS, MOST_RANDOM, MOST_STEPS = 10, 4, 9  # a row for each class of the usual data sets
_CAPTION, _GAP, _BELOW, _LINE, _COLUMN_HEAD, _RULE = 150, 8, 20, 14, 22, 34


_SOURCES = {
    "sefa": "Eigenvectors of the weights of {layer}, strongest first",
    "pca": "Principal components of the activations of {layer}, strongest first",
    "boundary": "Normals of the boundaries between low and high assessments",
    "score": "Mean gradients of what is assessed",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Walk:
    title: str
    notes: tuple[str, ...]
    images: np.ndarray  # [S, C, H, W] in [-1, 1]
    logits: np.ndarray | None  # [S]
    verdicts: list[str]  # of each step, or none


def traversal_panel(explanation: Explanation) -> np.ndarray:
    """Draw one walk a row from -reach to +reach sigmas; uint8 RGB [H, W, 3].

    Under each image stand the critic's logit and, where a classifier was given, a class with its probability.

    Rows are the strongest directions with their eigenvalues, then random unit directions; all start from the same
    latent, which is the framed middle column. Points of the plane are drawn as paths.
    """
    if min(explanation.values["traversal"].shape[-2:]) == 1:
        return _plane_panel(explanation)
    sigmas = explanation.values["sigmas"].numpy()
    columns = _columns(len(sigmas))
    tall, wide = (edge // DENSITY for edge in enlarge(rgb(_first_image(explanation)), side=SIDE).shape[:2])
    side = max(52, wide)  # room for the number below
    own, random = _own_walks(explanation), _random_walks(explanation)
    lines, banner = _lines(explanation, len(own)), explanation.not_better_than_random
    width = max(2 * MARGIN + _CAPTION + len(columns) * (side + _GAP), 860)
    row = max(tall, 80) + _BELOW + (_LINE if own[0].verdicts else 0)
    top = heading_height(lines=len(lines), banner=banner)
    body = _COLUMN_HEAD + (len(own) + len(random)) * row + (_RULE if random else 0)
    canvas = Canvas(width, top + body + 6)
    y = heading(canvas, method_title(explanation.method), lines, banner=banner, of=explanation)
    for place, column in enumerate(columns):
        words = f"{sigmas[column]:+g} σ".replace("-", "−") if sigmas[column] else "0"
        canvas.text(_left(place, side) + side / 2, y, words, size=12, bold=True, colour=MUTED.light, align="center")
    y += _COLUMN_HEAD
    for walk in own:
        _draw(canvas, y, walk, columns, side, SERIES["blue"].light)
        y += row
    if random:
        canvas.box(MARGIN, y + 6, canvas.width - 2 * MARGIN, 1, fill=LINE.light)
        words = "Control: random directions of the same length"
        canvas.text(MARGIN, y + 12, words, size=12, bold=True, colour=MUTED.light)
        y += _RULE
    for walk in random:
        _draw(canvas, y, walk, columns, side, SERIES["grey"].light)
        y += row
    return canvas.array()


def _plane_panel(explanation: Explanation) -> np.ndarray:
    """Draw each walk as a path through the plane, for generators of points; dots are a step apart."""
    own, random = _own_walks(explanation), _random_walks(explanation)
    lines = [
        _lines(explanation, len(own))[0],
        "All paths start from the same point (black); random directions are grey.",
    ]
    banner, side = explanation.not_better_than_random, 420
    top = heading_height(lines=len(lines), banner=banner)
    canvas = Canvas(860, top + side + 60)
    y = heading(canvas, method_title(explanation.method), lines, banner=banner, of=explanation)
    axes = canvas.axes(MARGIN + 50, y + 8, side, side)
    colours = [SERIES[name].light for name in ("blue", "vermilion", "green", "purple")]
    for walk in random:
        x, height = walk.images.reshape(len(walk.images), -1).T[:2]
        axes.plot(x, height, color=SERIES["grey"].light, linestyle="--", marker=".", linewidth=1)
    for place, walk in enumerate(own):
        colour, left, above = colours[place % len(colours)], MARGIN + side + 90, y + 12 + 48 * place
        x, height = walk.images.reshape(len(walk.images), -1).T[:2]
        axes.plot(x, height, color=colour, marker="o", markersize=4, linewidth=1.6)
        canvas.text(left, above, walk.title, size=13, bold=True, colour=colour)
        canvas.text(left, above + 19, ", ".join(walk.notes), size=12, colour=MUTED.light)
    start = own[0].images[len(own[0].images) // 2].flatten()
    axes.plot(start[0], start[1], marker="o", markersize=7, color=INK.light)
    axes.set_aspect("equal", adjustable="datalim")
    return canvas.array()


def _columns(steps: int) -> list[int]:
    """Return which steps are shown: all, or ``MOST_STEPS`` spread evenly with the middle among them."""
    if steps <= MOST_STEPS:
        return list(range(steps))
    return [round(place * (steps - 1) / (MOST_STEPS - 1)) for place in range(MOST_STEPS)]


def _own_walks(explanation: Explanation) -> list[_Walk]:
    values = explanation.values
    logits, names = values.get("critic_first_walk"), explanation.meta.get("class_names", [])
    walks = []
    for k in range(min(len(values["traversal"]), MOST_DIRECTIONS)):
        what = explanation.meta.get("number_name", "eigenvalue")
        notes = [f"{'λ' if what == 'eigenvalue' else what} = {number(float(values['eigenvalues'][k]))}"]
        if "image_change" in values:
            notes.append(f"{number(float(values['image_change'][k]))} L2 per σ")
        if "critic_slope" in values:
            notes.append(f"critic {number(float(values['critic_slope'][k]), signed=True)} per σ")
        walks.append(
            _Walk(
                title=names[k] if k < len(names) else f"direction {k + 1}",
                notes=tuple(notes),
                images=values["traversal"][k].numpy(),
                logits=None if logits is None else logits[k].numpy(),
                verdicts=verdicts_of(explanation, "", k),
            )
        )
    return walks


def _random_walks(explanation: Explanation) -> list[_Walk]:
    values = explanation.values
    if "traversal_random" not in values:
        return []
    logits = values.get("critic_first_walk_random")
    walks = []
    for r in range(min(len(values["traversal_random"]), MOST_RANDOM)):
        change = values.get("image_change_random")
        walks.append(
            _Walk(
                title=f"random {r + 1}",
                notes=() if change is None else (f"{number(float(change[r]))} L2 per σ",),
                images=values["traversal_random"][r].numpy(),
                logits=None if logits is None else logits[r].numpy(),
                verdicts=verdicts_of(explanation, "_random", r),
            )
        )
    return walks


def verdicts_of(explanation: Explanation, kind: str, walk: int) -> list[str]:
    """Return the class of each step of a walk with its probability; nothing where there was no classifier."""
    values = explanation.values
    if "walk_class" not in values:
        return []
    names = explanation.meta["walk_class_names"]
    of, share = (values[f"walk_{what}{kind}"][walk].tolist() for what in ("class", "probability"))
    return [f"{_short(names[str(k)])} {100 * p:.0f} %" for k, p in zip(of, share, strict=True)]


def _short(name: str) -> str:
    """Return a class's name, cut where it would not fit below an image."""
    name = f"class {name}" if name.isdigit() else name
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"


def _lines(explanation: Explanation, shown: int) -> list[str]:
    total = len(explanation.values["traversal"])
    layer = explanation.meta.get("layer", "the first layer")
    layer = "the layer that sees z" if layer == "auto" else layer
    share = explanation.meta.get("share_of_eigenvalues")
    held = "" if share is None else f"; the {total} kept hold {share:.0%} of the eigenvalues' sum"
    return [
        f"{_SOURCES[explanation.meta.get('by', 'sefa')].format(layer=layer)}: {shown} of {total} shown{held}.",
        f"All rows walk from one latent (middle). {_below(explanation)}",
    ]


def _below(explanation: Explanation) -> str:
    said = ["the critic's logit"] if "critic_first_walk" in explanation.values else []
    if "walk_class" in explanation.values:
        one = explanation.target.kind == "class"
        said.append("the probability of the target's class" if one else "the classifier's verdict")
    return f"Below each image: {'; '.join(said)}." if said else ""


def _first_image(explanation: Explanation) -> np.ndarray:
    return explanation.values["traversal"][0, 0].numpy()


def _left(place: int, side: int) -> int:
    return MARGIN + _CAPTION + place * (side + _GAP)


def _draw(canvas: Canvas, y: int, walk: _Walk, columns: list[int], side: int, colour: str) -> None:
    canvas.text(MARGIN, y + 4, walk.title, size=13, bold=True, colour=colour)
    for line, note in enumerate(walk.notes):
        canvas.text(MARGIN, y + 25 + 17 * line, note, size=12, colour=MUTED.light)
    middle = len(walk.images) // 2
    for place, column in enumerate(columns):
        pixels = enlarge(rgb(walk.images[column]), side=SIDE)
        height, width = (edge / DENSITY for edge in pixels.shape[:2])
        x = _left(place, side) + (side - width) / 2
        frame, line = (2, INK.light) if column == middle else (1, LINE.light)
        canvas.box(x - frame, y - frame, width + 2 * frame, height + 2 * frame, fill=line)
        canvas.image(x, y, pixels)
        if walk.logits is not None:
            words = number(float(walk.logits[column]), signed=True)
            canvas.text(_left(place, side) + side / 2, y + height + 3, words, size=11, colour=INK.light, align="center")
        if walk.verdicts:
            words, below = walk.verdicts[column], y + height + (3 + _LINE if walk.logits is not None else 3)
            size = 11 * min(1.0, (side + _GAP - 2) / (5.9 * len(words)))
            canvas.text(_left(place, side) + side / 2, below, words, size=size, colour=MUTED.light, align="center")
