"""One thread for whatever has to have the same bits everywhere: those of a sum may depend on how it is divided."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

THREADS = 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)
