"""Random numbers as a function of (seed, purpose, slot): no hidden state, the same for any number of ranks.

A slot is a position in the endless sequence of real images (images seen + index in the global batch). Philox is
counter based (Salmon et al. 2011): slot k's numbers come from counter k, without drawing those before it.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

_WORDS = 4  # 64-bit words that Philox 4x64 makes from one counter


class Draws:
    """Keyed draws for the slots ``first .. first + count - 1``."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed = seed
        self._device = device
        self._keys: dict[str, np.ndarray] = {}

    def uniform(self, purpose: str, first: int, count: int) -> Tensor:
        """Return [count] in torch's default dtype, uniform in [0, 1)."""
        return self._to_device(self._uniform64(purpose, first, count, 1)[:, 0])

    def normal(self, purpose: str, first: int, count: int, size: int) -> Tensor:
        """Return [count, size] in torch's default dtype, standard normal by Box and Muller (1958)."""
        half = -(-size // 2)
        u = self._uniform64(purpose, first, count, 2 * half)
        radius = np.sqrt(-2.0 * np.log1p(-u[:, :half]))  # 1 - u lies in (0, 1], so the logarithm is finite
        angle = 2.0 * np.pi * u[:, half:]
        return self._to_device(np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :size])

    def _uniform64(self, purpose: str, first: int, count: int, size: int) -> np.ndarray:
        blocks = -(-size // _WORDS)
        key = self._keys.get(purpose)
        if key is None:
            entropy = [self._seed, zlib.crc32(purpose.encode())]
            key = self._keys[purpose] = np.random.SeedSequence(entropy).generate_state(2, np.uint64)
        words = np.random.Philox(key=key, counter=first * blocks).random_raw(count * blocks * _WORDS)
        return ((words >> np.uint64(11)) * 2.0**-53).reshape(count, blocks * _WORDS)[:, :size]

    def _to_device(self, values: np.ndarray) -> Tensor:
        values = torch.from_numpy(np.ascontiguousarray(values)).to(torch.get_default_dtype())
        return values.to(self._device, non_blocking=True)
