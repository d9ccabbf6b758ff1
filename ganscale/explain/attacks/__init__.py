"""Attacks: on the input of a critic or classifier, on a generator's latents, on an explanation itself."""
