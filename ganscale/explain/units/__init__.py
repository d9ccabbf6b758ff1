"""Explanations of the layers and units inside a generator."""

from __future__ import annotations

from ganscale.explain.units.dissect import Dissect

UNITS = (Dissect,)
