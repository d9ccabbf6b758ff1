"""Networks that take or tell class labels, made into the plain ones that all methods explain.

A label is one more latent: K normal numbers stand behind a generator's D, and the largest of them says which of the K
classes is drawn. Draws of the prior then have random labels, and a method that knows nothing of labels explains such a
generator as any other.

Legend: n rows, D latent, K classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ganscale.explain.beside import Beside, without_companions
from ganscale.explain.errors import CallableError, ExplainInputError
from ganscale.explain.plan import Request


class Labelled(nn.Module):
    """A generator G(z [n, D], label [n]) as one of D + K latents; ``latent`` is their number, ``classes`` is K.

    Raises CallableError where the network does not say its ``latent`` D and no number of classes is known.
    """

    def __init__(self, network: Callable[[Tensor, Tensor], Tensor], classes: int | None) -> None:
        super().__init__()
        said = getattr(network, "classes", None)
        given = {"latent": getattr(network, "latent", None), "classes": classes if said is None else said}
        for name, value in given.items():
            if not isinstance(value, int) or value < 1:
                rule = f"say its number of {'latents' if name == 'latent' else name} where it takes labels"
                raise CallableError("the generator", rule, value, f"give it a whole number as attribute {name!r}")
        self.network = network
        self.plain, self.classes = given["latent"], given["classes"]
        self.latent = self.plain + self.classes

    def forward(self, z: Tensor) -> Tensor:
        """Return G(z, label) [n, C, H, W] of latents with the numbers of their labels behind them [n, D + K]."""
        return self.network(z[:, : self.plain], self.labels(z))

    def labels(self, z: Tensor) -> Tensor:
        """Return the label of each latent, int64 [n]."""
        return z[:, self.plain :].argmax(dim=1)

    def with_label(self, z: Tensor, label: Tensor | int) -> Tensor:
        """Return latents of the given label (one, or int64 [n]): the largest of their K numbers changes its place."""
        wanted = torch.as_tensor(label, device=z.device).expand(len(z)) + self.plain
        rows, now = torch.arange(len(z), device=z.device), self.labels(z) + self.plain
        moved = z.clone()
        moved[rows, wanted], moved[rows, now] = z[rows, now], z[rows, wanted]
        return moved


class OneLabel(nn.Module):
    """A critic at one label, the same for every row: D(x, y), or what a head that tells classes adds to its logit.

    The latter is the logit of real plus the log-probability of the class (Odena et al. 2017, arXiv:1610.09585).
    """

    def __init__(self, network: nn.Module, label: int) -> None:
        super().__init__()
        self.network, self.label = network, label

    def forward(self, x: Tensor) -> Tensor:
        """Return one logit a row [n]."""
        if not takes_label(self.network):
            logit, classes = both_heads(self.network(x))
            return logit + classes.log_softmax(dim=1)[:, self.label]
        found = self.network(x, torch.full((len(x),), self.label, dtype=torch.int64, device=x.device))
        return both_heads(found)[0] if isinstance(found, tuple) else found


class RealOrFake(nn.Module):
    """A critic that tells classes too, by its first output alone: real or fake."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return one logit a row [n]."""
        return both_heads(self.network(x))[0]


def both_heads(found: object) -> tuple[Tensor, Tensor]:
    """Return (logit [n], class logits [n, K]) of a critic with two heads; raises CallableError for anything else."""
    if isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, Tensor) for part in found):
        logit, classes = found
        logit = logit.squeeze(1) if logit.ndim == 2 and logit.shape[1] == 1 else logit
        if logit.ndim == 1 and classes.ndim == 2 and len(classes) == len(logit):
            return logit, classes
        found = f"{tuple(logit.shape)} and {tuple(classes.shape)}"
    got = found if isinstance(found, str) else type(found).__name__
    raise CallableError("a critic with 'classes'", "return (logit [n], class logits [n, K])", got, "wrap it")


