"""Keyed random numbers: each draw is a pure function of what it is for, never of what was drawn before.

The stream is Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), keyed by a hash of the purpose
and its integers. Only the generator's raw 64-bit words are used: NumPy keeps those stable between versions, which it
does not promise for ``Generator.permutation`` or ``Generator.normal``, and an exact resume may cross a NumPy version.
"""

from __future__ import annotations

import hashlib

import numpy as np


def philox(purpose: str, *key: int) -> np.random.Philox:
    """Return the bit generator that belongs to ``purpose`` and the integers ``key``."""
    text = "\0".join(["ganscale", purpose, *(str(int(part)) for part in key)])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64))


def keyed_permutation(n: int, *key: int, purpose: str) -> np.ndarray:
    """Return a uniform permutation of ``range(n)`` as int64 ``[n]``, a function of ``purpose`` and ``key`` alone."""
    # Sorting 64-bit words: two of them tie with probability below n^2 / 2^65, and a stable sort settles even that.
    return np.argsort(philox(purpose, *key).random_raw(n), kind="stable").astype(np.int64)


def keyed_index(n: int, *key: int, purpose: str) -> int:
    """Return one index in ``range(n)``; the modulo's bias is below n / 2^64."""
    return int(philox(purpose, *key).random_raw()) % n


def keyed_uniform(n: int, *key: int, purpose: str) -> np.ndarray:
    """Return ``n`` float64 numbers, uniform in the open interval (0, 1)."""
    words = philox(purpose, *key).random_raw(n)
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def keyed_normal(n: int, *key: int, purpose: str) -> np.ndarray:
    """Return ``n`` standard normal float64 numbers (Box and Muller 1958)."""
    half = (n + 1) // 2
    uniform = keyed_uniform(2 * half, *key, purpose=purpose)
    radius, angle = np.sqrt(-2.0 * np.log(uniform[:half])), 2.0 * np.pi * uniform[half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n]
