"""What the operators ask about a call before they choose how to compute it, and what they make of its arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from ganscale.errors import UserError

LARGEST = 2**20  # kMost of the core: sides, strides and paddings, so that no size overflows

Pair = tuple[int, int]


def is_plain(x: Tensor) -> bool:
    """Tell whether nothing traces, transforms or watches the call, so that it may bypass torch's dispatcher.

    A transform may wrap the parameters alone, of which x says nothing: none may be active at all.
    """
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not is_functorch_wrapped_tensor(x)
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
    )


def at_once(x: Tensor) -> bool:
    """Tell whether a backward formula may call a kernel directly: real memory, and no further derivative wanted.

    The way through the dispatcher costs more than a small kernel does, and only recording or tracing needs it.
    """
    return type(x) is Tensor and not torch.is_grad_enabled() and not is_functorch_wrapped_tensor(x)


def pair(what: str, value: int | Pair, least: int) -> Pair:
    """Return (H, W) numbers of at least ``least``; an integer stands for both. Raises UserError."""
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(
        isinstance(side, int) and not isinstance(side, bool) and side >= least for side in pair
    ):
        raise UserError(what, f"be an integer of at least {least}, or one for each side", value, "correct it")
    if max(pair) > LARGEST:
        raise UserError(what, f"be at most {LARGEST}", value, "no image is that large")
    return pair


@contextlib.contextmanager
def cast_once(*tensors: Tensor | None) -> Iterator[tuple[Tensor | None, ...]]:
    """Under autocast cast these as torch does for a convolution, and switch it off for what is inside."""
    device = tensors[0].device.type if isinstance(tensors[0], Tensor) else ""
    if not (device and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        yield tensors
        return
    dtype = torch.get_autocast_dtype(device)
    cast = tuple(t.to(dtype) if isinstance(t, Tensor) and t.dtype != torch.float64 else t for t in tensors)
    with torch.autocast(device, enabled=False):
        yield cast
