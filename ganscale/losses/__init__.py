"""Adversarial and autoencoding losses, gradient penalties: pure functions, unreduced, one number a sample."""

from ganscale.losses.adversarial import ADVERSARIAL, AdversarialLoss
from ganscale.losses.autoencoding import AUTOENCODING, divergence, squared_error
from ganscale.losses.penalties import PENALTIES, Penalty, PenaltyFunction, describe_penalty

__all__ = [
    "ADVERSARIAL",
    "AUTOENCODING",
    "PENALTIES",
    "AdversarialLoss",
    "Penalty",
    "PenaltyFunction",
    "describe_penalty",
    "divergence",
    "squared_error",
]
