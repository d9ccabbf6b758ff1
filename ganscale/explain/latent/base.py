"""What the methods that start from latents share: checked inputs, images in fixed batches, the real images beside.

Legend: N base latents, D latent, P real images, n rows, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ganscale.explain.base import SCORING, Explainer
from ganscale.explain.errors import CallableError, ExplainInputError
from ganscale.explain.labels import Labelled
from ganscale.explain.plan import Request
from ganscale.explain.subject import Subject

IMAGES_A_PASS = 64
PRIOR_DRAWS = 64


class LatentExplainer(Explainer):
    """Base of the methods whose input is z [N, D]; ``self.z`` holds it and ``self.real`` real images [P, C, H, W]."""

    input_name = "z"
    needs = ("generator",)
    wants = ("classifier",)
    beside: ClassVar[Mapping[str, int]] = MappingProxyType({"real": 512})
    least_latent = 1

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        self.z, self.real = request.inputs["z"], request.inputs.get("real")
        if self.z.ndim != 2 or self.z.shape[1] < self.least_latent:
            rule = f"be latents [N, D] with D >= {self.least_latent}"
            raise ExplainInputError("inputs['z']", rule, tuple(self.z.shape), "draw them anew")
        expected = getattr(subject.generator, "latent", self.z.shape[1])
        if expected != self.z.shape[1]:
            raise ExplainInputError("inputs['z']", f"have {expected} numbers a row", self.z.shape[1], "draw them anew")

    @cached_property
    def prior(self) -> Tensor:
        """Draws [64, D] of the normal prior, from the seed alone: what is usual, whichever latents are explained."""
        rng = np.random.default_rng(np.random.SeedSequence(self.request.seed, spawn_key=(0, SCORING + 6)))
        return torch.from_numpy(rng.standard_normal((PRIOR_DRAWS, self.z.shape[1]))).to(self.z.dtype)

    @property
    def labelled(self) -> Labelled | None:
        """Return the generator where it takes labels; raises CallableError where the classifier has other classes."""
        generator, classifier = self.subject.generator, self.subject.classifier
        if not isinstance(generator, Labelled):
            return None
        if generator.classes != classifier.classes:
            rule = f"have the {classifier.classes} classes of the classifier for {self.name}"
            raise CallableError("the generator", rule, generator.classes, "use a classifier of its classes")
        return generator

    def check_networks(self) -> None:
        """Ask generator and critic for two pictures; raises CallableError where one of them cannot answer."""
        images = self.images(self.z[:2])
        if self.subject.critic is None:
            return
        with self.subject.quiet(), torch.no_grad():
            found = self.subject.critic(images.to(self.subject.device))
        if not isinstance(found, Tensor) or found.shape != (len(images),):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            remedy = "give one with two heads the attribute 'classes'"
            raise CallableError("the critic", f"return one number an image, shape ({len(images)},)", got, remedy)

    def images(self, z_nD: Tensor) -> Tensor:
        """Return G(z) on the CPU, float32 [n, C, H, W]; raises CallableError where it makes none or no finite ones."""
        with self.subject.quiet(), torch.no_grad():
            found = [self.subject.generator(part.to(self.subject.device)).cpu() for part in z_nD.split(IMAGES_A_PASS)]
        images = torch.cat(found)
        if images.ndim != 4 or len(images) != len(z_nD) or not torch.isfinite(images).all():
            shape = tuple(images.shape)
            raise CallableError("the generator", "return finite images [n, C, H, W]", shape, "look at its weights")
        return images

    def judge(self, function: object, images_nCHW: Tensor) -> Tensor:
        """Return ``function`` of images in fixed batches, on the CPU, in float64."""
        with self.subject.quiet(), torch.no_grad():
            parts = images_nCHW.split(IMAGES_A_PASS)
            return torch.cat([function(part.to(self.subject.device)).double().cpu() for part in parts])
