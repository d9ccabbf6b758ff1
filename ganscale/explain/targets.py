"""The scalars that can be explained of a run: each a picklable callable that maps [n, ...] to [n].

Legend: n rows, C channels, H height, W width, K classes, D latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ganscale.explain.classifier import Classifier
from ganscale.explain.errors import CallableError, ExplainTargetError, LayerError
from ganscale.explain.labels import of_images, takes_label, tells_classes
from ganscale.explain.layers import find_layer, layer_names, layer_output
from ganscale.explain.types import Target

Scalar = Callable[[Tensor], Tensor]
EPSILON = 1e-12  # inside the root of a distance: its gradient at 0 is then 0 and not NaN


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Negated:
    """``-fn``: what speaks for fake."""

    fn: Scalar

    def __call__(self, x: Tensor) -> Tensor:
        return -self.fn(x)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class ClassScore:
    """A classifier's log-probability, logit or margin (logit over the largest other) of one class."""

    classifier: Callable[[Tensor], Tensor]
    index: int
    output: str

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.classifier(x)
        if self.output == "log-probability":
            return logits.log_softmax(dim=1)[:, self.index]
        if self.output == "logit":
            return logits[:, self.index]
        others = torch.cat([logits[:, : self.index], logits[:, self.index + 1 :]], dim=1)
        return logits[:, self.index] - others.max(dim=1).values


@dataclass(frozen=True, slots=True)
class OfGenerator:
    """score(G(z))."""

    score: Scalar
    generator: nn.Module

    def __call__(self, z: Tensor) -> Tensor:
        return self.score(self.generator(z))


@dataclass(frozen=True, slots=True)
class Unit:
    """The activation of one channel of a layer, at one place or its mean over the map."""

    network: nn.Module
    forward: Callable[[Tensor], object]
    layer: str
    channel: int
    place: tuple[int, int] | None

    def __call__(self, x: Tensor) -> Tensor:
        output = layer_output(self.network, self.layer, lambda: self.forward(x))
        if output.ndim < 2 or self.channel >= output.shape[1]:
            count = output.shape[1] if output.ndim > 1 else 1
            raise LayerError("channel", f"be one of the {count} of {self.layer}", self.channel, f"0 to {count - 1}")
        chosen = output[:, self.channel]
        if self.place is None:
            return chosen.flatten(1).mean(dim=1) if chosen.ndim > 1 else chosen
        y, x_ = self.place
        if chosen.ndim != 3 or y >= chosen.shape[1] or x_ >= chosen.shape[2]:
            size = "x".join(map(str, chosen.shape[1:])) or "no map"
            raise LayerError("place", f"lie on the map of {self.layer} ({size})", f"{y}:{x_}", "leave it out")
        return chosen[:, y, x_]


@dataclass(frozen=True, slots=True)
class Distance:
    """The L2 distance of a layer's output from that of the reference image [1, C, H, W]."""

    network: nn.Module
    forward: Callable[[Tensor], object]
    layer: str
    reference: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        together = torch.cat([x, self.reference.to(x)])
        output = layer_output(self.network, self.layer, lambda: self.forward(together)).flatten(1)
        return ((output[:-1] - output[-1:]).square().sum(dim=1) + EPSILON).sqrt()


