"""What every panel has in common: heading, banner, and the table of scores beside their controls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ganscale.dashboards.figures import Canvas
from ganscale.dashboards.palette import INK, LINE, MUTED, SERIES, SURFACE, WARNING_GROUND, WARNING_INK

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation, Score

MARGIN = 18
BANNER = "not better than random"
MARKS = {"better": "✓", "not better": "✗", "no margin": ""}
_VERDICT_INK = {"better": SERIES["blue"].light, "not better": SERIES["vermilion"].light, "no margin": MUTED.light}
_LETTER = 6.3  # CSS pixels that a letter of a line takes, at most
_DIGIT = 7.3  # the same of a number
_SMALLEST = 0.6  # of a line's size, where it is too long for a narrow panel
_HEAD, _LINE, _BANNER, _ROW = 26, 17, 32, 21
_COLUMNS = (("score", 0), ("value", 255), ("margin (95 %)", 335), ("control", 480), ("better", 560), ("verdict", 632))

METHOD_TITLES = {
    "integrated-gradients": "Integrated gradients",
    "kernel-shap": "Kernel SHAP",
    "directions": "Latent directions",
    "exact-shapley": "Exact Shapley values",
    "lime": "LIME",
    "smoothgrad": "SmoothGrad",
    "input-x-gradient": "Input × gradient",
    "grad-cam": "Grad-CAM",
    "attack-input": "Attack on the input",
    "attack-latent": "Attack on the latent",
    "conv-interaction": "Layers of generator and critic",
    "retrieval": "Nearest images",
    "mprt": "Layer by layer shuffled (MPRT)",
    "roar": "Remove and retrain (ROAR)",
    "latent-counterfactual": "Counterfactuals in latent space",
    "attfind": "Attributes that drive a judge (AttFind)",
    "class-generation": "Classes through the generator",
    "probe-classifier": "A classifier on generated images",
    "dissect": "Dissection",
    "layer-ablation": "Layers taken away",
    "layer-noise": "Layers disturbed",
    "layer-shapley": "Fair shares of layers",
    "layer-swap": "Layers swapped",
    "style-mixing": "Styles mixed",
    "feature-maps": "Feature maps",
    "feature-vis": "What units like best",
}


SCORE_TITLES = {
    "deletion_auc": "deletion AUC",
    "insertion_auc": "insertion AUC",
    "gini": "sparsity (Gini)",
    "max_sensitivity": "max-sensitivity",
    "deletion_auc_v_shuffled_network": "deletion AUC v shuffled network",
    "r_squared": "R² of the linear fit",
    "critic_linearity_r2": "critic linearity (R²)",
    "image_change_per_sigma": "image change (L2 per σ)",
    "critic_slope_per_sigma": "critic slope (logit per σ)",
    "assessed_slope_per_sigma": "rise of what is assessed per σ",
    "gain_log_odds": "gain in log-odds",
    "plausibility_critic": "plausibility (critic's logit)",
    "distance_to_real_of_class": "distance to real of the class",
    "neighbours_of_class": "real neighbours of the class",
    "real_neighbours_of_class": "real neighbours of the class",
    "pixel_l2": "change of pixels (L2)",
    "iou_held_out": "IoU on held-out latents",
}
NETWORKS = {"G": "generator", "D": "critic", "C": "classifier"}
#: What a method that takes no target looks at.
LOOKED_AT = {
    "dissect": "generator",
    "layer-ablation": "generator",
    "layer-noise": "generator",
    "layer-swap": "generator",
    "style-mixing": "generator",
    "class-generation": "generator and classifier",
    "probe-classifier": "generator and classifier",
    "conv-interaction": "generator and critic",
    "membership": "generator and critic",
    "autoencoder": "encoder",
    "disentanglement": "encoder",
    "roar": "data",
}
BASELINES = {
    "auto": "the low end of the range",
    "low": "the low end of the range",
    "mid": "the middle of the range",
    "mean": "the samples' mean",
    "blur": "the sample blurred",
    "zero": "zero",
    "prior": "a draw of the prior, averaged over 16",
}


#: Words of a score's name that are written otherwise.
_SPELT = {
    **{word: word.upper() for word in ("auc", "dci", "fgsm", "mig", "pca", "pgd", "psnr", "sap", "ssim")},
    "gini": "(Gini)",
    "r2": "R²",
    "percent": "%",
}


def score_title(name: str) -> str:
    """Return a score's name as people write it."""
    return SCORE_TITLES.get(name, " ".join(_SPELT.get(word, word) for word in name.split("_")))


