"""Adversarial losses and gradient penalties: pure functions, unreduced, one number a sample."""

from ganscale.losses.adversarial import ADVERSARIAL, AdversarialLoss
from ganscale.losses.penalties import PENALTIES, PenaltyFunction, describe_penalty

__all__ = ["ADVERSARIAL", "PENALTIES", "AdversarialLoss", "PenaltyFunction", "describe_penalty"]
