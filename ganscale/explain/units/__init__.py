"""Explanations of the layers and units inside a generator."""

from __future__ import annotations

from ganscale.explain.units.dissect import Dissect
from ganscale.explain.units.layer_effects import LayerAblation, LayerNoise
from ganscale.explain.units.layer_swap import LayerSwap, StyleMixing

UNITS = (Dissect, LayerAblation, LayerNoise, LayerSwap, StyleMixing)
