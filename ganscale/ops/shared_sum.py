"""Sums over the processes of one machine through memory that they share, from ``ganscale._C``.

A sum over gloo takes a round trip through the kernel's network stack and two threads; between cores of one machine
memory is enough. Batch norm over ranks asks for several small sums a batch, each of which all ranks wait for.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import torch
from torch import Tensor

from ganscale.ops import _bind, _extension

MEMORY = Path("/dev/shm")
DTYPES = (torch.float32, torch.float64)


def create_file() -> str:
    """Create an empty file that ranks may share, in memory and for this user alone, and return its path.

    Raises OSError where the machine has no such place.
    """
    path = MEMORY / f"ganscale-{secrets.token_hex(8)}"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    return str(path)


class SharedSum:
    """What one rank of ``size`` on this machine has of the memory at ``path``; the file may be unlinked once all have.

    Raises RuntimeError where the memory cannot be had. No rank may call ``sum_`` before all have been built.
    """

    def __init__(self, path: str, rank: int, size: int, *, timeout_s: float) -> None:
        self._core = _extension.core().SharedSum(path, rank, size, timeout_s)

    def sum_(self, tensor: Tensor) -> None:
        """Sum a dense tensor of one of ``DTYPES`` over all ranks in place, in the order of the ranks.

        Every rank gets the same bits. Raises ConnectionError where a rank dies or stays away for the timeout, and
        ValueError where one brings another size; nothing can be summed after that.
        """
        if tensor.numel():
            self._core.sum(_bind.view(tensor, (tensor.numel(),)))
