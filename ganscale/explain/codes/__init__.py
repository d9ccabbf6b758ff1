"""Codes: what an encoder keeps of images, and which of its numbers stands for what."""

from ganscale.explain.codes.autoencoder import AutoencoderExplainer
from ganscale.explain.codes.disentanglement import Disentanglement

__all__ = ["CODES", "AutoencoderExplainer", "Disentanglement"]

CODES = (AutoencoderExplainer, Disentanglement)
