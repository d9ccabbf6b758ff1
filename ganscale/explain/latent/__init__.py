"""Explanations that walk through a generator's latent space: counterfactuals, attributes, directions, classes."""

from __future__ import annotations

from ganscale.explain.latent.attfind import AttFind
from ganscale.explain.latent.class_generation import ClassGeneration
from ganscale.explain.latent.counterfactual import LatentCounterfactual
from ganscale.explain.latent.directions import Directions
from ganscale.explain.latent.probe import ProbeClassifier

LATENT = (Directions, LatentCounterfactual, AttFind, ClassGeneration, ProbeClassifier)