def takes_label(network: object) -> bool:
    """Whether a network can be called with a label beside its input."""
    return _can_be_called(network, 2)


def labels_as_latents(generator: nn.Module | None, classes: int | None) -> nn.Module | None:
    """Return a generator that has to be given labels, or can be and says how many, as one of latents; others as is.

    ``classes`` is their number where the generator does not say it.
    """
    if takes_label(generator) and (not _can_be_called(generator, 1) or isinstance(_classes(generator), int)):
        return Labelled(generator, classes)
    return generator


def tells_classes(critic: object) -> bool:
    """Whether a critic of images alone says how many ``classes`` it tells beside real and fake."""
    return isinstance(critic, nn.Module) and isinstance(_classes(critic), int) and not takes_label(critic)


def of_images(critic: nn.Module, label: int | None = None) -> nn.Module | None:
    """Return the critic as one of images alone, at ``label`` where there is one; None where it lacks a label."""
    if isinstance(critic, Beside):
        alone = of_images(critic.critic, label)
        if alone is critic.critic:
            return critic
        return None if alone is None else Beside(alone, critic.companions)
    if label is not None:
        return OneLabel(critic, label)
    if tells_classes(critic):
        return RealOrFake(critic)
    return critic if _can_be_called(critic, 1) else None


def plain_network(network: nn.Module) -> nn.Module:
    """Return the network whose layers are looked at, without what stands around it here."""
    while isinstance(network, (Labelled, OneLabel, RealOrFake, Beside)):
        network = network.critic if isinstance(network, Beside) else network.network
    return network


def label_numbers(generator: object) -> int:
    """Return how many latents at the end choose the label: K, or 0 of a generator without labels."""
    return generator.classes if isinstance(generator, Labelled) else 0


def with_label_numbers(generator: object, domain: str, request: Request) -> Request:
    """Return the request with label numbers behind its latents [N, D], where the generator takes labels.

    ``inputs["labels"]`` says which labels (-1: any); without them they are drawn, each from the request's seed and its
    place. Latents that have D + K numbers keep the labels that nothing else is said of. Raises ExplainInputError for a
    label that there is not.
    """
    if not isinstance(generator, Labelled):
        return request
    inputs = dict(request.inputs)
    for stream, name in enumerate(("z", "latents", *(["x"] if domain == "z" else []))):
        z = inputs.get(name)
        if z is None or z.ndim != 2 or z.shape[1] not in (generator.plain, generator.plain + generator.classes):
            continue
        if z.shape[1] == generator.plain:
            # a key of three numbers, as no chunk has
            rng = np.random.default_rng(np.random.SeedSequence(request.seed, spawn_key=(0, 0, stream)))
            drawn = torch.from_numpy(rng.standard_normal((len(z), generator.classes))).to(z.dtype)
            inputs[name] = torch.cat([z, drawn], dim=1)
        if name != "latents" and "labels" in inputs:
            inputs[name] = _at(generator, inputs[name], inputs["labels"])
    return replace(request, inputs=inputs)


def _at(generator: Labelled, z: Tensor, labels: Tensor) -> Tensor:
    alike = labels.ndim == 1 and len(labels) == len(z)
    if not alike or labels.is_floating_point() or labels.min() < -1 or labels.max() >= generator.classes:
        rule = f"be whole numbers from 0 to {generator.classes - 1} (-1: any), one a latent"
        got = labels.tolist() if alike else tuple(labels.shape)
        raise ExplainInputError("inputs['labels']", rule, got, "leave them out, and they are drawn")
    return generator.with_label(z, torch.where(labels < 0, generator.labels(z), labels))


def _can_be_called(network: Any, arguments: int) -> bool:
    network = without_companions(network)
    try:
        inspect.signature(getattr(network, "forward", network)).bind(*[None] * arguments)
    except (TypeError, ValueError):  # not with so many; or nothing is known of how it is called
        return False
    return True


def _classes(network: Any) -> object:
    return getattr(without_companions(network), "classes", None)
