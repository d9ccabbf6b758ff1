"""The report's section of explanations: each with its panels, its scores beside their controls, and how to read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

from ganscale.dashboards.enlarging import DENSITY
from ganscale.dashboards.layout import BANNER, decides, method_title, number, score_title, target_words, verdict
from ganscale.dashboards.maps import is_picture
from ganscale.dashboards.page import Html, details, figure, note, png_array, table, warning
from ganscale.dashboards.panels import draw_panels
from ganscale.dashboards.run_facts import RunFacts

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation

_READING = {
    "integrated-gradients": (
        "Each pixel's share of f(x) − f(baseline), gathered along the straight path from the baseline to the sample. "
        "Look for shapes, not for single pixels: neighbours of opposite sign cancel. Trust the map as far as deleting "
        "what it calls important moves the logit more than deleting at random."
    ),
    "kernel-shap": (
        "Each cell's fair share of f(x) − f(baseline) over all ways to hide the others. Shares add up exactly. A share "
        "says what hiding a cell does to this critic; it says nothing about what would look more real to a person."
    ),
    "saliency": (
        "How strongly f reacts to a small change of each pixel. A reaction is no contribution: a pixel may matter much "
        "and react little (saturation), so the deletion scores often stay near chance, which is then said above."
    ),
    "smoothgrad": "Saliency averaged over noisy copies of the sample: less grainy, with the same meaning.",
    "input-x-gradient": (
        "Each pixel's gradient times its distance from the baseline: what f would lose if it were linear. Compare the "
        "completeness gap with that of integrated gradients."
    ),
    "expected-gradients": (
        "Integrated gradients with the other samples as baselines: what tells this sample from its like, rather than "
        "from a black picture."
    ),
    "occlusion": (
        "What f loses while a window is hidden. Two parts that can stand in for each other both look unimportant here; "
        "Shapley values share such pairs out."
    ),
    "grad-cam": (
        "Where one layer's channels, weighted by their mean gradient, are active. As coarse as the layer's map; read "
        "places, not outlines."
    ),
    "layer-conductance": "How much of f(x) − f(baseline) flows through each place of one layer; it adds up exactly.",
    "mprt": (
        "A map that stays the same while the network loses what it learned shows the picture, not the network. Read "
        "maps of this method only where the curve falls below the line of the moved inputs."
    ),
    "lime": (
        "What each region adds in a linear model of f near the sample. Trust it as far as its R² goes: a low one says "
        "that regions act together, which no linear model shows."
    ),
    "directions": (
        "Directions in latent space that move the generator's first layer most. A row is worth a name only where its "
        "images change more, and more steadily, than those of the random rows below. Signs are arbitrary."
    ),
}
_READING |= {
    "attack-input": (
        "How far inputs must move before the verdict changes. Budgets are in 1/255 of the picture. Noise of equal norm "
        "is what chance does; an attack weaker than a simpler one means masked gradients, and no robustness is shown."
    ),
    "attack-latent": (
        "Small steps of z that move the image most, or the critic's logit. The gap between the attack on z and the one "
        "on pixels is the part of the critic's weakness that this generator cannot reach."
    ),
    "explanation-robustness": (
        "The map before and after an attack that leaves input and output nearly alone. A map that changes much more "
        "than under noise should not be read in detail."
    ),
    "membership": (
        "Whether training images can be told from others of the same kind. Here the banner is good news: nobody can be "
        "told by these two attacks, which is no proof against others."
    ),
}
_READING |= {
    "latent-counterfactual": (
        "What the generator would have to draw for the judge to say otherwise. A turned verdict is worth a "
        "name only where the turned picture is nearer to real ones of that class than what a change of pixels finds."
    ),
    "attfind": (
        "Single coordinates that move the judge most. They mean something only where they beat the best of as many "
        "random directions: coordinates of a latent that was never disentangled are as good as any direction."
    ),
    "class-generation": (
        "What the judge is surest of when only the generator may draw. Compare with the nearest real images: pictures "
        "that are unlike them show what the classifier mistakes for the class."
    ),
    "probe-classifier": (
        "Verdicts on generated images against the labels of the real images nearest in pixels. A row off the diagonal "
        "is either a weakness of the classifier or a picture between two classes; the ways show which."
    ),
    "dissect": (
        "Units whose maps lie where a concept is. Read a unit as drawing it only where its IoU beats that with masks "
        "of other images and the concept vanishes without it more than without random units."
    ),
    "layer-ablation": "What is left when a layer says the same for all latents: a large change says it said much.",
    "layer-noise": "Where the picture is most easily disturbed; noise has the size of each channel's own variation.",
    "layer-swap": "In a chain a whole layer decides on all that follows; half of its channels show how they share it.",
    "style-mixing": "Means and deviations of the channels carry texture and brightness; where things are stays.",
}
_READING["exact-shapley"] = _READING["kernel-shap"]
_CAPTIONS = {
    "maps": "Input, signed map and overlay of each sample.",
    "randomisation": "How alike the map stays as layers are shuffled, and the maps after each layer.",
    "retraining": "Accuracy of networks trained without the map's first regions, beside random ones.",
    "curves": "What happens to f(x) as parts are removed or brought back in the map's order, beside random orders.",
    "traversal": "Walks along each direction, with random directions as the control.",
    "counterfactuals": "The way from each picture to one that is judged otherwise, and the same by changing pixels.",
    "attributes": "Coordinates that drive the judge, each moved both ways.",
    "classes": "Pictures that the classifier is surest of, beside the nearest real images.",
    "probe": "Meant against predicted classes.",
    "ways": "Ways through latent space from one verdict to another.",
    "dissection": "The best unit of each concept, and a picture without it.",
    "layers": "Pictures as they are and with each layer edited.",
    "mixing": "Layouts down, styles across.",
    "feature-maps": "Maps of each layer's most varied channels.",
    "feature-vis": "What units like best, beside the pictures that excite them most.",
    "attack-curves": "How many verdicts hold, and by how much, as the budget grows.",
    "attack-examples": "Samples before and after the attack, and the difference.",
    "latent-attacks": "Generator and critic under attacks on the latent, and the images.",
    "attacked-maps": "Each sample and its map before and after the attack.",
    "reconstructions": "Images, what is decoded of their codes, and what principal components keep.",
    "code-map": "The codes on their first two principal axes.",
    "factor-matrix": "How much each number of the code serves each factor.",
    "neighbours": "Each query and its nearest real images.",
    "membership": "How well training images can be told from held-out ones.",
    "alignment": "Likeness of generator and critic layers, and the gradient that reaches each.",
    "scores": "The scores of this explanation.",
}


def explanations_section(facts: RunFacts) -> str:
    """Return every explanation of the run, or what to call where there is none."""
    if not facts.explanations:
        command = f"ganscale explain {facts.name_for_commands} --method integrated-gradients"
        return note("This run was not explained yet.", command)
    return "\n".join(_explanation(name, explanation) for name, explanation in facts.explanations)


def _explanation(name: str, explanation: Explanation) -> str:
    title = method_title(explanation.method)
    about = target_words(explanation) if explanation.method != "directions" else "the generator's latent space"
    parts = [
        f'<article aria-labelledby="x-{escape(name)}"><h3 id="x-{escape(name)}">{escape(title)}</h3>',
        f'<p class="lead">{escape(name)}: explains {escape(about)}.</p>',
    ]
    if explanation.not_better_than_random:
        parts.append(warning(f"{BANNER}: a deciding score does not beat its control"))
    parts += [warning(str(words)) for words in explanation.meta.get("warnings", [])]
    reading = _READING.get(explanation.method, explanation.meta.get("summary", ""))
    if reading:
        parts.append(f"<p>{escape(str(reading))}</p>")
    for panel, pixels in draw_panels(explanation, with_scores=False).items():
        bars = panel == "maps" and not is_picture(explanation)
        caption = "What each feature of each sample contributes." if bars else _CAPTIONS.get(panel, panel)
        alt = f"{title}: {caption} {_in_words(explanation)}"
        parts.append(figure(png_array(pixels, alt, density=DENSITY), caption, kind="panel"))
    parts += [_score_table(explanation), details("How it was made", _made(explanation)), "</article>"]
    return "\n".join(parts)


def _in_words(explanation: Explanation) -> str:
    """Say the deciding scores, for who cannot see the picture."""
    said = [
        f"{score_title(name)} {number(score.value)}, control {number(score.control)}, {score.better} is better"
        for name, score in explanation.scores.items()
        if decides(explanation, name)
    ]
    return "; ".join(said) + "."


def _score_table(explanation: Explanation) -> str:
    rows = []
    for name, score in explanation.scores.items():
        interval = "–" if score.low is None else f"{number(score.low)} to {number(score.high)}"
        good = score.beats_control
        kind, mark = ("good", "✓") if good else ("bad", "✗")
        said = Html(f'<span class="{kind}"><span aria-hidden="true">{mark} </span>{verdict(score)}</span>')
        better = {"zero": "nearer 0"}.get(score.better, score.better)
        title = (
            Html(f"<b>{escape(score_title(name))}</b> (decides)") if decides(explanation, name) else score_title(name)
        )
        rows.append((title, number(score.value), interval, number(score.control), better, score.n, said))
    head = ("score", "value", "95 % interval", "control", "better", "n", "verdict")
    return table(head, rows, caption="Scores beside controls measured in the same call", numeric=(1, 2, 3, 5))


def _made(explanation: Explanation) -> str:
    rows = [(key, _words(value)) for key, value in explanation.meta.items() if key not in ("warnings", "summary")]
    return table(("what", "value"), rows, caption="Request, plan, cost and versions")


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_words(entry)}" for key, entry in value.items())
    if isinstance(value, float):
        return number(value)
    return value if isinstance(value, str) else json.dumps(value)
