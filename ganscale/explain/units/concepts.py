"""Concepts as masks: which pixels of a picture belong to what.

With a segmenter the concepts are its own. Without one they are the figure (what is brighter than the background) and,
where there is a classifier, the figure under the name of its verdict; of pictures with one object on a dark ground,
such as ``shapes`` and Fashion-MNIST, that is the object's mask.

Legend: n images, K concepts, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ganscale.explain.subject import Subject

FIGURE = "figure"
DARK = -0.5  # in [-1, 1]: a quarter of the way to white; the darkest drawn figure has its edge there


@dataclass(frozen=True, slots=True)
class Concepts:
    """The concepts that a subject offers; called with images [n, C, H, W] it returns bool masks [n, K, H, W]."""

    subject: Subject

    @property
    def names(self) -> tuple[str, ...]:
        """Return one name a concept."""
        subject = self.subject
        if subject.segmenter is not None:
            return subject.concepts
        classifier = subject.classifier
        return (FIGURE,) if classifier is None else (*(classifier.label(k) for k in range(classifier.classes)), FIGURE)

    def __call__(self, images: Tensor) -> Tensor:
        subject = self.subject
        if subject.segmenter is not None:
            return subject.segmenter(images) > 0.5
        figure = images[:, :3].amax(dim=1, keepdim=True) > DARK
        if subject.classifier is None:
            return figure
        verdict = subject.classifier(images).argmax(dim=1)
        own = verdict[:, None] == torch.arange(subject.classifier.classes, device=verdict.device)
        return torch.cat([figure & own[:, :, None, None], figure], dim=1)
