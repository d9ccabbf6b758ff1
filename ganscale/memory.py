"""What malloc does with memory that is freed, in processes that are ours from start to end."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_THRESHOLDS = (1 << 30, 1 << 25)  # older C libraries refuse a mapping threshold above 32 MiB
_SET_BY_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> int:
    """Let glibc keep what is freed for the next allocation; return up to how many bytes.

    By default blocks above 32 MiB are mapped and unmapped anew on every call, and the page faults of that cost some
    operators more than their work. The price is that what a process has once held stays its own: 10 to 20 % more in
    training at 64x64. 0: nothing was set, as the C library is another one or the environment says what malloc does.
    """
    if any(name in os.environ for name in _SET_BY_USER):
        return 0
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return 0
    mallopt(_M_TRIM_THRESHOLD, _THRESHOLDS[0])
    return next((size for size in _THRESHOLDS if mallopt(_M_MMAP_THRESHOLD, size)), 0)
