"""Measurements of whole commands and the check of a GPU; those of operators are in ``ganscale.bench``."""
