"""How ranks agree on a gradient: a sum over a fixed list of parameters, once a phase, after its last backward.

Not DistributedDataParallel: its hooks are silently wrong for a penalty-only loss and for ``static_graph`` with a
penalty. A fixed list has no such cases: what has no gradient counts as zero, so no rank's buffer ever shifts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from ganscale.training.process_group import Group

BUCKET_BYTES = 4 << 20  # one is copied while the one before is under way


def exchange_gradients(net: nn.Module, group: Group, *, bucket_bytes: int = BUCKET_BYTES) -> None:
    """Leave in every parameter's ``grad`` the sum over ranks; a missing one counts as zero.

    Gradients are gathered in flat buckets, each summed by one asynchronous all-reduce, in the order of the parameters
    on every rank. ``grad`` then is a view into its bucket, laid out as its parameter is: nothing is copied back.
    """
    if group.size == 1:
        for parameter in net.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return
    under_way = []
    for bucket in buckets(net.parameters(), bucket_bytes):
        flat = bucket[0].new_empty(sum(parameter.numel() for parameter in bucket))
        gather(bucket, views(flat, bucket))
        under_way.append(group.start_sum_(flat))
    for work in under_way:
        work.wait()


def buckets(parameters: Iterable[nn.Parameter], limit: int) -> Iterator[list[nn.Parameter]]:
    """Cut the list into neighbours of one type with at most ``limit`` bytes together; a larger one stands alone."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and (size + parameter.nbytes > limit or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.nbytes
    if bucket:
        yield bucket


def views(flat: Tensor, bucket: list[nn.Parameter]) -> list[Tensor]:
    """Return the parts of ``flat`` that belong to ``bucket``, each of its parameter's shape and strides.

    Torch's fused Adam on the CPU walks through memory, so a gradient must lie as its parameter does.
    """
    parts = flat.split([parameter.numel() for parameter in bucket])
    return [part.as_strided(p.shape, p.stride()) for part, p in zip(parts, bucket, strict=True)]


def gather(bucket: list[nn.Parameter], places: list[Tensor]) -> None:
    """Move the gradients of ``bucket`` to ``places``; zeros where there is none."""
    present = [(place, p.grad) for place, p in zip(places, bucket, strict=True) if p.grad is not None]
    for place, p in zip(places, bucket, strict=True):
        if p.grad is None:
            place.zero_()
    if present:
        torch._foreach_copy_(*map(list, zip(*present, strict=True)))
    for place, p in zip(places, bucket, strict=True):
        p.grad = place
