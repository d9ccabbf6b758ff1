"""What the pages say of each method and each panel: how to read it, and its words for who cannot see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ganscale.dashboards.layout import LOOKED_AT, decides, method_title, number, score_title
from ganscale.dashboards.maps import is_picture

if TYPE_CHECKING:
    from torch import Tensor

    from ganscale.explain.types import Explanation

#: Method -> what it answers and how far to trust it. Where there is none, the method's own summary stands for it.
READING: dict[str, str] = {
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
        "Directions in latent space along which the generator varies. A row is worth a name only where its "
        "images change more, and more steadily, than those of the random rows below. Signs are arbitrary."
    ),
}
READING |= {
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
        "Whether training images can be told from others of the same kind. Where they cannot, there is no sign of "
        "memorisation by these two attacks, which is no proof against others."
    ),
}
READING |= {
    "latent-counterfactual": (
        "What the generator would have to draw for the judge to say otherwise. A turned verdict is worth a "
        "name only where the turned picture is nearer to real ones of that class than what a change of pixels finds."
    ),
    "attfind": (
        "Single coordinates that move the judge most. They mean something only where they beat the best of as many "
        "random directions: coordinates of a latent that was never disentangled are as good as any direction."
    ),
    "class-generation": (
        "What the judge is surest of when only the generator may draw, or what a generator with labels draws for each. "
        "Compare with the nearest real images: pictures unlike them show what the classifier mistakes for the class."
    ),
    "probe-classifier": (
        "Verdicts on generated images against the labels they were drawn at, or those of the real images nearest in "
        "pixels. A row off the diagonal is a weakness of the classifier or a picture between two classes; the ways say."
    ),
    "dissect": (
        "Units whose maps lie where a concept is. Read a unit as drawing it only where its IoU beats that with masks "
        "of other images and the concept vanishes without it more than without random units."
    ),
    "layer-ablation": "What is left when a layer says the same for all latents: a large change says it said much.",
    "layer-noise": "Where the picture is most easily disturbed; noise has the size of each channel's own variation.",
    "layer-swap": "In a chain a whole layer decides on all that follows; half of its channels show how they share it.",
    "layer-shapley": (
        "How much of the target each layer answers for, over all combinations of layers that say nothing of the latent "
        "at hand. In a chain nothing passes a layer that is off: shares say who is needed with whom."
    ),
    "style-mixing": "Means and deviations of the channels carry texture and brightness; where things are stays.",
}
READING |= {
    "roar": (
        "Whether a map finds what classes are told apart by: networks are trained anew without its first regions. A "
        "good map's curve falls faster than that of random regions; a difference within the margin shows nothing."
    ),
    "autoencoder": (
        "What a code of few numbers keeps of an image, and what it loses first. Beating the mean image is the least; "
        "beside as many principal components one sees whether the network does better than a linear map."
    ),
    "disentanglement": (
        "Whether single numbers of the code stand for single factors that are known. A factor that many numbers share "
        "is known to the code, but no number may be named after it."
    ),
    "retrieval": (
        "The real images that a network holds for most alike. A neighbour much nearer than those of real images points "
        "at a copied training image; far neighbours alone are no proof of something new."
    ),
    "conv-interaction": (
        "How alike what generator and critic compute is, layer by layer, and how much of the critic's gradient reaches "
        "each layer of the generator. Likeness says that two layers carry the same, not that one learned of the other."
    ),
}
READING |= {
    "feature-maps": (
        "Maps of the channels that vary most in each layer: where a layer looks, not what for. Early layers should "
        "still show the picture; a map that does not tell its own picture from another's shows nothing."
    ),
    "feature-vis": (
        "What excites a unit most when any input is allowed, beside the real pictures that excite it most. Trust a "
        "name for the unit only where both say the same: what ascent finds may lie far from every real image."
    ),
}
READING["exact-shapley"] = READING["kernel-shap"]
#: Panel -> what it shows.
CAPTIONS: dict[str, str] = {
    "maps": "Input, signed map, overlay, most important regions and map as alpha of each sample.",
    "beeswarm": "What each number of the samples adds, a dot a sample, coloured by the number.",
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
    "concepts": "How well each unit fits each concept, and how many units detect one, by layer.",
    "layer-effects": "How much editing each layer changes pixels, logit and verdict, and how that grows with the edit.",
    "layer-shares": "What each layer adds to the target, from all layers off to all on.",
    "layers": "Pictures as they are and with each layer edited.",
    "mixing": "Layouts down, styles across.",
    "feature-maps": "Maps of each layer's most varied channels.",
    "feature-maps-over-time": "The same channels at earlier checkpoints and now.",
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
    "side-by-side": "Maps and filters of layers of generator and critic that are of one size.",
    "unit-logits": "What each unit of the generator adds to the logit of the critic.",
    "scores": "The scores of this explanation.",
}


def subject_of(method: str, meta: Mapping[str, Any]) -> str | None:
    """Return in words what was looked at, where that is no single output; None where the target says it."""
    if method == "directions":
        return "the generator's latent space"
    if meta.get("judge") == "classifier":
        return f"the verdicts of {meta.get('classifier', {}).get('classifier', 'the classifier')}"
    return f"the {LOOKED_AT[method]}" if method in LOOKED_AT else None


def caption_of(panel: str, explanation: Explanation) -> str:
    """Return in a sentence what a panel shows."""
    if panel == "maps" and not is_picture(explanation):
        return "What each feature of each sample contributes."
    return CAPTIONS.get(panel, f"{panel.replace('-', ' ').capitalize()}.")


def alt_of(panel: str, explanation: Explanation) -> str:
    """Say what is to be seen on a panel and the deciding scores, for who cannot see it."""
    seen = _SEEN.get(panel, lambda found: "")(explanation)
    title = method_title(explanation.method)
    return " ".join(filter(None, (f"{title}: {caption_of(panel, explanation)}", seen, deciding_scores(explanation))))


def deciding_scores(explanation: Explanation) -> str:
    """Say the scores that decide, each with its control."""
    said = [
        f"{score_title(name)} {number(score.value)}, control {number(score.control)}, "
        f"{BETTER.get(score.better, score.better)} is better"
        for name, score in explanation.scores.items()
        if decides(explanation, name)
    ]
    return "; ".join(said) + "." if said else ""


def _maps_seen(explanation: Explanation) -> str:
    values, count = explanation.values, len(explanation.inputs["x"])
    shares = values["attribution"].double()
    generated = explanation.inputs.get("generated")
    kinds = "" if generated is None else f", {int(generated.sum())} of them generated"
    said = [f"{count} sample{'' if count == 1 else 's'}{kinds}."]
    if "fx" in values:
        said.append(f"f(x) {_range(values['fx'])}.")
    return " ".join([*said, f"Shares {_range(shares)}."])


def _walks_seen(explanation: Explanation) -> str:
    values = explanation.values
    random = len(values["traversal_random"]) if "traversal_random" in values else 0
    said = f"{len(values['traversal'])} directions and {random} random ones, {len(values['sigmas'])} steps each."
    if "image_change" in values and "image_change_random" in values:
        own, chance = values["image_change"], values["image_change_random"]
        said += f" The image changes by {number(float(own.max()))} at most along a direction, "
        said += f"by {number(float(chance.max()))} along a random one (L2 per σ)."
    return said


def _curves_seen(explanation: Explanation) -> str:
    deleted, inserted = (explanation.values[f"{name}_curve"].double() for name in ("deletion", "insertion"))
    parts = [("removed", deleted), ("brought back", inserted)]
    middle = [
        f"with half {words} f(x) is {number(float(_mean(curve)[curve.shape[-1] // 2]))}" for words, curve in parts
    ]
    return f"On average, {' and '.join(middle)}."


def _mean(curve: Tensor) -> Tensor:
    return curve.reshape(-1, curve.shape[-1]).mean(dim=0)


def _range(values: Tensor) -> str:
    return f"from {number(float(values.min()))} to {number(float(values.max()))}"


BETTER = {"zero": "nearer 0"}
_SEEN: dict[str, Callable[[Explanation], str]] = {
    "maps": _maps_seen,
    "traversal": _walks_seen,
    "curves": _curves_seen,
}
