"""Attacks: on the input of a critic or classifier, on a generator's latents, on an explanation itself."""

from ganscale.explain.attacks.attack_input import AttackInput
from ganscale.explain.attacks.attack_latent import AttackLatent
from ganscale.explain.attacks.explanation_robustness import ExplanationRobustness

__all__ = ["ATTACKS", "AttackInput", "AttackLatent", "ExplanationRobustness"]

ATTACKS = (AttackInput, AttackLatent, ExplanationRobustness)
