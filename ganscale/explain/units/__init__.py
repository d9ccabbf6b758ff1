"""Explanations of the layers and units inside a generator, a critic or a classifier."""

from __future__ import annotations

from ganscale.explain.units.dissect import Dissect
from ganscale.explain.units.feature_maps import FeatureMaps
from ganscale.explain.units.feature_vis import FeatureVis
from ganscale.explain.units.layer_effects import LayerAblation, LayerNoise
from ganscale.explain.units.layer_shapley import LayerShapley
from ganscale.explain.units.layer_swap import LayerSwap, StyleMixing

UNITS = (Dissect, LayerAblation, LayerNoise, LayerShapley, LayerSwap, StyleMixing, FeatureMaps, FeatureVis)
