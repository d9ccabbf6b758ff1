"""Likeness: neighbours in features, training images that give themselves away, layers that know the same."""

from ganscale.explain.likeness.conv_interaction import ConvInteraction
from ganscale.explain.likeness.membership import Membership
from ganscale.explain.likeness.retrieval import Retrieval

__all__ = ["LIKENESS", "ConvInteraction", "Membership", "Retrieval"]

LIKENESS = (Retrieval, Membership, ConvInteraction)
