"""Activations that leave their derivative behind as a mask: one bit an element with the compiled core, else a bool.

A mask follows the memory order of its dense tensor, whose format the caller keeps from one sweep to the next.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ganscale.ops import _bind, _extension


def activate(z: Tensor, bias: Tensor | None, slope: float, compiled: bool) -> Tensor:
    """In place, z + bias where that is positive, else slope times it; return the mask of the positive ones."""
    if not z.numel():
        return _empty(z, compiled)
    if compiled:
        return _activate_compiled(z, bias, slope)
    if bias is not None:
        z.add_(bias.reshape(-1, *[1] * (z.ndim - 2)))
    mask = z > 0
    torch.nn.functional.leaky_relu_(z, slope) if slope else torch.relu_(z)
    return mask


def scale(t: Tensor, mask: Tensor, slope: float, compiled: bool) -> None:
    """In place, t where the mask is set, else slope times it."""
    if not t.numel():
        return
    if compiled:
        _extension.core().mask_scale(_bind.flat(t), _bytes(mask), slope, _bind.execution(t))
    elif slope == 0:
        t.masked_fill_(~mask, 0)
    else:
        t.copy_(torch.where(mask, t, t * slope))


def _activate_compiled(z: Tensor, bias: Tensor | None, slope: float) -> Tensor:
    mask = _empty(z, True)
    core, run = _extension.core(), _bind.execution(z)
    if bias is None:
        core.act_mask(_bind.flat(z), None, _bytes(mask), slope, run)
    else:
        bias, shape = bias.contiguous(), _bind.planes(z)
        core.act_mask(_bind.view(z, shape), _bind.view(bias, (shape[1],)), _bytes(mask), slope, run)
    return mask


def _empty(z: Tensor, compiled: bool) -> Tensor:
    if compiled:
        return torch.empty(mask_bytes(z.numel()), dtype=torch.uint8, device=z.device)
    return torch.empty_like(z, dtype=torch.bool)


def mask_bytes(elements: int) -> int:
    """The bytes of a mask of bits; as the core counts them."""
    return (elements + 7) // 8


def _bytes(mask: Tensor) -> tuple:
    return mask.data_ptr(), U8, (mask.numel(),), (1,)


U8 = 4  # the core's code of a byte
