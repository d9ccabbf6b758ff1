"""Measurements of what the project claims: one file a claim, each a ratio against a named peer in the same run."""
