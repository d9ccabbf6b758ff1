"""Transposed convolution with what follows it in a generator: bias, batch norm, activation.

N batch, C channels, H height, W width.
"""

from __future__ import annotations

from ganscale.ops._bind_conv import few as conv_transpose_few

__all__ = ["conv_transpose_few"]
