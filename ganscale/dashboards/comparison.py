"""Maps of several methods on the same samples, each beside its faithfulness: what an auditor would compare.

Legend: C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ganscale import __version__
from ganscale.dashboards.enlarging import DAMAGED, DENSITY
from ganscale.dashboards.gallery import Row, Tile, gallery
from ganscale.dashboards.layout import BANNER, MARKS, class_name, method_title, number, target_words
from ganscale.dashboards.maps import cells_of, is_picture, limit_of, signed_map
from ganscale.dashboards.page import figure, picture_file
from ganscale.errors import GanscaleError
from ganscale.files import written_aside

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

MOST_SAMPLES = 6
_FILES = "side-by-side-*.png"
_CURVES = {"deletion_auc": "deletion", "insertion_auc": "insertion"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Explanations of one target of one checkpoint by different methods, and the bytes of the samples that all have."""

    key: tuple[str, object]
    members: list[Explanation]
    samples: list[bytes]


def groups_of(explanations: Sequence[Explanation]) -> list[Group]:
    """Return which maps can be compared: the last of each method, two methods or more on the same samples."""
    last = {(one.method, _key(one)): one for one in explanations if "attribution" in one.values and is_picture(one)}
    groups: list[Group] = []
    for (_, key), explanation in last.items():
        own = list(_places(explanation))
        for place, group in enumerate(groups):
            shared = [sample for sample in group.samples if sample in own]
            if group.key == key and shared:
                groups[place] = Group(key=key, members=[*group.members, explanation], samples=shared)
                break
        else:
            groups.append(Group(key=key, members=[explanation], samples=own))
    return [group for group in groups if len(group.members) > 1]


def comparison_panel(group: Group) -> np.ndarray:
    """Draw the inputs, and below them a row of maps for each method, its deletion and insertion AUC at the left.

    Each map's colours end at its own largest value, which stands below it; uint8 RGB [H, W, 3].
    """
    first, samples = _unmarked(group.members[0]), group.samples[:MOST_SAMPLES]
    shown = [_places(first)[sample] for sample in samples]
    inputs = [
        Tile(
            values=first.inputs["x"][place].numpy(),
            words=f"f(x) {number(float(first.values['fx'][place]), signed=True)}",
        )
        for place in shown
    ]
    rows = [Row(title="input", tiles=inputs, notes=("areas under curves,", "random orders in brackets"))]
    rows += [_row(explanation, samples) for explanation in group.members]
    columns = [_kind(first, place) for place in shown]
    lines = [
        f"Explained: {target_words(first)}.",
        "Red speaks for it, blue against it; maps without a sign (saliency) are red where it reacts at all.",
        "Each map is divided by its largest value, which stands below it: places compare, sizes do not.",
        "A faithful map has a lower deletion AUC and a higher insertion AUC than random orders, over all its samples.",
    ]
    return gallery(first, rows, lines, columns=columns, title="Maps side by side", banner=False)


def write_comparisons(folder: Path, hashes: Mapping[str, str]) -> list[Path]:
    """Write the comparisons of the explanations in ``folder/NAME`` as PNGs there, and return them; those that cannot
    be read are left out.

    ``hashes`` are those of their tensors, by name: nothing is drawn again that is as it was.
    """
    from ganscale.explain.types import Explanation

    kept, wanted = sorted(folder.glob(_FILES)), " ".join([__version__, *map(":".join, hashes.items())])
    if kept and all(_said(path).get("of") == wanted for path in kept):
        return kept
    for path in kept:
        path.unlink(missing_ok=True)  # another process may do the same
    found = []
    for name in hashes:
        try:
            found.append(Explanation.load(folder / name))
        except GanscaleError:
            continue
    # all are drawn before the first is written: where one raises, none is there that would pass for all
    drawn, written = [(group, comparison_panel(group)) for group in groups_of(found)], []
    for place, (group, panel) in enumerate(drawn):
        said = PngInfo()
        said.add_text("of", wanted)
        said.add_itxt("alt", _words(group))
        written.append(folder / _FILES.replace("*", str(place + 1)))
        with written_aside(written[-1]) as aside:
            Image.fromarray(panel).save(aside, format="PNG", pnginfo=said)
    return written


def comparison_figures(folder: Path) -> str:
    """Return the comparisons that lie in ``folder`` as figures; empty where there are none."""
    caption = "The maps of each method on the same samples, with areas under deletion and insertion curves."
    figures = []
    for path in sorted(folder.glob(_FILES)):
        with suppress(FileNotFoundError):  # another process draws it anew
            picture = picture_file(path, _said(path).get("alt", caption), density=DENSITY)
            figures.append(figure(picture, caption, kind="panel"))
    return "\n".join(figures)


def _key(explanation: Explanation) -> tuple[str, object]:
    return target_words(_unmarked(explanation)), explanation.meta.get("run", {}).get("images")


def _unmarked(explanation: Explanation) -> Explanation:
    """Return it without the words that it is not whole, which each row says for itself."""
    return replace(explanation, meta={key: value for key, value in explanation.meta.items() if key != "interim"})


def _notes(explanation: Explanation) -> list[str]:
    """Return its areas under curves, and of a result that is not whole, what there is of it."""
    interim = explanation.meta.get("interim", "").partition(",")[0]  # without the reason
    areas = [f"{words} {_score(explanation, name)}" for name, words in _CURVES.items() if name in explanation.scores]
    return [*areas, interim] if interim else areas


def _places(explanation: Explanation) -> dict[bytes, int]:
    return {x.numpy().tobytes(): place for place, x in enumerate(explanation.inputs["x"])}


def _row(explanation: Explanation, samples: Sequence[bytes]) -> Row:
    tiles, places = [], _places(explanation)
    for sample in samples:
        values = signed_map(explanation, places[sample])
        limit = limit_of(values, cells_of(explanation, places[sample]))
        tiles.append(Tile(values=np.clip(values / (limit or 1.0), -1, 1), words=f"±{number(limit)}"))
    notes = [*_notes(explanation), *([BANNER] if explanation.not_better_than_random else [])]
    return Row(title=method_title(explanation.method), tiles=tiles, notes=notes)


def _score(explanation: Explanation, name: str) -> str:
    score = explanation.scores[name]
    return f"{number(score.value)} ({number(score.control)}) {MARKS[score.verdict] or 'no margin'}"


def _kind(explanation: Explanation, place: int) -> str:
    generated, labels = (explanation.inputs.get(name) for name in ("generated", "labels"))
    if generated is not None and bool(generated[place]):
        return "generated"
    return f"sample {place + 1}" if labels is None else class_name(explanation, int(labels[place]))


def _words(group: Group) -> str:
    methods = "; ".join(", ".join([method_title(one.method), *_notes(one)]) for one in group.members)
    return f"Maps of {len(group.members)} methods on {len(group.samples)} same samples. {methods}."


def _said(path: Path) -> Mapping[str, str]:
    """Return what a PNG says of itself; nothing where it is damaged."""
    try:
        with Image.open(path) as image:
            image.load()
            return {key: str(value) for key, value in image.info.items()}
    except DAMAGED:
        return {}