def origin_words(explanation: Explanation) -> str:
    """Return what was looked at, and of which run at which time, as far as the explanation knows."""
    run = explanation.meta.get("run")
    what = LOOKED_AT.get(explanation.method, f"target {explanation.target}")
    if explanation.method in ("feature-maps", "feature-vis"):
        what = NETWORKS[explanation.meta["network"]]
    if explanation.method in ("latent-counterfactual", "attfind"):
        what = f"generator and {explanation.meta['judge']}"
    if explanation.method == "retrieval":
        what = str(explanation.meta["of"])
    return what if run is None else f"{what} · {run['name']} at {run['images'] / 1000:g} kimg"


def class_name(explanation: Explanation, label: int) -> str:
    """Return a label's name where the run's data have names, else "class K"; "generated" below 0."""
    if label < 0:
        return "generated"
    names = explanation.meta.get("names", {}).get("classes", [])
    return names[label] if label < len(names) else f"class {label}"


def baseline_words(explanation: Explanation) -> str:
    """Return in words what stood for an absent part."""
    words = _baseline_words(explanation)
    if explanation.method == "expected-gradients":
        words = f"that of each other sample in turn; in the curves {words}"
    if explanation.meta.get("fill") != "generator":
        return words
    drawn = f"what the generator would draw there, the best fitting of {explanation.meta['options']['bank']} images"
    return drawn if "coalitions" in explanation.meta else f"{words}; in the curves {drawn}"


def _baseline_words(explanation: Explanation) -> str:
    choice = str(explanation.meta.get("baseline", "zero"))
    words = BASELINES.get(choice, f"the value {choice}")
    value_range = explanation.meta.get("value_range")
    if choice in ("auto", "low") and value_range and explanation.inputs["x"].ndim == 4:
        low = f"{value_range[0]:g}".replace("-", "−")
        return f"{words}, {low} (black)"
    return "zero" if choice == "auto" and not value_range else words


def decides(explanation: Explanation, score: str) -> bool:
    """Return whether a score is among those that decide on the banner."""
    return score in explanation.meta.get("primary", explanation.scores)


def method_title(method: str) -> str:
    """Return the method's name as people write it."""
    return METHOD_TITLES.get(method, method.replace("-", " ").capitalize())


def target_words(explanation: Explanation) -> str:
    """Return in words what was explained, and whether that is all of it."""
    interim = explanation.meta.get("interim")
    return _target_words(explanation) + (f" ({interim})" if interim else "")


def _target_words(explanation: Explanation) -> str:
    target = explanation.target
    z = "G(z)" if target.of_generator else "x"
    if target.kind == "class":
        judge = explanation.meta.get("classifier", {}).get("classifier", "the classifier")
        name = "" if target.name in (None, str(target.index)) else f" ({target.name})"
        return f"the {target.output} of class {target.index}{name}, C({z}), by {judge}"
    if target.kind == "unit":
        place = "its mean over the map" if target.y is None else f"at row {target.y}, column {target.x}"
        return f"unit {target.index} of layer {target.layer} at {z}, {place}"
    if target.kind == "distance":
        return f"the distance of {z} from a reference image in layer {target.layer}"
    if target.kind == "region":
        return f"the generator's pixels in the region {target.region}"
    if target.kind != "critic":
        return "the given function f(x)"
    label = "" if target.label is None else f", {target.label}"
    return f"the critic's raw logit D({z}{label})" + (
        "" if target.sign == "real" else ", negated: what makes the critic say generated"
    )


def number(value: float | None, *, signed: bool = False) -> str:
    """Return a short number: three significant digits, a true minus sign, a dash for nothing."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "not a number")
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e5):
        text = f"{value:.2e}"
    else:
        text = f"{value:.{max(0, 2 - math.floor(math.log10(size)))}f}" if size else "0"
    return ("+" if signed and value > 0 else "") + text.replace("-", "−")


def measured_on(values: Mapping[str, Mapping[str, Any]]) -> str:
    """Return ", n = 1000, split train, ..." of an evaluation, as far as its first value's stamp says it."""
    stamp = next(iter(values.values()), {}).get("stamp") or {}
    known = (("n = {}", "n_fake"), ("split {}", "split"), ("resized by {}", "resizer"))
    return "".join(f", {words.format(stamp[key])}" for words, key in known if key in stamp)


def verdict(score: Score) -> str:
    """Return whether a score beats its control, in words."""
    if score.verdict == "not better" and not score.beats_constant:
        return "not better than a constant"
    words = {"better": "beats its control", "not better": "not better than its control", "no margin": "no margin"}
    return words[score.verdict]