@dataclass(frozen=True, slots=True)
class Region:
    """The mean of G's pixels where ``mask`` [H, W] is set, or their root mean square distance from ``reference``."""

    generator: nn.Module
    mask: Tensor
    reference: Tensor | None

    def __call__(self, z: Tensor) -> Tensor:
        images = self.generator(z)
        mask = self.mask.to(images.device)
        if images.shape[2:] != mask.shape:
            size, got = ("x".join(map(str, shape)) for shape in (images.shape[2:], mask.shape))
            raise ExplainTargetError("the region's mask", f"be {size} like the images", got, "resize it")
        if self.reference is None:
            return images[:, :, mask].flatten(1).mean(dim=1)
        away = (images - self.reference.to(images))[:, :, mask].flatten(1)
        return (away.square().mean(dim=1) + EPSILON).sqrt()


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What a target may be made of. ``reference`` [1, C, H, W] is what distances are measured from."""

    critic: nn.Module | None = None
    generator: nn.Module | None = None
    classifier: Classifier | None = None
    reference: Tensor | None = None


def build_target(target: Target, parts: Parts) -> tuple[Target, Scalar, Scalar | None]:
    """Return the target with every name resolved, its function, and the same as a function of images (or None).

    Raises ExplainTargetError where a network that the target speaks of is missing, LayerError for an unknown layer.
    """
    if target.kind == "region":
        return target, _region(target, parts), None
    if target.kind == "unit" or target.kind == "distance":
        target, score, network = _inner(target, parts)
        if network is parts.generator:
            return replace(target, of_generator=True), score, None
    elif target.kind == "critic":
        critic = _wanted(parts.critic, "critic", target)
        if target.label is not None and not takes_label(critic) and not tells_classes(critic):
            raise ExplainTargetError(
                "target", "name no label of this critic, which takes none", str(target), "use critic"
            )
        score = of_images(critic, target.label)
        if score is None:
            rule, remedy = "name a label of this critic, which wants one", "for example critic(0)"
            raise ExplainTargetError("target", rule, str(target), remedy)
        score = Negated(score) if target.sign == "fake" else score
    elif target.kind == "class":
        classifier = _wanted(parts.classifier, "classifier", target)
        index = classifier.find_class(target.name if target.index is None else target.index)
        target = replace(target, index=index, name=classifier.label(index))
        score = ClassScore(classifier, index, target.output)
    else:
        raise ExplainTargetError("target", "be of a network for a run", str(target), "use critic or class:K")
    if not target.of_generator:
        return target, score, score
    return target, OfGenerator(score, _wanted(parts.generator, "generator", target)), score


def _wanted(network: nn.Module | None, what: str, target: Target) -> nn.Module:
    if network is None:
        remedy = "pass --classifier NAME|PATH" if what == "classifier" else "explain a run that has one"
        raise ExplainTargetError("target", f"be of a {what} that is there", str(target), remedy)
    return network


def _region(target: Target, parts: Parts) -> Region:
    generator = _wanted(parts.generator, "generator", target)
    text, _, distance = str(target.region).partition(":")
    reference = _wanted(parts.reference, "reference image", target) if distance else None
    if Path(text).suffix:
        return Region(generator, _mask_of_file(Path(text)), reference)
    try:
        top, left, bottom, right = (int(number) for number in text.split(","))
    except ValueError:
        raise ExplainTargetError("region", "be Y0,X0,Y1,X1 or a picture", text, "for example region:0,0,8,8") from None
    device = next(generator.parameters()).device
    with torch.no_grad():
        height, width = generator(torch.zeros(2, generator.latent, device=device)).shape[2:]
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise ExplainTargetError("region", f"lie in the {height}x{width} picture", text, "Y0 < Y1 and X0 < X1")
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return Region(generator, mask, reference)


def _mask_of_file(path: Path) -> Tensor:
    from PIL import Image

    try:
        mask = torch.from_numpy(np.asarray(Image.open(path).convert("L")) > 127)
    except OSError as error:
        raise ExplainTargetError("region", "name a readable picture", f"{path} ({error})", "white is inside") from None
    if not mask.any():
        raise ExplainTargetError("region", "hold at least one white pixel", str(path), "white is inside")
    return mask


def _inner(target: Target, parts: Parts) -> tuple[Target, Scalar, nn.Module]:
    """Find which network has the layer: the one its prefix names, or the only one that has it."""
    classifier = parts.classifier
    named = {"D": parts.critic, "G": parts.generator, "C": classifier}
    inside = {key: getattr(network, "model", network) if key == "C" else network for key, network in named.items()}
    layers = {key: set(layer_names(net)) if isinstance(net, nn.Module) else set() for key, net in inside.items()}
    prefix, dot, rest = str(target.layer).partition(".")
    if dot and prefix in named:
        key, layer = prefix, rest
        _wanted(named[key], {"D": "critic", "G": "generator", "C": "classifier"}[key], target)
    else:
        layer = str(target.layer)
        have = [key for key, names in layers.items() if layer.partition("#")[0] in names]
        if len(have) > 1:
            ways = " or ".join(f"{key}.{layer}" for key in have)
            raise LayerError("layer", "belong to one network", layer, f"write {ways}")
        key = have[0] if have else next(key for key, network in named.items() if network is not None)
        if not have:
            everything = nn.ModuleDict({k: net for k, net in inside.items() if isinstance(net, nn.Module)})
            find_layer(everything, layer)  # raises, with the nearest names of all networks
    target = replace(target, layer=f"{key}.{layer}")
    if not isinstance(inside[key], nn.Module):
        raise CallableError("the classifier", "have layers", type(inside[key]).__name__, "use a torch network")
    find_layer(inside[key], layer.partition("#")[0])
    if target.kind == "distance":
        if key == "G":
            raise ExplainTargetError("target", "measure distances in D or C", str(target), "use @G for images of G")
        reference = _wanted(parts.reference, "reference image", target)
        return target, Distance(inside[key], named[key], layer, reference), named[key]
    place = None if target.y is None else (target.y, target.x)
    return target, Unit(inside[key], named[key], layer, int(target.index), place), named[key]