def is_meant(explanation: Explanation, score: Score) -> bool:
    """Whether a score that does not beat its control is no fault: the method says itself what that means."""
    return score.verdict == "not better" and bool(explanation.meta.get("banner"))


def margin_words(score: Score) -> str:
    """Return how far the value must be from its control, and of what that is the error; a dash where there is none."""
    return "–" if score.margin is None else f"±{number(score.margin)} {score.margin_of}"


def heading_height(*, lines: int, banner: bool) -> int:
    """Return how many CSS pixels ``heading`` takes."""
    return MARGIN + _HEAD + lines * _LINE + (_BANNER + 6 if banner else 0) + 8


def heading(canvas: Canvas, title: str, lines: Sequence[str], *, banner: bool, of: Explanation | None = None) -> int:
    """Draw title, explaining lines and, where nothing was shown, the banner; return the y below it.

    What was looked at stands at the right of the title, where ``of`` is given, and that it is not whole; smaller where
    the title leaves less room.
    """
    y = MARGIN
    canvas.text(MARGIN, y, title, size=17, bold=True)
    if of is not None:
        interim = of.meta.get("interim", "")
        to_say = interim and not any(interim in line for line in lines)
        room = canvas.width - 2 * MARGIN - canvas.width_of(title, size=17, bold=True) - 16
        _at_right(canvas, y - 8 if to_say else y + 4, origin_words(of), room, colour=MUTED.light)
        if to_say:
            _at_right(canvas, y + 7, interim, room, colour=WARNING_INK.light)
    y += _HEAD
    for line in lines:
        fits = (canvas.width - 2 * MARGIN) / (_LETTER * max(len(line), 1))
        canvas.text(MARGIN, y, line, size=12 * min(1.0, max(fits, _SMALLEST)), colour=MUTED.light)
        y += _LINE
    if banner:
        y += 6
        meant = "" if of is None else of.meta.get("banner", "")
        ground, line = (SURFACE, LINE) if meant else (WARNING_GROUND, SERIES["vermilion"])
        canvas.box(MARGIN, y, canvas.width - 2 * MARGIN, _BANNER, fill=ground.light, line=line.light)
        words = f"⚠ {BANNER}: a deciding score does not beat its control; read no meaning into this picture"
        ink = INK if meant else WARNING_INK
        said = f"{meant[0].upper()}{meant[1:]}" if meant else words
        canvas.text(MARGIN + 12, y + 8, said, size=13, bold=True, colour=ink.light)
        y += _BANNER
    return y + 8


def _at_right(canvas: Canvas, y: float, words: str, room: float, *, colour: str) -> None:
    size = 11.0
    for _ in range(2):  # small letters are hinted wider than they should be
        size *= min(1.0, room / canvas.width_of(words, size=size))
    canvas.text(canvas.width - MARGIN, y, words, size=size, colour=colour, align="right")


def score_table(explanation: Explanation, width: int) -> np.ndarray:
    """Draw each score beside the control that was measured with it; those that decide on the banner are bold.

    Returns what is put below a panel, uint8 RGB [H, W, 3], ``width`` CSS pixels wide.
    """
    scores, y = explanation.scores, 4
    tall = _ROW * (len(scores) + 1) + 8
    canvas = Canvas(width, y + tall + MARGIN)
    canvas.box(MARGIN, y, canvas.width - 2 * MARGIN, tall, fill=SURFACE.light, line=LINE.light)
    left = MARGIN + 10
    room = {title: after - x for (title, x), (_, after) in pairwise(_COLUMNS)}
    for title, x in _COLUMNS:
        canvas.text(left + x, y + 7, title, size=11, bold=True, colour=MUTED.light)
    for row, (name, score) in enumerate(scores.items()):
        top = y + 7 + _ROW * (row + 1)
        is_fault = not is_meant(explanation, score)
        mark = f"{MARKS[score.verdict]} ".lstrip() if is_fault else ""
        cells = (
            f"{score_title(name)} (n = {score.n})",
            number(score.value),
            margin_words(score),
            number(score.control),
            {"zero": "nearer 0"}.get(score.better, score.better),
            mark + verdict(score),
        )
        for (title, x), cell in zip(_COLUMNS, cells, strict=True):
            last = title == _COLUMNS[-1][0]
            colour = INK.light if not last else _VERDICT_INK[score.verdict] if is_fault else MUTED.light
            bold = title == "score" and decides(explanation, name)
            letter = _DIGIT if title != "score" else _LETTER * (1.13 if bold else 1)
            fits = (room.get(title, math.inf) - 8) / (letter * len(cell))
            canvas.text(left + x, top, cell, size=12 * min(1.0, fits), colour=colour, bold=bold)
    return canvas.array()
